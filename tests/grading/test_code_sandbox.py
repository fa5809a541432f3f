"""Programs are confined: two hundred calls are refused, limits hold, nothing outlives the grading process."""

import fcntl
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from grading_helpers import has_ended, needs_confinement, until
from hostile_programs import CONTAINED, EXCESSIVE, NUMBER, OUTLIVING, PRELUDE, PROGRAMS, REFUSED, programs

from dco_trl.grading import GraderError, code_grader, code_sandbox
from dco_trl.grading.code_sandbox import Outcome, Program, Watcher, run_program, unconfinable

pytestmark = needs_confinement
# What a refused call says: EPERM, EACCES, EXDEV (a link across folders) or ENOSYS.
REFUSALS = ("PermissionError", "OSError: [Errno 18]", "OSError: [Errno 38]")
MEMORY = 1 << 28
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}


def fill_in(program: str, target: Path, port: int = 22) -> str:
    for name, value in (("TARGET", str(target)), ("PORT", str(port)), ("PARENT", str(os.getpid()))):
        program = program.replace(name, value)
    return program


def run_all(texts: list[str], target: Path) -> dict[str, Outcome]:
    with Watcher(10.0, MEMORY) as watcher:
        return {text: watcher.run(Program(fill_in(text, target))) for text in texts}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    target = tmp_path_factory.mktemp("outside") / "file"
    target.write_text("mine")
    found = run_all(REFUSED + programs(CONTAINED, PRELUDE) + programs(EXCESSIVE, PRELUDE), target)
    assert target.read_text() == "mine" and os.listdir(target.parent) == ["file"]
    return found


def test_there_are_enough_programs():
    assert len(set(PROGRAMS)) >= 100 and len(set(REFUSED + programs(CONTAINED) + programs(EXCESSIVE))) >= 160


@pytest.mark.parametrize("program", REFUSED, ids=lambda program: program[len(PRELUDE) :])
def test_refused(program, outcomes):
    assert outcomes[program].status == "failed" and outcomes[program].detail.startswith(REFUSALS), outcomes[program]


@pytest.mark.parametrize("program", programs(CONTAINED, PRELUDE), ids=lambda program: program[len(PRELUDE) :])
def test_contained(program, outcomes):
    assert outcomes[program] == Outcome("passed")


@pytest.mark.parametrize("program", programs(EXCESSIVE, PRELUDE), ids=lambda program: program[len(PRELUDE) :])
def test_ended_for_what_it_holds(program, outcomes):
    assert outcomes[program].status == "killed" and outcomes[program].detail.startswith("more than ")


def test_every_call_that_is_not_listed_is_refused():
    from dco_trl.grading import seccomp

    column = seccomp._MACHINES[platform.machine()][1]
    listed = set(seccomp._numbers(seccomp._ALLOWED + "," + seccomp._OF_PROCESSES, column))
    listed |= {numbers[column] for numbers, _ in seccomp._conditional(0)} | {n[column] for n in seccomp.GATED.values()}
    # x86_64's 335 and 336 are for the kernel's own probes. It answers them with a signal, before any filter.
    others = sorted(set(range(1100)) - listed - {335, 336})
    assert len(others) > 950
    attempt = f"for n in {others}:\n    C.syscall.restype = ctypes.c_long\n"
    attempt += "    assert C.syscall(n, 0, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() in (1, 38), n"
    assert run_program(PRELUDE + attempt) == Outcome("passed")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86_64's two other ways to call the kernel")
@pytest.mark.parametrize(
    "program",
    [
        "C.syscall(0x40000000 | 39)",  # x32
        # mov eax, 20 (getpid of 32 bits); int 0x80; ret
        "import mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()",
    ],
)
def test_other_numberings_of_calls_end_the_program(program):
    assert run_program(PRELUDE + program) == Outcome("killed", f"by signal {signal.SIGSYS.value}")


