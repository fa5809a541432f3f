"""Programs that a grader of code must survive: one per line, in which `;` stands for a line break.

`TARGET` is a file outside the scratch folder, `PORT` a port that listens on this machine, `PARENT` the grading process.
`PROGRAMS` run until they end or are ended. Each of `REFUSED` tries one call, and passes if it gets through. Those of
`CONTAINED` pass if they are held within bounds.
"""

# ruff: noqa: E501
import platform

FORK_BOMBS = """
import os;while True: os.fork()
import os;while True:;    try: os.fork();    except OSError: pass
import os;[os.fork() for _ in range(10**6)]
import threading;while True: threading.Thread(target=lambda: threading.Event().wait()).start()
import subprocess,sys;while True: subprocess.Popen([sys.executable,'-c','while True: pass'])
import os;def f():;    while True:;        if os.fork() == 0: f();f()
import os,sys;os.execv(sys.executable,[sys.executable,'-c','import os\\nwhile True: os.fork()'])
import multiprocessing as m;ps=[m.Process(target=print) for _ in range(10**4)];[p.start() for p in ps]
import os;if os.fork(): os._exit(0);os.setsid();while True: os.fork()
import asyncio;asyncio.run(asyncio.sleep(10**6))
"""

MEMORY = """
x='a'*10**11
x=[];while True: x.append(' '*10**7)
x=[0];while True: x+=x
import mmap;m=mmap.mmap(-1,2**33);m[:]=b'x'*2**33
x=bytearray(2**34)
x=2**(2**40)
x={i:str(i)*100 for i in range(10**9)}
x=list(range(10**10))
import itertools;x=list(itertools.repeat('a'*1000))
def f(*a): return f(a,a,*a);f(1)
"""

ENDLESS = """
while True: pass
while True: print('x'*10**6)
import sys;while True: sys.stderr.write('x'*10**6)
import os;while True: os.write(1,b'x'*10**6)
import os;[os.write(fd,b'{}\\n'*10**5) for _ in range(10**4) for fd in range(3,20)]
import time;time.sleep(10**6)
import signal;signal.pause()
input()
import signal as s;s.signal(s.SIGTERM,s.SIG_IGN);s.signal(s.SIGALRM,s.SIG_IGN);while True: pass
try:;    while True: pass;finally:;    while True: pass
import re;re.match('(a+)+$','a'*60+'b')
import os;r,w=os.pipe();os.read(r,1)
import select;select.select([],[],[])
import threading;threading.Lock().acquire() and threading.Lock().acquire();l=threading.Lock();l.acquire();l.acquire()
def f():;    try: f();    finally: f();f()
10**10**9
"""

FILES = """
open('TARGET').read()
open('TARGET','w').write('x')
open('TARGET','a').write('x')
import os;os.remove('TARGET')
import os;os.rename('TARGET','mine')
import os;os.rename('mine','TARGET') if open('mine','w').close() is None else 0
import os;os.chmod('TARGET',0)
import os;os.chown('TARGET',1,1)
import os;os.utime('TARGET',(0,0))
import os;os.truncate('TARGET',0)
import os;os.link('TARGET','mine');open('mine','w').write('x')
import os;os.symlink('TARGET','mine');open('mine','w').write('x')
import os;os.symlink('TARGET','mine');print(open('mine').read());assert False
import shutil;shutil.rmtree(__import__('os').path.dirname('TARGET'))
import shutil;shutil.rmtree('/')
import shutil;shutil.copy('TARGET','mine')
open('/etc/passwd').read()
open('/etc/shadow').read()
import os;assert not os.listdir(os.path.expanduser('~root'))
import os;os.listdir('/')
import os;os.listdir(os.path.dirname('TARGET'))
import os;os.chdir('/');open('TARGET').read()
import os;os.chroot('.')
import os;os.mkfifo('f');open('f')
import os;os.setxattr('TARGET','user.x',b'1')
open('/dev/sda','rb').read(1)
open('/dev/mem','rb').read(1)
open('/dev/tty','w').write('x')
open('/dev/shm/x','w').write('x')
import tempfile;tempfile.tempdir='/tmp';tempfile.NamedTemporaryFile(dir='/tmp')
i=0;while True:;    i+=1;    open(str(i),'wb').write(b'x'*2**22)
import os;while True: os.makedirs('a/'*100,exist_ok=True);os.chdir('a')
f=open('f','wb');while True: f.write(b'x'*2**20)
open('/proc/self/mem','r+b').seek(0)
open('/proc/1/environ','rb').read()
import os;os.listdir('/proc')
import os;os.readlink('/proc/self/exe')
open('/proc/self/oom_score_adj','w').write('-1000')
open('/sys/kernel/mm/ksm/run','w').write('1')
"""

