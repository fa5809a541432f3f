"""Problems from rows: a prompt, its reference answer, and whatever else a grader may want to see."""

import hashlib
import json
import logging
import math
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check_integer
from ..problem import DataError, Problem
from .messages import are_messages, checked_prompt, checked_text, is_plain, message_text, split_messages
from .rows import checked_row, read_rows, short

logger = logging.getLogger(__name__)


def read_problems(
    source: str | Path,
    *,
    split: str = "test",
    config: str | None = None,
    num_problems: int | None = None,
    prompt_column: str = "prompt",
    answer_column: str | None = "answer",
    id_column: str | None = None,
    prompt_template: str | None = None,
    chat: bool = False,
) -> list[Problem]:
    r"""Read problems from a file, a folder saved by `datasets`, or a data set's name on the Hub.

    Args:
        source: A `.jsonl`, `.json` (a list of objects), `.parquet` or `.csv` file; otherwise a folder or a name that
            `datasets` can load.
        split: The split to take, where the source has several. Files have none.
        config: The configuration of a data set on the Hub, such as `main`.
        num_problems: Take the first `num_problems` rows only; None takes all.
        prompt_column: The column with the prompt, plain or conversational; ignored with `prompt_template`. Rows with
            `messages` in place of `prompt` are split: the last message is the `completion`, those before the prompt.
        answer_column: The column with the reference answer. Numbers become text. None: there is none, and `answer` is
            "" (for a verifier that needs no reference). Split rows without `answer` take the completion.
        id_column: The column with the problem ids, which must be unique. None: the column `id` where it is unique,
            otherwise the number of the row.
        prompt_template: A format string over the columns, such as `"Question: {problem}\nAnswer:"`. Braces that are
            part of the text are doubled: `\\boxed{{}}`.
        chat: Send a plain prompt as one user message, through the model's chat template.

    Returns:
        The problems in the order of their rows, at least one.

    Raises:
        DataError: The source cannot be read, is empty, lacks a column, or has a row that cannot be asked and graded;
            the message names the file, the row and the column.

    Examples:
        ```python
        >>> import json, pathlib, tempfile
        >>> from dco_trl.runs import read_problems
        >>> file = pathlib.Path(tempfile.mkdtemp(), "problems.jsonl")
        >>> _ = file.write_text(json.dumps({"problem": "1 + 1?", "answer": 2}))
        >>> read_problems(file, prompt_template="{problem}\nAnswer:")
        [Problem(problem_id='0', prompt='1 + 1?\nAnswer:', answer='2', columns={'problem': '1 + 1?'})]

        ```

    Relations:
        [`problems_from_rows`][dco_trl.runs.problems_from_rows] does the same for rows that are in memory.
    """
    return problems_from_rows(
        read_rows(source, split=split, config=config),
        num_problems=num_problems,
        prompt_column=prompt_column,
        answer_column=answer_column,
        id_column=id_column,
        prompt_template=prompt_template,
        chat=chat,
        name=str(source),
    )