@pytest.mark.parametrize(
    "program",
    [
        "import threading\nx = []\nt = threading.Thread(target=x.append, args=(1,))\nt.start()\nt.join()\nassert x",
        "import subprocess, sys\nassert subprocess.check_output([sys.executable, '-c', 'print(1)']) == b'1\\n'",
        "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 1\nassert asyncio.run(f()) == 1",
        "import asyncio\nassert asyncio.run(asyncio.to_thread(abs, -1)) == 1",
        "import multiprocessing as m\nclass A:\n    def __init__(self, x): self.x = x\ndef f(a): return A(a.x + 1)\n"
        "with m.Pool(2) as pool: assert [a.x for a in pool.map(f, map(A, range(9)))] == list(range(1, 10))",
        "from concurrent.futures import ProcessPoolExecutor as P\nwith P(2) as p: assert list(p.map(abs, [0])) == [0]",
        "import multiprocessing as m\nq = m.Queue()\np = m.Process(target=q.put, args=(3,))\np.start()\n"
        "assert q.get() == 3\np.join()\nassert p.exitcode == 0",
        "import multiprocessing as m\ns = m.BoundedSemaphore(2)\nassert s.acquire() and s.acquire(timeout=1)\n"
        "assert not s.acquire(False) and not s.acquire(timeout=0.01)\ns.release()\ns.release()\n"
        "try: s.release()\nexcept ValueError: pass\nelse: raise SystemExit\n"
        "r = m.RLock()\nwith r:\n    with r: pass\n"
        "e, v, b = m.Event(), m.Value('i', 0), m.Barrier(3)\ndef f():\n    b.wait()\n    e.wait()\n"
        "    with v.get_lock(): v.value += 1\nps = [m.Process(target=f) for _ in range(2)]\n[p.start() for p in ps]\n"
        "b.wait()\ne.set()\n[p.join() for p in ps]\nassert v.value == 2 and e.is_set()\n"
        "try: m.RLock().release()\nexcept AssertionError: pass\nelse: raise SystemExit",
        "import pickle\nclass A: pass\nassert type(pickle.loads(pickle.dumps(A()))) is A",
        "import tempfile\nwith tempfile.TemporaryFile('w+') as f: f.write('x'); f.seek(0); assert f.read() == 'x'",
        "import tempfile, os, shutil\nd = tempfile.mkdtemp()\nopen(d + '/a', 'w').write('x')\n"
        "shutil.copyfile(d + '/a', 'b')\nos.rename('b', 'c')\nassert open('c').read() == 'x'\nshutil.rmtree(d)",
        "import sqlite3\nc = sqlite3.connect('x.db')\nc.execute('create table t (a)')\nc.commit()",
        "import os, signal\nx = []\nsignal.signal(signal.SIGUSR1, lambda *_: x.append(1))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\nsignal.raise_signal(signal.SIGUSR1)\nassert x == [1, 1]",
        "import signal\nsignal.signal(signal.SIGALRM, lambda *_: 1 / 0)\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\n"
        "try: signal.pause()\nexcept ZeroDivisionError: pass",
        "import numpy\nassert numpy.linalg.inv(numpy.eye(50)).sum() == 50",
        "import socket\na, b = socket.socketpair()\na.sendall(b'x')\nassert b.recv(1) == b'x'",
        "import os\nassert os.cpu_count() >= 1 and len(os.sched_getaffinity(0)) >= 1 and os.getpgid(0)",
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_STACK, (1 << 26, -1)) if 0 else None\n"
        "import threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 27)\n"
        "def f(n): return n and 1 + f(n - 1)\nt = threading.Thread(target=f, args=(20000,))\nt.start()\nt.join()",
    ],
)  # fmt: skip
def test_what_a_program_may(program):
    assert run_program(program, timeout=30) == Outcome("passed")


def test_an_aborted_program_is_named():
    assert run_program("import os\nos.abort()") == Outcome("killed", "by signal 6")
    assert run_program("import ctypes\nctypes.string_at(0)") == Outcome("killed", "by signal 11")


# ------------------------------------------------------------------ the hundred that run until they are ended


@pytest.mark.slow
def test_hostile_programs_are_contained(tmp_path, monkeypatch):
    target = tmp_path / "precious" / "file"
    target.parent.mkdir()
    target.write_text("mine")
    before = target.stat()
    scratches = tmp_path / "scratches"  # separate, because other tests run programs too
    scratches.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratches))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with socket.create_server(("127.0.0.1", 0)) as server, datagrams:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        datagrams.settimeout(0.1)
        with ThreadPoolExecutor(4) as executor:
            run = lambda program: run_program(fill_in(program, target, port), timeout=1.0, memory_limit=MEMORY)  # noqa: E731
            outcomes = list(executor.map(run, PROGRAMS))
        with pytest.raises(TimeoutError):
            server.accept()
        with pytest.raises(TimeoutError):
            datagrams.recv(1)
    after = target.stat()
    assert target.read_text() == "mine"
    for kept in ("st_mode", "st_mtime_ns", "st_uid", "st_nlink"):
        assert getattr(before, kept) == getattr(after, kept)
    assert not list(scratches.iterdir())
    opened = [o for program, o in zip(PROGRAMS, outcomes, strict=True) if program.startswith("open('TARGET'")]
    assert len(opened) == 3 and all(o.detail.startswith("PermissionError") for o in opened)