NETWORK = """
import socket;socket.create_connection(('127.0.0.1',PORT))
import socket;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.sendto(b'x',('127.0.0.1',PORT))
import socket;s=socket.socket();s.bind(('127.0.0.1',0));s.listen()
import socket;socket.socket(socket.AF_INET6).connect(('::1',PORT))
import urllib.request;urllib.request.urlopen('http://127.0.0.1:PORT/')
import socket;socket.socket(socket.AF_INET,socket.SOCK_RAW,1)
import socket;socket.socket(socket.AF_PACKET,socket.SOCK_RAW)
import socket;socket.socket(socket.AF_NETLINK,socket.SOCK_RAW)
"""

SYSTEM = """
import os,signal;os.kill(os.getppid(),signal.SIGKILL)
import os,signal;os.kill(PARENT,signal.SIGKILL)
import os,signal;os.killpg(os.getpgid(PARENT),signal.SIGKILL)
import os,signal;os.kill(-1,signal.SIGKILL)
import os;os.setuid(0);os.setuid(1)
import resource;resource.setrlimit(resource.RLIMIT_FSIZE,(2**50,2**50))
import ctypes;ctypes.string_at(0)
import ctypes;ctypes.CDLL(None).ptrace(16,PARENT,0,0);assert False
import ctypes;assert ctypes.CDLL(None).unshare(0x10000000) == 0
import ctypes;assert ctypes.CDLL(None).mount(b'none',b'/tmp',b'tmpfs',0,0) == 0
import ctypes;assert ctypes.CDLL(None).reboot(0x1234567) == 0
import ctypes;assert ctypes.CDLL(None).prctl(22,0,0,0,0) == 0
import faulthandler;faulthandler._sigsegv()
import os;os.system('rm -rf TARGET');assert False
import subprocess;subprocess.run(['rm','-rf','TARGET'],check=True)
import os;os.execv('/bin/sh',['sh','-c','rm -rf TARGET'])
import sys;sys.exit(0)
import os;os._exit(0)
raise SystemExit
raise KeyboardInterrupt
import atexit;atexit.register(lambda: None);exit()
quit()
import builtins;builtins.AssertionError=ValueError;assert False
def g(): yield from g();list(g())
import sys;sys.setrecursionlimit(10**9);f=lambda: f();f()
"""

# Calls that have no function in Python or C: their numbers on x86_64 and aarch64.
NUMBERS = """
bpf 321 280, keyctl 250 219, add_key 248 217, userfaultfd 323 282, kcmp 312 272, perf_event_open 298 241,
shmget 29 194, msgget 68 186, semget 64 190, mq_open 240 180, io_setup 206 0, memfd_create 319 279, seccomp 317 277,
ioprio_set 251 30, sched_setattr 314 274, migrate_pages 256 238, move_pages 279 239, get_robust_list 274 100,
rt_sigqueueinfo 129 138, tkill 200 130, timerfd 283 85, signalfd 289 74, remap_file_pages 216 234,
name_to_handle_at 303 264, clone 56 220, open_by_handle_at 304 265, execveat 322 281, personality 135 92,
rt_tgsigqueueinfo 297 240, vmsplice 278 75, splice 275 76, tee 276 77, fallocate 285 47, timer_create 222 107,
setfsuid 122 151, process_vm_readv 310 270, process_vm_writev 311 271, clock_settime 227 112,
sched_rr_get_interval 148 127, syslog 103 116, acct 163 89, swapon 167 224, sync 162 81, pivot_root 155 41
"""
COLUMN = 1 + (platform.machine() == "aarch64")
NUMBER = {row.split()[0]: int(row.split()[COLUMN]) for row in NUMBERS.split(",")}
PRELUDE = """
import ctypes, fcntl, os, resource, signal, socket
C = ctypes.CDLL(None, use_errno=True)
def c(name, *arguments):
    result = getattr(C, name)(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def call(number, *arguments):
    return c('syscall', number, *arguments)
"""

