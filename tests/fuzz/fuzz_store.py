"""Fuzz run folders: whatever happens to a file, the counts stay those of the samples, or a `StoreError` is raised.

python tests/fuzz/fuzz_store.py 10000      # so many examples
"""

import tempfile
from pathlib import Path

from fuzz.cases import main, run_cases
from hypothesis import strategies as st

from dco_trl.runs import Problem, RunStore, StoreError, grade_run, load_results

PROBLEMS = [Problem(f"p{i}", f"{i} + {i} =", str(2 * i), {"level": i}) for i in range(3)]
# What happens to a file, where or under which number, and the bits that a flip changes or the byte that is appended.
CHANGES = st.tuples(
    st.sampled_from(["flip", "cut", "append", "swap", "copy", "move", "remove"]),
    st.integers(0, 999_999),
    st.integers(1, 255),
)


def _make(run: Path) -> dict[Path, bytes]:
    """A run of three parts, graded; its files in memory."""
    with RunStore.writing(run, {"model": "m", "sampling": {"temperature": 1.0}}, PROBLEMS) as store:
        for first in (0, 2, 4):
            store.write_samples(
                [
                    (problem.problem_id, first + i, f"The answer is {(first + i) * j}.", 3, "stop")
                    for j, problem in enumerate(PROBLEMS)
                    for i in range(2)
                ]
            )
    grade_run(run, "exact", progress=False)
    return {path: path.read_bytes() for path in _files(run)}


def _files(run: Path) -> list[Path]:
    """All files but the locks."""
    return sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")


def fuzz_run_folders(examples: int) -> int:
    """Files of a run flipped, cut, swapped, copied, renamed or removed."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        files = _make(run)
        paths = list(files)
        expected = load_results(run).problems

        def check(changes: list[tuple[int, tuple[str, int, int]]]) -> None:
            for path in _files(run):
                if path not in files:
                    path.unlink()
            for path, data in files.items():
                if not path.exists() or path.read_bytes() != data:
                    path.write_bytes(data)
            is_whole = True
            for number, change in changes:
                _change(paths[number], paths, *change)
                is_whole &= not (change[0] in ("remove", "move") and paths[number].parent.name == "samples")
            for act in (lambda: None, lambda: grade_run(run, "exact", progress=False)):
                try:
                    act()
                    problems = load_results(run).problems
                except StoreError as error:
                    assert "run" in str(error)
                    continue
                # Nothing notices that whole parts of samples are gone, but the others are never judged wrongly.
                for found, right in zip(problems, expected, strict=True):
                    assert found == right if is_whole else found.num_correct <= right.num_correct

        changes = st.tuples(st.sampled_from(range(len(paths))), CHANGES)
        return run_cases(check, examples, st.lists(changes, min_size=1, max_size=2))


def _change(path: Path, paths: list[Path], kind: str, place: int, byte: int) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    if kind == "remove":
        path.unlink()
    elif kind in ("copy", "move"):
        target = path.with_name(f"part-{place:06d}{path.name[11:]}")
        target.write_bytes(data)
        if kind == "move" and target != path:
            path.unlink()
    elif kind == "swap":
        path.write_bytes(paths[place % len(paths)].read_bytes() if paths[place % len(paths)].exists() else b"")
    elif kind == "append":
        path.write_bytes(data + bytes([byte]))
    elif data:
        place %= len(data)
        changed = data[:place] if kind == "cut" else data[:place] + bytes([data[place] ^ byte]) + data[place + 1 :]
        path.write_bytes(changed)


PROPERTIES = (fuzz_run_folders,)


if __name__ == "__main__":
    main(*PROPERTIES)
