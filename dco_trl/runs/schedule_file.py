"""A schedule of attempts as a YAML file: the arms, the order of attempts, and the expected coverage."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..errors import UserError
from ..sampling.protocol import SamplingParams
from ..statistics.schedule import AttemptOrder
from .arm import Arm
from .files import StoreError, write_atomically

_FORMAT = 1


class ArmSchedule(NamedTuple):
    """A schedule and the arms that its blocks number.

    Attributes:
        schedule: The order of attempts.
        arms: The arms, as many as the schedule has.
    """

    schedule: AttemptOrder
    arms: tuple[Arm, ...]


class FollowedSchedule(ArmSchedule):
    """A schedule that `follow` has checked against a sampler."""


def write_schedule(
    path: str | os.PathLike[str],
    schedule: AttemptOrder,
    arms: Sequence[Arm],
    expected: Sequence[Mapping[str, Any]] = (),
) -> ArmSchedule:
    """Write a schedule without the arms that have no attempt. Relative folders are written relative to the file.

    Args:
        path: The file.
        schedule: The order of attempts.
        arms: The arms that it was planned over, in that order.
        expected: The expected coverage, for the record: a mapping of plain numbers and text for each k.

    Returns:
        What was written: the schedule over the arms that are sampled.
    """
    used = sorted(set(schedule.arm.tolist()))
    entries = schedule.to_dict()
    entries["blocks"] = [[used.index(arm), attempts] for arm, attempts in entries["blocks"]]
    entries["num_arms"] = len(used)
    kept = tuple(arms[arm] for arm in used)
    content = {
        "format": _FORMAT,
        "num_attempts": schedule.num_attempts,
        "arms": [asdict(_moved(arm, Path(), Path(path).parent)) for arm in kept],
        **entries,
        "expected": [dict(row) for row in expected],
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    write_atomically(Path(path), text.encode())
    return ArmSchedule(AttemptOrder.from_dict(entries), kept)


def read_schedule(path: str | os.PathLike[str]) -> ArmSchedule:
    """Read what `write_schedule` or `dco-trl schedule` wrote.

    Raises:
        StoreError: The file is absent or holds no schedule.

    Examples:
        ```python
        >>> import tempfile
        >>> from dco_trl.runs.arm import Arm
        >>> from dco_trl.runs.schedule_file import read_schedule, write_schedule
        >>> from dco_trl.statistics import plan_attempts
        >>> file = tempfile.mkdtemp() + "/schedule.yaml"
        >>> planned = plan_attempts(64, log_p=[[-0.1, -9.0], [-2.0, -2.0]])
        >>> _ = write_schedule(file, planned, [Arm("MODEL"), Arm("MODEL", temperature=1.5)])
        >>> read_schedule(file).schedule.counts(64).tolist()
        [1, 63]

        ```
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise ValueError(f"its format is {found!r}, and this version of dco-trl reads {_FORMAT}")
        schedule = AttemptOrder.from_dict(content)
        arms = tuple(_moved(arm, Path(path).parent, Path()) for arm in _arms(content.get("arms")))
        if len(arms) != schedule.num_arms:
            raise ValueError(f"it has {len(arms)} arms, and its blocks are for {schedule.num_arms}")
        if (told := content.get("num_attempts", schedule.num_attempts)) != schedule.num_attempts:
            raise ValueError(f"its num_attempts is {told}, and its blocks add up to {schedule.num_attempts}")
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise StoreError(f"{path} holds no schedule: {error}. `dco-trl schedule` writes one.") from error
    return ArmSchedule(schedule, arms)