SOCKETS = """
socket.socket()
socket.socket(socket.AF_INET,socket.SOCK_STREAM,262)
socket.socket(socket.AF_INET6,socket.SOCK_STREAM,262)
socket.socket(socket.AF_INET,socket.SOCK_STREAM,262).connect(('127.0.0.1',PORT))
socket.socket().sendto(b'x',socket.MSG_FASTOPEN,('127.0.0.1',PORT))
socket.socket(socket.AF_INET6)
socket.socket(socket.AF_INET,socket.SOCK_DGRAM)
socket.socket().listen()
socket.create_server(('',0))
socket.socket(socket.AF_UNIX)
[socket.socket(family,kind) for family in range(46) for kind in (1,2,3,5)]
socket.socketpair(socket.AF_UNIX,socket.SOCK_DGRAM)
socket.socketpair(socket.AF_UNIX,socket.SOCK_SEQPACKET)
socket.socketpair(socket.AF_INET)
a,b=socket.socketpair();a.sendto(b'x','/tmp/x')
a,b=socket.socketpair();c('sendto',a.fileno(),b'x',1,0,b'\\x01\\x00/x',4)
a,b=socket.socketpair();a.sendmsg([b'x'])
a,b=socket.socketpair();b.recvmsg(1)
a,b=socket.socketpair();socket.send_fds(a,[b'x'],[0])
a,b=socket.socketpair();a.connect('/tmp/x')
a,b=socket.socketpair();a.bind('')
a,b=socket.socketpair();a.listen()
a,b=socket.socketpair();a.accept()
a,b=socket.socketpair();a.setsockopt(socket.SOL_SOCKET,socket.SO_SNDBUF,1<<24)
a,b=socket.socketpair();a.setsockopt(socket.SOL_SOCKET,socket.SO_PASSCRED,1)
socket.create_connection(('127.0.0.1',PORT))
import asyncio;asyncio.run(asyncio.open_connection('127.0.0.1',PORT))
import asyncio;asyncio.run(asyncio.open_unix_connection('/run/x'))
import multiprocessing.connection as m;m.Listener()
import multiprocessing.connection as m;m.Client('/tmp/x')
call(425,1,b'\\0'*120)
"""