def problems_from_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    num_problems: int | None = None,
    prompt_column: str = "prompt",
    answer_column: str | None = "answer",
    id_column: str | None = None,
    prompt_template: str | None = None,
    chat: bool = False,
    name: str = "the data set",
) -> list[Problem]:
    """Turn rows, such as a `datasets.Dataset`, into problems.

    Args:
        rows: Mappings from a column's name to its value.
        num_problems: As the arguments below, see [`read_problems`][dco_trl.runs.read_problems].
        prompt_column: See there.
        answer_column: See there.
        id_column: See there.
        prompt_template: See there.
        chat: See there.
        name: What error messages call the data set.

    Returns:
        The problems in the order of their rows, at least one.

    Raises:
        ValueError: `num_problems` is no integer, or below 1.
        DataError: As for [`read_problems`][dco_trl.runs.read_problems].

    Examples:
        ```python
        >>> from dco_trl.runs import problems_from_rows
        >>> problems_from_rows([{"prompt": "1 + 1 =", "answer": "2"}])[0].problem_id
        '0'

        ```
    """
    if num_problems is not None:
        check_integer("num_problems", num_problems)
    table: list[dict[str, Any]] = []
    for row in rows:
        if num_problems is not None and len(table) == num_problems:
            break
        table.append(checked_row(row, f"{name}: row {len(table)}"))
    if not table:
        raise DataError(f"{name} is empty: there is nothing to sample. Check the file or the split.")
    if num_problems is not None and len(table) < num_problems:
        raise DataError(f"{name} has {len(table)} rows, fewer than num_problems={num_problems}. Ask for fewer.")

    if prompt_template is None and prompt_column == "prompt" and not any("prompt" in row for row in table):
        table = [split_messages(row, f"{name}: row {number}") for number, row in enumerate(table)]
        if answer_column == "answer" and not any("answer" in row for row in table):
            answer_column = "completion"
    # Rows of a JSON-lines file may have different columns; a column counts as present if any row has it.
    present = list(dict.fromkeys(column for row in table for column in row))
    if prompt_template is not None:
        template = _template_fields(prompt_template, present, name)
        used = {column for _, column, _, _ in template if column is not None}
        source = f"prompt_template with {_some(sorted(used))}"
    else:
        used, source = {prompt_column}, f"column {prompt_column!r}"
        if prompt_column not in present:
            raise DataError(
                f"{name} has no column {prompt_column!r}; its columns are {present}. Name the column with the prompt "
                "(prompt_column), or build the prompt from other columns (prompt_template, for example "
                "'Question: {problem}\\nAnswer:')."
            )
    if pictures := {"image", "images"} & set(present):
        raise DataError(
            f"{name} has the column {min(pictures)!r}, and pictures are not shown to a model here: sampling and exact "
            "coverage take text alone. `DCOTrainer` trains and evaluates such rows. Remove the column to ask the text."
        )
    if answer_column is not None and answer_column not in present:
        raise DataError(
            f"{name} has no column {answer_column!r} to grade against; its columns are {present}. Name the column "
            "with the reference answer (answer_column)."
        )
    for column in sorted(used | ({answer_column} if answer_column is not None else set())):
        empty = [number for number, row in enumerate(table) if _is_missing(row.get(column))]
        if empty:
            raise DataError(
                f"{name}: column {column!r} is absent, None or empty in {len(empty)} of {len(table)} rows (row "
                f"numbers {_some(empty)}). Remove or fill these rows: a problem without it cannot be asked and graded."
            )

    id_column, ids = _problem_ids(table, id_column, present, name)
    problems = []
    for number, row in enumerate(table):
        where = f"{name}: row {number}"
        prompt: Any = row[prompt_column] if prompt_template is None else _filled(template, row, where)
        # The columns that have become the prompt, the answer and the id are not kept twice.
        taken = {answer_column, id_column} | ({prompt_column} if prompt_template is None else set())
        columns = {column: value for column, value in row.items() if column not in taken}
        reference: Any = None if answer_column is None else row[answer_column]
        is_more = isinstance(prompt, list) and are_messages(reference) and not is_plain(reference)
        problem = Problem(
            checked_text(ids[number], f"{where}, column {id_column!r}"),
            checked_prompt(prompt, chat, f"{where}, {source}"),
            "" if answer_column is None else _reference(reference, f"{where}, column {answer_column!r}"),
            columns,
            [dict(message) for message in reference] if is_more else None,
        )
        problems.append(problem)
    _warn_of_repeats(problems, name)
    return problems


def fingerprint(problems: Sequence[Problem]) -> str:
    """SHA-256 of the ids, prompts and answers, in order: what a run must have in common to be resumed or compared.

    Args:
        problems: The problems.

    Returns:
        64 hexadecimal digits. Further columns do not count, but for what the chat template is given of them.

    Examples:
        ```python
        >>> from dco_trl.runs import Problem, fingerprint
        >>> fingerprint([Problem("0", "1 + 1 =", "2")])[:8]
        '418a354d'

        ```
    """
    digest = hashlib.sha256()
    for problem in problems:
        row: list[Any] = [problem.problem_id, problem.prompt, problem.answer]
        row += [problem.template_kwargs] if problem.template_kwargs else []
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()


_Field = tuple[str, str | None, str | None, str | None]  # text, then a column, its format and its conversion


