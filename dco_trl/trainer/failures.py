"""A failure of one process is a failure of all."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import gather_object


@contextmanager
def raise_on_all_ranks(accelerator: Accelerator, what: str) -> Iterator[None]:
    """Wait for every process at the end of the block, and raise on all of them if one of them failed in it.

    If one process raised alone, the others would wait for it forever. The block itself must not wait for other
    processes.

    Raises:
        RuntimeError: Another process failed while it did `what`; the first error is named. The failing process raises
            its own.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    errors = gather_object([None if own is None else f"{type(own).__name__}: {own}"])
    if own is not None:
        raise own
    for process, text in enumerate(errors):
        if text is not None:
            raise RuntimeError(
                f"Process {process} failed while {what}, so all of them stop: {text} Training can be resumed from the "
                "last checkpoint."
            )