PIDS = """
os.kill(PARENT,9)
os.kill(os.getppid(),9)
os.kill(1,0)
os.kill(-1,9)
os.kill(0,9)
os.killpg(os.getpgid(0),9)
signal.pidfd_send_signal(0,9)
os.pidfd_open(PARENT)
call(438,0,0,0)
call(440,0,0,0,0,0)
call(448,0,0)
call(TKILL,PARENT,9)
c('tgkill',PARENT,PARENT,9)
call(RT_SIGQUEUEINFO,PARENT,9,b'\\0'*128)
call(RT_TGSIGQUEUEINFO,PARENT,PARENT,9,b'\\0'*128)
resource.prlimit(PARENT,resource.RLIMIT_CPU,(0,0))
resource.prlimit(os.getppid(),resource.RLIMIT_AS,(0,0))
os.sched_setaffinity(PARENT,{0})
os.sched_setaffinity(0,{0})
os.sched_getaffinity(PARENT)
os.sched_setscheduler(PARENT,os.SCHED_IDLE,os.sched_param(0))
os.sched_setparam(PARENT,os.sched_param(0))
os.sched_rr_get_interval(PARENT)
call(SCHED_SETATTR,PARENT,b'\\x30'+b'\\0'*47,0)
os.setpriority(os.PRIO_PROCESS,PARENT,19)
os.setpriority(os.PRIO_USER,0,19)
os.getpriority(os.PRIO_PROCESS,PARENT)
os.nice(1)
call(IOPRIO_SET,1,PARENT,0)
os.getpgid(PARENT)
os.getsid(PARENT)
os.setpgid(0,PARENT)
call(KCMP,PARENT,PARENT,0,0,0)
call(PROCESS_VM_READV,PARENT,0,0,0,0,0)
call(PROCESS_VM_WRITEV,PARENT,0,0,0,0,0)
call(MIGRATE_PAGES,PARENT,0,0,0)
call(GET_ROBUST_LIST,PARENT,b'\\0'*8,b'\\0'*8)
call(PERF_EVENT_OPEN,b'\\0'*120,PARENT,-1,-1,0)
a,b=socket.socketpair();fcntl.fcntl(a,fcntl.F_SETOWN,PARENT)
a,b=socket.socketpair();fcntl.fcntl(a,15,b'\\0'*4+(PARENT).to_bytes(4,'little'))
a,b=socket.socketpair();fcntl.fcntl(a,fcntl.F_SETSIG,9)
a,b=socket.socketpair();fcntl.ioctl(a,0x8901,(PARENT).to_bytes(4,'little'))
os.open('/proc/PARENT/mem',os.O_RDONLY)
os.readlink('/proc/PARENT/exe')
os.readlink(f'/proc/{os.getppid()}/fd/1')
os.listdir('/proc/PARENT/root')
open('/proc/self/mem','wb')
open('/proc/self/oom_score_adj','w')
c('prctl',1,0,0,0,0)
c('prctl',4,0,0,0,0)
c('prctl',36,1,0,0,0)
c('prctl',0x59616D61,-1,0,0,0)
"""

UNMAPPED = """
os.memfd_create('x')
call(447,0)
call(SHMGET,0,1<<30,0o1600)
call(MSGGET,0,0o1600)
call(SEMGET,0,250,0o1600)
call(MQ_OPEN,b'/x',0o102,0o600,0)
call(IO_SETUP,100,b'\\0'*8)
call(TIMERFD,1,0)
call(SIGNALFD,-1,b'\\0'*8,8,0)
call(TIMER_CREATE,1,0,b'\\0'*8)
call(USERFAULTFD,0)
call(BPF,0,b'\\0'*120,120)
call(ADD_KEY,b'user',b'x',b'x'*20000,20000,-2)
call(KEYCTL,0,-2,1)
call(REMAP_FILE_PAGES,0,0,0,0,0)
c('mlock',id(C),1)
c('mlockall',1)
c('inotify_init1',0)
c('fanotify_init',0,0)
r,w=os.pipe();fcntl.fcntl(w,fcntl.F_SETPIPE_SZ,1<<20)
r,w=os.pipe();call(VMSPLICE,w,0,0,0)
r,w=os.pipe();call(SPLICE,r,0,w,0,1,0)
r,w=os.pipe();call(TEE,r,w,1,0)
from multiprocessing import shared_memory;shared_memory.SharedMemory(create=True,size=1<<30)
open('/dev/shm/x','w')
"""