# ------------------------------------------------------------------ the end of the grading process


def named(mark: str) -> list[int]:
    found = psutil.process_iter(["name", "status"])
    return [p.pid for p in found if p.info["name"] == mark and p.info["status"] != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", range(len(OUTLIVING.strip().splitlines())))
def test_nothing_outlives_the_grading_process(number, tmp_path):
    mark = f"mark-{number}-{os.getpid()}"[:15]
    program = f"{PRELUDE}c('prctl', 15, b'{mark}', 0, 0, 0)\n" + programs(OUTLIVING)[number].replace("MARK", mark)
    code = f"from dco_trl.grading.code_sandbox import run_program\nrun_program({program!r}, timeout=600)"
    parent = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT | {"TMPDIR": str(tmp_path)})
    try:
        until(lambda: named(mark))
        time.sleep(0.3)
        assert os.listdir(tmp_path) != []
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not named(mark) and not os.listdir(tmp_path))


def test_stale_folders_go_and_those_in_use_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("dco-trl-code-stale", "dco-trl-code-used", "other"):
        (tmp_path / name / "deep" / "er").mkdir(parents=True)
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / "dco-trl-code-new").mkdir()
    used = os.open(tmp_path / "dco-trl-code-used", os.O_RDONLY)
    fcntl.flock(used, fcntl.LOCK_EX)
    assert run_program("x = 1") == Outcome("passed")
    os.close(used)
    assert sorted(os.listdir(tmp_path)) == ["dco-trl-code-new", "dco-trl-code-used", "other"]


# ------------------------------------------------------------------ where the kernel or an outer sandbox gives less

# Refuses some system calls, then runs a program.
OUTER = """
import sys
from dco_trl.grading import seccomp
numbers = [int(n) for n in sys.argv[1].split(",")]
program = [*seccomp._check_machine(seccomp._MACHINES[seccomp.platform.machine()][0])]
for number in numbers:
    program += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050001)]
seccomp._install([*program, (0x06, 0, 0, 0x7FFF0000)], 0)
from dco_trl.grading.code_sandbox import run_program
print(run_program("open('ran', 'w')"))
"""
DOCKER = "kcmp bpf keyctl add_key userfaultfd perf_event_open name_to_handle_at open_by_handle_at acct swapon".split()


def under(refused: list[int], **options) -> subprocess.CompletedProcess:
    command = [options.pop("python", sys.executable), "-c", OUTER, ",".join(map(str, refused))]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, **options)


def test_it_works_under_what_docker_refuses():
    # And unshare, setns, mount, umount2, pivot_root, chroot, clone3, io_uring, pidfd_getfd, mount_setattr.
    more = [272, 308, 165, 166, 155, 161] if platform.machine() == "x86_64" else [97, 268, 40, 39, 41, 51]
    done = under([*(NUMBER[name] for name in DOCKER), *more, 435, 425, 426, 427, 438, 442])
    assert done.stdout == "Outcome(status='passed', detail='')\n", done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="is run by an ordinary user, who is tested by all the others")
def test_it_works_for_an_ordinary_user():
    python = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    if not os.access(python, os.X_OK):
        pytest.skip(f"no {python}, which other users may run")
    done = under([NUMBER["bpf"]], python=python, user=65534, group=65534, extra_groups=[], cwd="/")
    assert done.stdout == "Outcome(status='passed', detail='')\n", done.stderr


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ((126, 91), "the kernel does not confine them: [Errno 1] its capabilities cannot be given up"),
        ((444, 444), "this kernel offers no Landlock, which Linux 5.13 brought"),
        ((446, 446), "the kernel does not confine them: [Errno 1] landlock: Operation not permitted"),
    ],
)  # fmt: skip
def test_where_something_is_missing_no_program_runs(refused, message):
    done = under([refused[platform.machine() == "aarch64"]])
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"dco_trl.grading.verdict.GraderError: grader 'code' runs the model's programs, and {message}"
    )
    assert last.endswith("`code_grader(…, unsafe=True)`") and "Linux 5.13 or newer" in last and done.stdout == ""


