"""A hundred programs that a grader of code must survive: each in one line, `;` standing for a line break.

`TARGET` is a file outside the scratch folder, `PORT` a port that listens on this machine.
"""

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

PROGRAMS = [
    line.replace(";", "\n").replace("\\n", "\\n")
    for block in (FORK_BOMBS, MEMORY, ENDLESS, FILES, NETWORK, SYSTEM)
    for line in block.strip().splitlines()
]