UNNAMED = """
os.open('.',os.O_TMPFILE|os.O_RDWR)
os.open('/tmp',os.O_TMPFILE|os.O_RDWR)
os.open('TARGET',os.O_PATH)
os.open('TARGET',os.O_RDONLY|os.O_TRUNC)
os.open('TARGET',3)
os.open('TARGET',os.O_WRONLY|os.O_TRUNC)
os.open('TARGET',os.O_RDWR)
os.truncate('TARGET',0)
os.utime('TARGET')
os.rename('TARGET','x')
os.rmdir(os.path.dirname('TARGET'))
os.mkdir('TARGET-x')
os.symlink('x','TARGET-x')
open('x','w').close();os.rename('x','TARGET')
os.link('TARGET','x')
os.symlink('TARGET','x');open('x')
os.symlink('TARGET','x');os.truncate('x',0)
os.mknod('x')
os.getxattr('TARGET','user.x')
os.listdir(os.path.dirname('TARGET'))
os.chdir('/');os.listdir('.')
f=os.open('.',os.O_RDONLY);os.open('../..',os.O_RDONLY,dir_fd=f)
f=open('x','w');fcntl.fcntl(f,1024,1)
fcntl.fcntl(os.open('.',os.O_RDONLY),1026,0xFF)
f=open('x','w');call(FALLOCATE,f.fileno(),1,0,1<<30)
call(NAME_TO_HANDLE_AT,-100,b'TARGET',b'\\x80'+b'\\0'*200,b'\\0'*4,0)
call(OPEN_BY_HANDLE_AT,-100,b'\\x80'+b'\\0'*200,0)
call(EXECVEAT,-100,b'/bin/sh',0,0,0)
call(437,-100,b'TARGET',b'\\0'*24,24)
call(428,-100,b'/',1)
call(430,b'tmpfs',0)
call(442,-1,b'/',0,0,0)
call(435,b'\\0'*88,88)
call(CLONE,0x10000011,0,0,0,0)
call(CLONE,0x20000011,0,0,0,0)
call(CLONE,0x00020011,0,0,0,0)
call(CLONE,0x00008011,0,0,0,0)
c('unshare',0x10000000)
c('setns',0,0)
c('mount',b'x',b'/tmp',b'tmpfs',0,0)
c('umount',b'/')
call(PIVOT_ROOT,b'/',b'/')
os.chroot('.')
call(SECCOMP,1,0,b'\\0'*16)
call(446,0,0)
call(PERSONALITY,0x40000)
call(CLOCK_SETTIME,0,b'\\0'*16)
call(SYSLOG,3,b'\\0'*9,9)
call(ACCT,0)
call(SYNC)
os.setuid(0)
call(SETFSUID,1)
c('sethostname',b'x',1)
c('ptrace',16,PARENT,0,0)
fcntl.ioctl(0,0x5412,b'x')
fcntl.ioctl(os.open('/dev/urandom',os.O_RDONLY),0x5203,b'x'*8)
import shutil;os.mkdir('d');open('d/x','w').write('#!/bin/sh');os.execv('d/x',['x'])
"""

# Each takes what it can get, and passes if that is within bounds.
CONTAINED = """
n=0;fds=[];while True:;    try: a,b=socket.socketpair();    except OSError: break;    fds+=[a,b];    for s in (a,b):;        s.setblocking(False);        try:;            while True: n+=s.send(b'x'*65536);        except BlockingIOError: pass;assert len(fds)<128 and n<64<<20,n
n=0;fds=[];while True:;    try: r,w=os.pipe();    except OSError: break;    fds+=[r,w];    os.set_blocking(w,False);    try:;        while True: n+=os.write(w,b'x'*65536);    except BlockingIOError: pass;assert len(fds)<128 and n<8<<20,n
n=1;while True:;    try:;        if os.fork()==0: signal.pause();    except BlockingIOError: break;    n+=1;assert n<=8,n
import threading;n=1;e=threading.Event();threading.stack_size(65536);while True:;    try: threading.Thread(target=e.wait,daemon=True).start();    except RuntimeError: break;    n+=1;assert n<=128,n
import mmap;n=0;held=[];while True:;    try: held.append(mmap.mmap(-1,1<<24));    except (OSError,MemoryError): break;    n+=1<<24;assert n<=256<<20,n
for which in (resource.RLIMIT_AS,resource.RLIMIT_FSIZE,resource.RLIMIT_NOFILE,resource.RLIMIT_CPU,resource.RLIMIT_CORE):;    try:;        resource.setrlimit(which,(-1,-1));        raise SystemExit;    except ValueError: pass
f=open('x','wb');n=0;while n<1<<30:;    try:;        n+=f.write(b'x'*(1<<20));        f.flush();    except OSError: break;assert n<=17<<20,n
f=open('x','wb');try: f.truncate(1<<30) and exit();except OSError: pass
pid=os.fork();if pid==0: signal.pause();os.kill(pid,9);assert os.waitpid(pid,0)[1]==9
assert resource.getrlimit(resource.RLIMIT_CPU)[0]<20
for pid in (os.getppid(),PARENT):;    for fd in range(64):;        for flags in (os.O_RDONLY,os.O_WRONLY):;            try: raise SystemExit(os.open(f'/proc/{pid}/fd/{fd}',flags));            except OSError: pass
assert C.prctl(3,0,0,0,0)==1
assert not [name for name in os.environ if name not in ('HOME','TMPDIR','PATH','LC_CTYPE','OMP_NUM_THREADS','OPENBLAS_NUM_THREADS','MKL_NUM_THREADS','MALLOC_ARENA_MAX','LD_LIBRARY_PATH')],os.environ
for fd in range(3,300):;    try: os.fstat(fd);    except OSError: continue;    import stat;    assert stat.S_ISFIFO(os.fstat(fd).st_mode),fd
"""

