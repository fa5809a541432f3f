"""Scripts and modules in processes forked from one that has imported the libraries: a start takes a second, not ten.

Each is a process of its own, to be killed, starved of disk, or made one of several ranks.
"""

import multiprocessing
import os
import resource
import runpy
import socket
import sys
import threading
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tqdm import tqdm

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["forks_preloaded"])
HERE = Path(__file__).parent
FOLDERS = [HERE, HERE / "runs", HERE / "trainer", HERE.parent]


class Forked:
    """`python PROGRAM.py ARGUMENTS`, or `python -m PROGRAM ARGUMENTS`.

    Args:
        program: Path of a script, or name of a module.
        arguments: Its arguments.
        size: Bytes that a file may have: writes fail in the middle, as on a full disk.
        environment: More variables.
    """

    def __init__(self, program: str | Path, *arguments: object, size: int | None = None, **environment: str):
        # The server that forks starts with the first process, and finds the tests' modules by this path.
        folders = [*map(str, FOLDERS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, folders)))
        ours, theirs = CONTEXT.Pipe(duplex=False)
        words = [str(program), *map(str, arguments)]
        target = (words, {**os.environ, **environment}, os.getcwd(), size, theirs)
        self.process = CONTEXT.Process(target=_run, args=target)
        self.process.start()
        theirs.close()
        self.output = ""
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def kill(self) -> bool:
        """Kill it, and tell whether it was still at work."""
        self.process.kill()
        return self.wait() == -9

    def wait(self) -> int:
        """Its exit code; what it printed is then in `output`."""
        self.process.join()
        self._reader.join()
        return self.process.exitcode

    def _read(self, end: Connection) -> None:
        with open(os.dup(end.fileno()), "rb") as printed:
            self.output = printed.read().decode(errors="replace")
        end.close()


def run(
    program: str | Path, *arguments: object, processes: int = 1, size: int | None = None, **environment: str
) -> tuple[int, str]:
    """Run to the end, on several ranks as `torchrun` does: the first exit code that is not 0, and the output."""
    ranks: list[dict[str, str]] = [{}]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        all_of_them = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        all_of_them |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        ranks = [{**all_of_them, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    forked = [Forked(program, *arguments, size=size, **{**environment, **rank}) for rank in ranks]
    code, running = 0, [one.process for one in forked]
    while running:
        wait([process.sentinel for process in running])
        for process in [process for process in running if not process.is_alive()]:
            running.remove(process)
            if process.exitcode and not code:
                code = process.exitcode
    for one in forked:
        one.wait()
    return code, "".join(one.output for one in forked)


def _run(words: list[str], environment: dict[str, str], folder: str, size: int | None, output: Connection) -> None:
    """The target of a process."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    tqdm.set_lock(threading.RLock())  # the default is shared by all that are forked: a kill could leave it locked
    sys.argv = words
    if words[0].endswith(".py"):
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
    else:
        sys.path.insert(0, folder)
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
