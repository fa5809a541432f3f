"""Workers on a Ray cluster: work goes to any free worker, and results come back as they are ready."""

import logging
import os
import re
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from ..extras import missing

try:
    import ray
except ImportError as error:
    raise missing("ray_workers", "ray", error) from error

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

# Seconds before a warning that the cluster may have no room.
_PATIENCE = 60.0
# Calls at a worker, the running one included, so that it never waits for the next.
_IN_FLIGHT = 2


class RayPool:
    """Copies of an object on a Ray cluster. A copy that dies is made again, and its work is done again.

    `make` makes the object at its first call, in this process's working folder if the machine has that. Each copy has
    `num_cpus` and `num_gpus`; None GPUs are `gpus_if_any` if the cluster has any. `address` is as for `RaySampler`.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        num_workers: int,
        *,
        num_cpus: float = 1,
        num_gpus: float | None = 0,
        gpus_if_any: float = 1,
        address: str | None = None,
    ) -> None:
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _connect(address)
        if num_gpus is None:
            num_gpus = gpus_if_any if ray.cluster_resources().get("GPU") else 0
        self._needs = _resources({"CPU": num_cpus, "GPU": num_gpus})
        actor: Any = ray.remote(_Worker)
        actor = actor.options(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=-1, max_task_retries=-1)
        self.workers = [actor.remote(make, os.getcwd()) for _ in range(num_workers)]

    def first(self, method: str) -> Any:
        """Call a method without arguments on every worker, and return the first answer."""
        calls = [worker.call.remote(method) for worker in self.workers]
        done, _ = ray.wait(calls, num_returns=1, timeout=_PATIENCE)
        if not done:
            logger.warning(
                f"none of {len(self.workers)} workers, with {self._needs} each, is ready after {_PATIENCE:.0f} s. The "
                f"cluster has {_resources(ray.cluster_resources())}, of which {_resources(ray.available_resources())} "
                "are free: loading takes long, other work has to end, or machines have to join."
            )
            done, _ = ray.wait(calls, num_returns=1)
        return _result(done[0])

    def each(
        self, method: str, items: Sequence[Item], load: Callable[[Item], Any] = lambda item: item
    ) -> Iterator[tuple[Item, Any]]:
        """Call a method with `load(item)` for each item, on any free worker; yield each item with its result.

        At the end, a worker without work repeats an unfinished item of another, the latest first, and the first result
        counts: neither a slow worker nor one whose machine is lost holds up the rest.

        Raises:
            Exception: What the method raised.
        """
        todo = deque(range(len(items)))
        flying: dict[Any, tuple[int, Any]] = {}  # by the reference to the result: which item, and where

        def hand(worker: Any) -> None:
            if todo:
                item = todo.popleft()
            else:
                times = Counter(item for item, _ in flying.values())
                once = [item for item, _ in flying.values() if times[item] == 1]
                if not once or any(at is worker for _, at in flying.values()):
                    return
                item = once[-1]
            flying[worker.call.remote(method, load(items[item]))] = (item, worker)

        try:
            for worker in (self.workers * _IN_FLIGHT)[: len(items)]:
                hand(worker)
            while flying:
                [done], _ = ray.wait(list(flying), num_returns=1)
                item, worker = flying.pop(done)
                result = _result(done)
                for other in [ref for ref, (same, _) in flying.items() if same == item]:
                    del flying[other]
                    ray.cancel(other)
                hand(worker)
                yield items[item], result
        finally:
            for ref in flying:
                ray.cancel(ref)

    def close(self) -> None:
        """End the workers, and the connection if it was made here."""
        for worker in self.workers:
            ray.kill(worker)
        self.workers = []
        if self._is_ours and ray.is_initialized():
            ray.shutdown()


class _Worker:
    """Makes the object at the first call, since Ray loses what a constructor raises."""

    def __init__(self, make: Callable[[], Any], folder: str) -> None:
        self.make = make
        self.made: Any = None
        with suppress(OSError):
            os.chdir(folder)  # names of models and adapters may be relative

    def call(self, method: str, *args: Any) -> Any:
        if self.made is None:
            self.made = self.make()
        return getattr(self.made, method)(*args)


def _connect(address: str | None) -> None:
    try:
        if address is not None and (found := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d{1,5})", address)):
            # Ray itself would try for more than ten minutes.
            socket.create_connection((found[1], int(found[2])), timeout=30).close()
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, TimeoutError, socket.gaierror, OverflowError) as error:
        if address is not None:
            raise ConnectionError(
                f"there is no Ray cluster at ray_address={address!r} ({error}). Start one (`ray start --head`), or "
                "leave the address out to use this machine."
            ) from error
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)


def _resources(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{resources.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))


def _result(reference: Any) -> Any:
    """Return what a call returned, or raise what it raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from error
