"""Progress on standard error: a bar on a terminal, a line every half minute elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS_A_LINE = 30.0


@contextmanager
def progress_bar(title: str, total: int, enabled: bool = True) -> Iterator[Callable[[], None]]:
    """Show how much of `total` is done.

    Args:
        title: what is done.
        total: how many steps.
        enabled: False: show nothing.

    Yields:
        A function to call once a step.
    """
    if not enabled or total == 0:
        yield lambda: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)
    else:
        started = said = time.monotonic()
        done = 0

        def step() -> None:
            nonlocal done, said
            done += 1
            now = time.monotonic()
            if now - said >= _SECONDS_A_LINE:
                said = now
                left = (now - started) * (total - done) / done
                print(f"{title}: {done} of {total}, about {left:.0f} s left", file=sys.stderr, flush=True)

        yield step
