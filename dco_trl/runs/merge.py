"""Merge runs that machines without a shared disk drew, each its own range, into one."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .files import StoreError, write_atomically
from .manifest import refuse_changes
from .store import KEY, RunStore, hash_of, read_header, refuse_other_verdicts, rows_by_problem

# The keys that `RunStore.writing` adds to a manifest.
_ITS_OWN = ("format", "dataset_fingerprint", "problems_sha256", "num_problems", "created", "sessions")


def merge_runs(run_dirs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> int:
    """Copy the samples and verdicts of several runs into one, and return its number of samples.

    After a kill, the same call goes on.

    Args:
        run_dirs: The runs' folders, which stay as they are.
        output: The folder of the merged run, made if there is none. An existing run gets what it lacks.

    Raises:
        StoreError: The runs draw from different things, a sample is there twice, or verdicts of one grader are of
            different versions of it. Nothing has been copied then.

    Examples:
        ```python
        >>> from dco_trl.runs.merge import merge_runs
        >>> merge_runs(["runs/ce.0", "runs/ce.1"], "runs/ce")  # doctest: +SKIP

        ```

    Relations:
        `sample_run(…, first_sample=…)` draws a range of samples.
    """
    if not run_dirs:
        raise StoreError("there are no runs to merge: name the folders of two or more")
    stores = [RunStore(folder) for folder in run_dirs]
    wholes = [RunStore(output)] if Path(output, "manifest.json").exists() else []
    for store in stores:
        refuse_changes(stores[0].path, stores[0].manifest, store.manifest)
    headers: dict[str, dict] = {}
    for store in [*stores, *wholes]:
        for grader in store.graders():
            folder = store.grades_dir(grader)
            header = read_header(folder / "grader.json")
            refuse_other_verdicts(folder, header, headers.setdefault(grader, header))
    copied = [part for whole in wholes for part in whole.sample_parts()]
    known = set(map(hash_of, copied))
    new = [part for store in stores for part in store.sample_parts() if hash_of(part) not in known]
    _refuse_repeated(stores[0], [*copied, *new])

    manifest = {key: value for key, value in stores[0].manifest.items() if key not in _ITS_OWN}
    with RunStore.writing(output, manifest, stores[0].problems) as whole:
        for part in new:
            whole.read_samples(part)  # damage is not copied
            whole.add_part(part)
        stems = {hash_of(part): part.stem for part in whole.sample_parts()}
        for grader, header in headers.items():
            with whole.grading(grader, header["source"]):
                graded = whole.grade_parts(grader)
                for store in stores:
                    for samples, grades in store.grade_parts(grader).items():
                        stem = stems.get(samples.rpartition("-")[2])
                        if stem is not None and stem not in graded:
                            whole.read_grades(grades)
                            path = whole.grades_dir(grader) / f"{stem}-{hash_of(grades)}.parquet"
                            write_atomically(path, grades.read_bytes())
        return sum(map(len, whole.present().values()))


def _refuse_repeated(store: RunStore, parts: Sequence[Path]) -> None:
    seen: dict[str, np.ndarray] = {}
    for part in parts:
        for problem_id, rows in rows_by_problem(store.read_samples(part, KEY)):
            before, indices = seen.get(problem_id, np.empty(0, np.int32)), rows["sample_index"].to_numpy()
            if (twice := np.intersect1d(before, indices)).size:
                raise StoreError(
                    f"sample {twice[0]} of problem {problem_id!r} is in {part} and in an earlier part. Each run needs "
                    "a range of its own (--first-sample). Nothing was copied."
                )
            seen[problem_id] = np.concatenate([before, indices])
