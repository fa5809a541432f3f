"""What runs inside the confinement: the program, then the verdict. Imports nothing of this package."""

import io
import json
import os
import sys

_FILE_BYTES = 16 << 20


def main() -> None:
    with os.fdopen(os.dup(0), "rb") as pipe:
        request = json.loads(pipe.read().decode("utf-8", "surrogatepass"))
    verdict_fd = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    give_up_privileges()
    status, detail = "passed", ""
    try:
        code = compile(request["program"], "program.py", "exec")
        for given, expected in request["cases"] or [(None, None)]:
            sys.stdin = io.StringIO(given or "")
            sys.stdout = output = io.StringIO()
            exec_globals = {"__name__": "__main__", "__builtins__": __builtins__}
            try:
                exec(code, exec_globals)
            except SystemExit as end:
                # A program that reads and prints may end itself; one with tests has then not run them.
                if expected is None or end.code not in (None, 0):
                    raise
            if expected is not None and not same_output(output.getvalue(), expected):
                status, detail = "failed", f"expected {expected[:80]!r}, got {output.getvalue()[:80]!r}"
                break
    except BaseException as error:  # SystemExit, KeyboardInterrupt and RecursionError are failures of the program
        status, detail = "failed", f"{type(error).__name__}: {error}"[:200]
    verdict = json.dumps({"word": request["word"], "status": status, "detail": detail})
    os.write(verdict_fd, verdict.encode() + b"\n")
    os._exit(0)  # without the program's exit handlers and threads


def give_up_privileges() -> None:
    """Limit the size of a file; and of a superuser keep nothing but the name."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
    if os.geteuid() == 0 and sys.platform == "linux":
        import ctypes

        # capset(header, data): version 3 of the interface, this process, and three empty sets of 64 bits.
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, data):
            raise OSError(
                ctypes.get_errno(), "capset"
            )  # which nobody sees: there is no verdict, and the program fails


def same_output(got: str, expected: str) -> bool:
    """Equal line by line, trailing white space and empty lines at the end apart."""
    got_lines, expected_lines = ([line.rstrip() for line in text.rstrip().splitlines()] for text in (got, expected))
    return got_lines == expected_lines


main()