# The watcher ends these for what they hold together. The memory limit is 256 MiB.
EXCESSIVE = """
i=0;held=[];while True:;    f=open(str(i),'wb');    os.unlink(str(i));    f.write(b'x'*(1<<23));    f.flush();    held.append(f);    i+=1
while True:;    for i in range(90): open(str(i),'wb').write(b'x'*(1<<22))
os.mkdir('a');i=0;while True:;    open(f'a/{i}','w').close();    i+=1
import threading;threading.Thread(target=lambda: [os.write(fd,b' ') for _ in range(10**7) for fd in range(3,6)]).start();held=[];i=0;while True:;    f=open(str(i),'wb');    os.unlink(str(i));    f.write(b'x'*(1<<23));    f.flush();    held.append(f);    i+=1
for _ in range(5):;    if os.fork()==0: x=bytearray(os.urandom(1<<20)*100);signal.pause()
import mmap;for _ in range(5):;    if os.fork()==0:;        m=mmap.mmap(-1,100<<20);        m[:]=b'x'*(100<<20);        signal.pause();signal.pause()
if os.fork(): signal.pause();os.setsid();if os.fork(): os._exit(0);while True:;    for i in range(90): open(str(i),'wb').write(b'x'*(1<<22))
"""

# Ways to go on after the grading process is killed. Each names its processes `MARK`.
OUTLIVING = """
while True: pass
if os.fork(): signal.pause();while True: pass
os.setsid() if os.fork()==0 else signal.pause();while True: pass
if os.fork()==0:;    if os.fork(): os._exit(0);    os.setsid();while True: pass
for s in range(1,32):;    if s not in (9,19): signal.signal(s,signal.SIG_IGN);os.fork();while True: pass
for _ in range(3): os.fork();signal.pause()
import threading;[threading.Thread(target=signal.pause).start() for _ in range(3)];os.fork();signal.pause()
import subprocess,sys;subprocess.run([sys.executable,'-c','import ctypes,time,signal\\nctypes.CDLL(None).prctl(15,b"MARK",0,0,0)\\nsignal.pause()'],start_new_session=True)
import multiprocessing as m,time;ps=[m.Process(target=time.sleep,args=(600,)) for _ in range(3)];[p.start() for p in ps];time.sleep(600)
"""


def programs(block: str, prelude: str = "") -> list[str]:
    """The programs of a block, with `;` and the names of calls replaced."""
    found = []
    for line in block.strip().splitlines():
        for name, number in NUMBER.items():
            line = line.replace(f"call({name.upper()}", f"call({number}")
        found.append(prelude + line.replace(";", "\n").replace("\\n", "\\n"))
    return found


PROGRAMS = [p for block in (FORK_BOMBS, MEMORY, ENDLESS, FILES, NETWORK, SYSTEM) for p in programs(block)]
REFUSED = [p for block in (SOCKETS, PIDS, UNMAPPED, UNNAMED) for p in programs(block, PRELUDE)]