def test_the_files_of_landlocks_first_version():
    """Linux 5.13 to 6.1: Landlock does not guard against emptying a file, so the filter refuses it."""
    code = (
        "import os, sys\nfrom dco_trl.grading import landlock, seccomp\nlandlock.landlock_version = lambda: 1\n"
        "landlock.restrict_files([sys.prefix, sys.base_prefix])\nseccomp.allow_by_list(processes=False)\n"
        "def attempt(f, *a):\n    try: f(*a)\n    except OSError as e: print(e.errno)\n    else: print('done')\n"
        "t = sys.argv[1]\nattempt(os.truncate, t, 0)\nattempt(os.open, t, os.O_TRUNC)\nattempt(open, t, 'w')\n"
        "attempt(open, t)\nattempt(os.rename, t, t + 'x')\nattempt(os.link, t, t + 'x')"
    )
    with tempfile.NamedTemporaryFile() as target:
        target.write(b"mine")
        target.flush()
        command = [sys.executable, "-c", code, target.name]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.stdout.split() == ["1", "1", "13", "13", "13", "13"], done.stdout + done.stderr
        assert Path(target.name).read_text() == "mine"


@pytest.mark.parametrize(
    ("patched", "value", "message"),
    [
        ("landlock_version", lambda: 0, "this kernel offers no Landlock, which Linux 5.13 brought and `lsm=landlock`"),
        ("unsupported", lambda: "no filter of system calls is written for the processor 'riscv64'", "'riscv64'"),
        ("_CHILDREN", "/proc/none", "which processes descend from which: it has no /proc/none"),
        ("sys", type("Mac", (), {"platform": "darwin"}), "only Linux confines them, and this is darwin"),
    ],
)
def test_a_platform_that_cannot_confine_is_refused_unless_told_otherwise(patched, value, message, monkeypatch):
    unconfinable.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(code_sandbox, patched, value)
        text = f"runs the model's programs, and .*{message}.*`code_grader.*unsafe=True"
        with pytest.raises(GraderError, match=text):
            code_grader(["x = 1"], test_list=[["assert x"]])
        with pytest.raises(GraderError, match=message):
            run_program("x = 1")
    unconfinable.cache_clear()


@pytest.mark.slow
def test_unconfined_where_told():
    assert code_grader(["x = 1", "x = 0"], test_list=[["assert x"]] * 2, unsafe=True) == [1.0, 0.0]
    assert run_program("while True: pass", timeout=0.5, unsafe=True).status == "timeout"
    assert run_program("import socket\nsocket.socket()", unsafe=True) == Outcome("passed")
    mark = f"free-{os.getpid()}"
    program = f"import os\n{PRELUDE}c('prctl', 15, b'{mark}', 0, 0, 0)\nos.fork()\nos.fork()\nwhile True: pass"
    assert run_program(program, timeout=0.5, unsafe=True).status == "timeout"
    assert not named(mark)


def test_a_watcher_that_does_not_start_is_no_wrong_program(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Watcher() as watcher, pytest.raises(GraderError, match="the process that watches programs did not start"):
        watcher.run(Program("x = 1"))


def test_a_limit_without_end():
    assert run_program("x = 1", timeout=float("inf"), memory_limit=1 << 40) == Outcome("passed")


def test_a_watcher_outlasts_what_a_cluster_sends_to_a_job():
    with Watcher(60.0) as watcher, ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(watcher.run, Program("import time\ntime.sleep(1)"))
        until(lambda: watcher._process and psutil.Process(watcher._process.pid).children())
        for sent in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            watcher._process.send_signal(sent)
        assert waiting.result() == Outcome("passed")


def test_a_watcher_that_is_killed_costs_one_program():
    with Watcher(60.0) as watcher:
        assert watcher.run(Program("x = 1")) == Outcome("passed")
        with ThreadPoolExecutor(1) as executor:
            waiting = executor.submit(watcher.run, Program("while True: pass"))
            time.sleep(0.3)
            child = psutil.Process(watcher._process.pid).children()
            watcher._process.kill()
            assert waiting.result() == Outcome("killed", "with the process that watches it")
        until(lambda: all(has_ended(process.pid) for process in child))
        assert watcher.run(Program("x = 1")) == Outcome("passed")
