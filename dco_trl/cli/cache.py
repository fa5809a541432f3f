"""The user's cache folder, and what is remembered there of the commands: help pages that take seconds to make."""

import hashlib
import io
import os
import shutil
import sys
from contextlib import redirect_stdout, suppress
from importlib.metadata import version
from pathlib import Path

# What the flags of `dco-trl train` are made of, in this package and outside.
_FILES = ("cli/train.py", "trainer/dco_config.py", "trainer/cot_config.py")
_PACKAGES = ("trl", "transformers", "accelerate")


def cache_folder() -> Path:
    """Where the commands keep what may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dco-trl"


def print_training_help(command: str) -> None:
    """Print the help of `dco-trl train` or `dco-trl train-cot`.

    It lists every argument of TRL's and Transformers' configurations, which have to be imported to make it. So it is
    made once for each set of versions and width of the terminal.
    """
    package = Path(__file__).resolve().parents[1]
    of = [command, sys.version, shutil.get_terminal_size().columns]
    of += [version(name) for name in _PACKAGES] + [(package / name).stat().st_mtime_ns for name in _FILES]
    page = cache_folder() / f"help-{hashlib.sha256(repr(of).encode()).hexdigest()[:16]}.txt"
    try:
        text = page.read_text(encoding="utf-8")
    except OSError:
        text = _made(command)
        unfinished = page.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # a folder that cannot be written: the page is made again next time
            page.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(page)
    print(text, end="")


def _made(command: str) -> str:
    from . import train, train_cot

    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        {"train": train, "train-cot": train_cot}[command].main(["--help"])
    return printed.getvalue()