def schedule_of_run(folder: Path, manifest: Mapping[str, Any]) -> ArmSchedule:
    """The schedule of a run along one, without its expected coverage.

    Raises:
        StoreError: The schedule in the manifest is damaged.
    """
    try:
        entries = dict(manifest["schedule"])
        arms = _arms([{k: v for k, v in entry.items() if k != "adapter_fingerprint"} for entry in entries["arms"]])
        nothing = {"num_arms": len(arms), "k": [], "coverage": [], "optimum": []}
        return ArmSchedule(AttemptOrder.from_dict({**entries, **nothing}), arms)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"the schedule in {folder / 'manifest.json'} is damaged: {error}. Restore the file, or begin another run."
        ) from error


def follow(
    schedule: ArmSchedule | str | os.PathLike[str], sampler: Mapping[str, Any], params: SamplingParams
) -> FollowedSchedule:
    """Read a schedule if it is a file, and check once that the sampler can follow it.

    `sampler` is the sampler's `identity`, or as much of it as is known before the model is loaded.

    Raises:
        ValueError: A temperature or an adapter is given beside those of the arms.
        StoreError: The file holds no schedule, it is for another model, or one of its adapters is gone.
    """
    if isinstance(schedule, FollowedSchedule):
        return schedule
    followed = FollowedSchedule(*(schedule if isinstance(schedule, ArmSchedule) else read_schedule(schedule)))
    if params.temperature != 1:
        raise UserError(
            f"temperature={params.temperature:g} cannot be combined with a schedule, whose arms have their own. "
            "Leave it out."
        )
    if sampler.get("adapter"):
        raise UserError(
            f"{sampler['adapter']} cannot be combined with a schedule: its arms have their own. Leave one of them "
            "out.",
            "adapter",
        )
    is_served, fingerprint = sampler.get("sampler") == "server", sampler.get("model_fingerprint", "")
    for arm in followed.arms:
        known = bool(arm.model_fingerprint and fingerprint)
        if arm.model_fingerprint != fingerprint if known else arm.model != sampler.get("model", ""):
            remedy = "Load that model, or plan a schedule for this one."
            if is_served:
                remedy = f"If it is the same model, serve it under that name too (--served-model-name {arm.model})."
            raise StoreError(
                f"arm {arm.name!r} of the schedule is for model {arm.model!r} "
                f"({arm.model_fingerprint or 'no fingerprint'}), and the sampler has {sampler.get('model')!r} "
                f"({fingerprint or 'no fingerprint'}). {remedy}"
            )
        # A server may know an adapter by name, or have it on its own disk.
        if arm.adapter and not is_served and not (Path(arm.adapter) / "adapter_config.json").is_file():
            raise StoreError(
                f"the adapter of arm {arm.name!r} is gone: {arm.adapter} has no adapter_config.json. Restore it, or "
                "plan a schedule without it."
            )
    return followed


def _moved(arm: Arm, origin: Path, target: Path) -> Arm:
    """The arm with its folders relative to `target` instead of `origin`; names stay."""

    def moved(name: str) -> str:
        there = origin / name
        return os.path.relpath(there, target) if name and not os.path.isabs(name) and there.is_dir() else name

    return replace(arm, model=moved(arm.model), adapter=moved(arm.adapter))


def _arms(entries: Any) -> tuple[Arm, ...]:
    arms: list[Arm] = []
    for entry in entries if isinstance(entries, list) else []:
        names = set(Arm.__dataclass_fields__)
        if not isinstance(entry, dict) or not {"model"} <= entry.keys() <= names:
            raise ValueError(f"the arm {entry} must be a mapping with model and, as it needs them, {sorted(names)}")
        arm = Arm(**entry)
        if not all(isinstance(text, str) for text in (arm.model, arm.adapter, arm.model_fingerprint)):
            raise ValueError(f"the arm {entry} must name its model and its adapter as text")
        if type(arm.temperature) not in (int, float) or not 0 < arm.temperature < float("inf"):
            raise ValueError(f"the arm {entry} must have a temperature above 0")
        if arm.name in (other.name for other in arms):
            raise ValueError(f"the arm {arm.name!r} is there twice: give its blocks one number")
        arms.append(arm)
    return tuple(arms)