def _template_fields(template: str, present: list[str], name: str) -> list[_Field]:
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(
            f"prompt_template {template!r} is not a format string: {error}. Double braces that are part of the text."
        ) from error
    columns = [column for _, column, _, _ in fields if column is not None]
    if not columns:
        raise DataError(
            f"prompt_template {template!r} names no column: every prompt would be the same. Name one in braces, of "
            f"{present}."
        )
    absent = [column for column in columns if column not in present]
    if absent:
        raise DataError(
            f"prompt_template names {absent}, but the columns of {name} are {present}. Double braces that are part of "
            "the text."
        )
    unknown = [conversion for *_, conversion in fields if conversion not in (None, "s", "r", "a")]
    if unknown:
        raise DataError(
            f"prompt_template {template!r} has the conversion !{unknown[0]}; Python has !s, !r and !a. Leave it out: "
            "{column} alone inserts the column's text."
        )
    return fields


def _filled(template: list[_Field], row: Mapping[str, Any], where: str) -> str:
    formatter, parts = string.Formatter(), []
    for text, column, form, conversion in template:
        parts.append(text)
        if column is not None:
            try:
                value = formatter.convert_field(row[column], conversion)
                parts.append(formatter.format_field(value, form or ""))
            except (ValueError, TypeError, OverflowError, MemoryError) as error:
                raise DataError(
                    f"{where}, column {column!r}: prompt_template cannot format {short(row[column])} as "
                    f"{{{column}:{form}}}: {error}"
                ) from error
    return "".join(parts)


def _problem_ids(
    table: list[dict[str, Any]], id_column: str | None, present: list[str], name: str
) -> tuple[str | None, list[str]]:
    """The column that has the ids, None where rows are numbered, and the ids."""
    column = "id" if id_column is None else id_column
    ids = [row.get(column) for row in table]
    missing = [number for number, value in enumerate(ids) if _is_missing(value)]
    repeated = [value for value, count in Counter(str(value) for value in ids).items() if count > 1]
    if id_column is None and (missing or repeated):
        if "id" in present:
            logger.warning("%s: column 'id' is not unique; problems are named by row number instead", name)
        return None, [str(number) for number in range(len(table))]
    if column not in present:
        raise DataError(f"{name} has no column {column!r} (id_column); its columns are {present}")
    if missing:
        raise DataError(
            f"{name}: id_column {column!r} is empty in {len(missing)} rows (numbers {_some(missing)}). Fill them, "
            "or leave id_column out to number the rows."
        )
    if repeated:
        raise DataError(
            f"{name}: id_column {column!r} is not unique: {_some(repeated)} occur more than once. Name a column "
            "that is, or leave id_column out to number the rows."
        )
    return column, [str(value) for value in ids]


def _reference(value: Any, where: str) -> str:
    if isinstance(value, float | np.floating) and math.isinf(value):
        raise DataError(f"{where}: {value} is not an answer that can be compared. Write it as text.")
    if value and are_messages(value):  # a conversational completion, as in TRL's prompt-completion format
        value = message_text(value[-1])
    if isinstance(value, list | dict):
        try:
            value = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{where}: {short(value)} cannot be written as text: {error}. Write it as text."
            ) from error
    return checked_text(str(value), where)


def _is_missing(value: Any) -> bool:
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return True
    return isinstance(value, (str, list, dict)) and not (value.strip() if isinstance(value, str) else value)


def what_is_asked(problem: Problem) -> str:
    """What a model is shown of a problem: equal for two problems that are one question."""
    return json.dumps([problem.prompt, problem.template_kwargs], default=str)


def _warn_of_repeats(problems: list[Problem], name: str) -> None:
    first: dict[str, Problem] = {}
    repeats, others = [], []
    for problem in problems:
        earlier = first.setdefault(what_is_asked(problem), problem)
        if earlier is problem:
            continue
        repeats.append(problem.problem_id)
        if earlier.answer != problem.answer:
            others.append(f"{short(earlier.answer)} and {short(problem.answer)}")
            if not _is_same_number(earlier.answer, problem.answer):
                raise DataError(
                    f"{name}: problems {earlier.problem_id!r} and {problem.problem_id!r} have the same prompt but "
                    f"different answers, {others[-1]}. Remove one of them."
                )
    if repeats:
        logger.warning("%s: %d problems repeat an earlier one (ids %s)", name, len(repeats), _some(repeats))
    if others:
        logger.warning("%s: one prompt has one number in several spellings: %s", name, _some(others))


def _is_same_number(first: str, second: str) -> bool:
    try:
        return float(first) == float(second)
    except ValueError:
        return False


def _some(values: Sequence[Any], limit: int = 5) -> str:
    listed = ", ".join(str(value) for value in values[:limit])
    return listed + (", …" if len(values) > limit else "")
