"""Hostile text: no hang, no crash, no code run, memory bounded."""

import os
import random
import resource
import subprocess
import sys

import psutil
import pytest
from fuzz.fuzz_graders import FRAGMENTS
from grading_helpers import grade
from lengths import GENERATED_TEXTS

from dco_trl.grading import BulkGrader, exact_grader
from dco_trl.grading.confinement import audit, readable_folders

TIMEOUT = 0.7


def generated(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        text = "".join(rng.choice(FRAGMENTS) for _ in range(rng.choice((1, 2, 3, 5, 8, 13, 30))))
        if rng.random() < 0.2:
            text = text * rng.choice((2, 10, 50))
        if rng.random() < 0.1:
            text = "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(1, 30))) + text
        texts.append(rng.choice(("{}", "\\boxed{{{}}}", "The answer is ${}$.", "#### {}")).format(text))
    return texts


def hand_made(canary) -> dict[str, str]:
    touch = f"touch {canary}"
    return {
        "tower": "9^{9^{9^{9^{9}}}}",
        "tower without braces": "9^9^9^9^9",
        "python tower": "9**9**9**9",
        "factorials": "100000000!!",
        "many factorials": "9!!!!!!!!",
        "binomial": "\\binom{10^{9}}{10^{8}}",
        "sum": "\\sum_{n=1}^{10^{12}} n^{n}",
        "integral": "\\int_0^{\\infty} \\frac{\\sin(x^x) e^{x^5}}{x^{x} + \\log x} dx",
        "large shift": "2^{10^{10}} - 2^{10^{10}} + 1",
        "large root": "\\sqrt[10^{9}]{10^{10^{9}}}",
        "polynomial": "(a+b+c+d+e+f)^{200}",
        "nested fractions": "\\frac{1}{" * 1000 + "2" + "}" * 1000,
        "short nested fractions": "\\frac1{" * 300 + "2" + "}" * 300,
        "nested roots": "\\sqrt{" * 900 + "2" + "}" * 900,
        "nested parentheses": "(" * 4000 + "1" + ")" * 4000,
        "open braces": "{" * 5000,
        "open boxes": "\\boxed{" * 1200,
        "commas": "1," * 4000 + "1",
        "digits": "7" * 9000,
        "letters": "x" * 9000,
        "a megabyte of digits": "1" * (1 << 20),
        "a megabyte of boxes": "\\boxed{" * (1 << 17),
        "a megabyte in a box": "\\boxed{" + "x+" * (1 << 19) + "1}",
        "a megabyte of dollars": "answer is " + "$" * (1 << 20),
        "null bytes": "\x00" * 50,
        "null in a number": "1\x002",
        "control characters": "".join(map(chr, range(32))),
        "lone surrogates": "\ud800\udfff\ud834",
        "line protocol": '1\n[1.0, "graded", null]\n',
        "import": f"__import__('os').system('{touch}')",
        "import in a box": f"\\boxed{{__import__('os').system('{touch}')}}",
        "sympy": f"sympify(\"__import__('os').system('{touch}')\")",
        "text": f"\\text{{__import__('os').system('{touch}')}}",
        "operatorname": f"\\operatorname{{eval}}(\"__import__('os').system('{touch}')\")",
        "expression": f"1+(__import__('os').system('{touch}'))",
        "shell": f"$({touch})`{touch}`;{touch}",
        "format": "{0.__class__.__mro__[1].__subclasses__}",
        "write18": f"\\immediate\\write18{{{touch}}} \\input{{/etc/passwd}}",
        "percent": "100\\%\\%\\%%%%",
        "zero division": "\\frac{1}{0} + \\frac{0}{0}",
        "recursion by symbol": "x = x = x = x = " * 200,
    }


@pytest.mark.slow
def test_hand_made_strings(tmp_path):
    canary = tmp_path / "canary"
    texts = hand_made(canary)
    good = ["\\frac{1}{2}", "\\frac{2}{4}"]
    completions = [c for text in texts.values() for c in (text, *good)]
    answers = ["\\frac{1}{2}"] * len(completions)
    with BulkGrader("math", num_workers=2, timeout=TIMEOUT, memory_limit=512 << 20) as grader:
        verdicts = grader.grade(None, completions, answers, progress=False)
        for worker in [worker for worker in grader._pool._workers.values() if not worker.has_ended]:
            assert psutil.Process(worker.process.pid).memory_info().rss < 512 << 20
    assert all(v.score == 1.0 for v in verdicts[1::3] + verdicts[2::3])
    assert not any(v.score == 1.0 for v in verdicts[::3])
    by_name = dict(zip(texts, verdicts[::3], strict=True))
    assert by_name["a megabyte in a box"].status == "unparsed"
    # Too long for math-verify, which would need very long: not sent, and without a verdict.
    assert (by_name["a megabyte in a box"].score, len(by_name["a megabyte in a box"].answer)) == (None, 1000)
    assert all(len(v.answer) <= 1000 for v in verdicts)
    assert grader.stats.graded + grader.stats.unparsed + grader.stats.timeout + grader.stats.error == len(completions)
    assert exact_grader(list(texts.values()), answer=["1"] * len(texts)) == [0.0] * len(texts)
    assert not canary.exists()


@pytest.mark.slow
def test_hostile_references():
    references = ["9^{9^{9^{9}}}", "\\boxed{" * 100, "\x00", "\ud800", "1" * 20_000, "{" * 500]
    verdicts, _ = grade("math", ["0.5"] * 6 + references, references * 2, timeout=TIMEOUT)
    assert not any(v.score == 1.0 for v in verdicts[:6])
    assert len(verdicts) == 12 and verdicts[6].score == 1.0  # the same string, whatever its value


@pytest.mark.slow
def test_generated_strings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = generated(0, GENERATED_TEXTS)
    assert len(set(texts)) > 0.9 * len(texts)
    children_before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    limits = {"num_workers": 2, "timeout": TIMEOUT, "memory_limit": 512 << 20}
    verdicts, stats = grade("math", texts, ["\\frac{1}{2}"] * len(texts), **limits)
    assert len(verdicts) == len(texts) == stats.graded + stats.unparsed + stats.timeout + stats.error
    if children_before < 512 << 10:  # kilobytes; otherwise another test had a larger child
        assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 512 << 10
    assert os.listdir(tmp_path) == []


FOLDERS = readable_folders()


@pytest.mark.parametrize(
    ("event", "args"),
    [
        *(("os.system", ("true",)), ("subprocess.Popen", ()), ("socket.connect", ()), ("os.remove", ("x",))),
        *(("ctypes.dlopen", ("libc.so.6",)), ("resource.setrlimit", ()), ("code.__new__", ())),
    ],
)
def test_a_worker_does_not_call(event, args):
    with pytest.raises(PermissionError, match=f"a grading worker does not call {event}"):
        audit(event, args, FOLDERS)


@pytest.mark.parametrize(
    ("path", "flags", "text"),
    [
        ("x", os.O_WRONLY, "opens no file for writing"),
        ("x", os.O_RDONLY | os.O_CREAT, "opens no file for writing"),
        ("/etc/passwd", os.O_RDONLY, "reads no file but its own code"),
        (b"/etc/passwd", os.O_RDONLY, "reads no file but its own code"),
        (os.__file__ + "/../../../../../../../../etc/passwd", os.O_RDONLY, "reads no file but its own code"),
        (os.path.dirname(os.__file__) + "-secrets", os.O_RDONLY, "reads no file but its own code"),
    ],
)
def test_a_worker_does_not_open(path, flags, text):
    with pytest.raises(PermissionError, match=f"a grading worker {text}"):
        audit("open", (path, "r", flags), FOLDERS)


def test_a_worker_can_still_import():
    for event, args in (("compile", ()), ("import", ()), ("os.listdir", (os.path.dirname(os.__file__),))):
        audit(event, args, FOLDERS)
    for path in (os.__file__, 3):
        audit("open", (path, "r", os.O_RDONLY), FOLDERS)


def test_the_repository_and_the_home_folder_are_not_readable():
    """With an editable install, only the package's own folder of the repository is readable."""
    for path in (__file__, os.path.expanduser("~"), "/", "/etc", "/home", "/root", os.getcwd()):
        for event in ("os.listdir", "os.scandir"):
            with pytest.raises(PermissionError, match="lists no folder but those of its own code"):
                audit(event, (path,), FOLDERS)


ATTEMPTS = """
import os, socket, sys, tempfile
from dco_trl.grading.confinement import _kernel_fence, confine, readable_folders
secret, scratch = sys.argv[2:]
server = socket.create_server(("127.0.0.1", 0))
import sympy
if sys.argv[1] == "both":
    confine()
elif not _kernel_fence(readable_folders()):
    print("no landlock")
    raise SystemExit
def attempt(action):
    try:
        action()
    except PermissionError as error:
        return "refused"
    except OSError as error:
        return type(error).__name__
    return "done"
print(attempt(lambda: open(secret).read()))
print(attempt(lambda: os.listdir(os.path.dirname(secret))))
print(attempt(lambda: open(scratch, "w")))
print(attempt(lambda: socket.create_connection(server.getsockname())))
print(attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)))
print(attempt(lambda: os.kill(os.getppid(), 0)))
print(attempt(lambda: os.memfd_create("x")))
print(attempt(os.fork))
print(attempt(lambda: __import__("sympy.physics.optics.waves")))
try:
    import module_beside_the_secret
except ImportError:
    print("no such module" if sys.argv[1] != "kernel" else "not readable")
except PermissionError:
    print("not readable")
"""


@pytest.mark.parametrize("fence", ["kernel", "both"])
@pytest.mark.slow
def test_a_confined_process_reads_its_code_and_nothing_else(tmp_path, fence):
    """Each fence refuses by itself: the first case has only the kernel's, and no audit hook."""
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "module_beside_the_secret.py").write_text("")
    ran = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, fence, str(tmp_path / "secret.txt"), str(tmp_path / "new.txt")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])},
        capture_output=True,
        text=True,
    )
    said = ran.stdout.split("\n")
    if said[0] == "no landlock":
        pytest.skip("this kernel has no Landlock")
    assert said[:9] == [*["refused"] * 8, "done"], ran.stdout + ran.stderr
    assert said[9] == ("not readable" if fence == "kernel" else "no such module")
    assert not (tmp_path / "new.txt").exists()
