"""Fuzz data sets and config files: each gives problems that can be asked, graded and stored, or one clear error.

python tests/fuzz/fuzz_data.py 10000      # so many examples of each property
"""

import csv
import io
import json
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fuzz.cases import json_values, main, run_cases
from hypothesis import strategies as st

from dco_trl.cli._common import DatasetConfig, ModelConfig, parse
from dco_trl.cli._sampling import SamplingConfig
from dco_trl.runs import DataError, Problem, RunStore, problems_from_rows, read_problems
from dco_trl.runs.rows import read_dataset

KINDS = ("jsonl", "json", "csv", "parquet")
COLUMNS = ("prompt", "answer", "id", "level", "", "a.b", "{", "\ud83d", "pr\u00f6mpt")
# Any code point that Python takes for a character, including surrogates.
TEXTS = st.one_of(st.text(max_size=8), st.text(st.characters(codec=None), max_size=4), st.sampled_from(["", " ", "2"]))
VALUES = json_values(TEXTS, TEXTS)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", 3]), "content": VALUES}), max_size=3
)
ROWS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"messages": st.one_of(MESSAGES, VALUES)}, optional={"answer": VALUES}),
        st.fixed_dictionaries({"prompt": st.one_of(TEXTS, MESSAGES, VALUES), "answer": VALUES}),
        st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=5),
        VALUES,
    ),
    max_size=4,
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "chat": st.booleans(),
        "id_column": st.sampled_from(COLUMNS),
        "answer_column": st.sampled_from(COLUMNS),
        "prompt_template": st.lists(
            st.sampled_from(
                ["{prompt}", "{answer}", "{level:d}", "{prompt!r}", "{prompt!x}", "{prompt:>9}", "{prompt:{level}}"]
                + ["{", "}", "{{", "{}", "{0}", "{prompt.upper}", "{prompt[0]}", "{a.b}", "\ud83d", "Q: "]
            ),
            max_size=4,
        ).map("".join),
    },
)
LINES = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(
                ["model", "dataset", "num_samples", "output", "stop", "temperature", "chat", "sampler_kwargs", "env"]
                + ["sampler", "adapter", "seed", "3", "[1]", "? {a: 1}\n", "<<", "!!python/object:os.system", "*a"]
            ),
            st.one_of(
                st.sampled_from(
                    ["x", "1", "1.5", "true", "[1, a]", "{a: 1, a: 2}", "{3: 4}", "null", "2026-13-01", "!!binary x"]
                    + ["&a [*a]", "[" * 2_000, "'", "|", "0x_", "1e999", "9" * 5_000, "~", "!!set {a, b}", "\x00"]
                ),
                TEXTS,
            ),
        ).map(": ".join),
        TEXTS,
    ),
    max_size=8,
)


def _check(read: Callable[[], list[Problem]], folder: Path, name: str) -> None:
    """Problems that can be asked, graded and stored, or a `DataError` that names the data set."""
    try:
        problems = read()
    except DataError as error:
        assert name in str(error) or "prompt_template" in str(error), error
        return
    assert problems and len({problem.problem_id for problem in problems}) == len(problems)
    with tempfile.TemporaryDirectory(dir=folder) as run:
        with RunStore.writing(run, {"model": "m"}, problems):
            pass
        stored = RunStore(run).problems
    key = [(problem.problem_id, problem.prompt, problem.answer) for problem in problems]
    assert [(problem.problem_id, problem.prompt, problem.answer) for problem in stored] == key
    for problem in problems:
        texts = [problem.prompt] if isinstance(problem.prompt, str) else [m["content"] for m in problem.prompt]
        assert all(text.encode() or len(texts) > 1 for text in [*texts, problem.answer])


def fuzz_rows(examples: int) -> int:
    """Any rows in memory, with any template and columns."""
    with tempfile.TemporaryDirectory() as folder:

        def check(rows: list[Any], arguments: dict[str, Any]) -> None:
            _check(lambda: problems_from_rows(rows, name="these rows", **arguments), Path(folder), "these rows")

        return run_cases(check, examples, ROWS, ARGUMENTS)


def fuzz_files(examples: int) -> int:
    """Files of each kind, with some bytes changed, cut off or doubled."""
    damage = st.lists(
        st.tuples(st.integers(0, 2**16), st.one_of(st.integers(0, 255), st.sampled_from(["cut", "double", "\ufeff"]))),
        max_size=3,
    )
    with tempfile.TemporaryDirectory() as folder:

        def check(kind: str, rows: list[Any], damage: list[tuple], arguments: dict[str, Any]) -> None:
            data = _written(kind, rows)
            for place, change in damage:
                place %= len(data) + 1
                if change == "cut":
                    data = data[:place]
                elif change == "double":
                    data += data[place:]
                elif change == "\ufeff":
                    data = b"\xef\xbb\xbf" + data
                else:
                    data = data[:place] + bytes([change]) + data[place + 1 :]
            path = Path(folder, f"data.{kind}")
            path.write_bytes(data)
            _check(lambda: read_problems(path, **arguments), Path(folder), path.name)
            try:  # as training reads it
                assert read_dataset(path).num_rows or kind == "parquet"
            except DataError as error:
                assert path.name in str(error), error

        return run_cases(check, examples, st.sampled_from(KINDS), ROWS, damage, ARGUMENTS)


def fuzz_config_files(examples: int) -> int:
    """YAML with right and wrong lines is parsed with the right types, or gives one message and status 2."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        command = f"--config {path} --model m --dataset d --num_samples 1 --output o".split()

        def check(lines: list[str]) -> None:
            path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
            told = io.StringIO()
            try:
                with redirect_stderr(told):
                    *_, sampling = parse("sample", command, DatasetConfig, ModelConfig, SamplingConfig, description="")
            except SystemExit as stopped:
                assert stopped.code == 2 and "dco-trl sample: " in told.getvalue(), told.getvalue()
                return
            assert isinstance(sampling.temperature, int | float) and isinstance(sampling.stop, list | None)

        return run_cases(check, examples, LINES)


def _written(kind: str, rows: list[Any]) -> bytes:
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows).encode()
    objects = [row for row in rows if isinstance(row, dict)]
    columns = list(dict.fromkeys(column for row in objects for column in row))
    table = [[str(row.get(column, "")).encode(errors="replace").decode() for column in columns] for row in objects]
    if kind == "csv":
        text = io.StringIO()
        csv.writer(text).writerows([[column.encode(errors="replace").decode() for column in columns], *table])
        return text.getvalue().encode()
    sink = pa.BufferOutputStream()
    names = [column.encode(errors="replace").decode() for column in columns]
    arrays = [pa.array([row[position] for row in table], pa.string()) for position in range(len(names))]
    pq.write_table(pa.table(arrays, names=names), sink)
    return sink.getvalue().to_pybytes()


PROPERTIES = (fuzz_rows, fuzz_files, fuzz_config_files)


if __name__ == "__main__":
    main(*PROPERTIES)
