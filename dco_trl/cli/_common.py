"""What the commands share: parsing, reading the data set, and errors as one message with exit status 2."""

import difflib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from trl import TrlParser

from ..errors import UserError
from .config_file import with_config_file


def option(help: str, **arguments: Any) -> Any:
    """A field of a configuration, which is the flag `--field-name`; `arguments` go to `dataclasses.field`."""
    return field(metadata={"help": help}, **arguments)


@dataclass
class DatasetConfig:
    """The problems."""

    dataset: str = option("A .jsonl, .json, .parquet or .csv file, or a folder or name that `datasets` can load.")
    split: str = option("Split of the data set, if it has several.", default="test")
    dataset_config: str | None = option("Configuration of a data set on the Hub.", default=None)
    num_problems: int | None = option("Take only the first problems, this many.", default=None)
    prompt_column: str = option("Column with the prompt, plain or conversational.", default="prompt")
    answer_column: str | None = option("Column with the reference answer. By default `answer`.", default=None)
    id_column: str | None = option(
        "Column with unique ids. By default `id` if it is unique, else the row's number.", default=None
    )
    prompt_template: str | None = option(
        r"Prompt built from columns, for example 'Question: {problem}\nAnswer:'. \n is a line break; double the "
        "braces of the text. Replaces --prompt-column.",
        default=None,
    )
    chat: bool = option("Send a plain prompt as a user message, through the model's chat template.", default=False)


@dataclass
class ModelConfig:
    """The model."""

    model: str = option("Folder or name of the model; the served name with --sampler server.")
    adapter: str | None = option("Folder of a LoRA adapter.", default=None)
    revision: str | None = option("Revision of the model on the Hub.", default=None)
    dtype: str | None = option("float32, bfloat16 or float16. By default as the model was saved.", default=None)
    batch_size: int = option("Sequences at a time; not for vllm and server.", default=64)


@dataclass
class ReportConfig:
    """What to report."""

    k: list[int] | None = option(
        "Numbers of attempts to report, such as --k 1 16 256. By default powers of four to 4096.", default=None
    )


def command(
    name: str, run: str | None = None, runs: str | None = None
) -> Callable[[Callable[..., Any]], Callable[[list[str]], int]]:
    """Make the `main(argv)` of a command, which returns the exit status, from the function that does its work.

    The function takes config dataclasses and, with `run` or `runs`, positional arguments. Its docstring describes the
    command in `--help`, and what it returns is printed.
    """

    def decorate(work: Callable[..., Any]) -> Callable[[list[str]], int]:
        def main(argv: list[str]) -> int:
            hints = get_type_hints(work)
            configs = [kind for name, kind in hints.items() if name != "return" and is_dataclass(kind)]
            arguments = parse(name, argv, *configs, run=run, runs=runs, description=work.__doc__ or "")
            return status(name, lambda: work(*arguments))

        return main

    return decorate


def parse(
    command: str, argv: list[str], *configs: Any, run: str | None = None, runs: str | None = None, description: str
) -> tuple[Any, ...]:
    """Parse a command line, and a YAML file with `--config`, into config dataclasses: `field_name` is `--field-name`.

    `run`, a help text, adds an argument RUN; `runs` adds a list, which a YAML file may hold as `runs`. Wrong arguments
    are one message and `SystemExit` with status 2.
    """
    parser = TrlParser(list(configs), prog=f"dco-trl {command}", description=description, allow_abbrev=False)
    if run:
        parser.add_argument("RUN", help=run)
    if runs:
        parser.add_argument("runs", nargs="*", metavar="RUN", help=runs)
    try:
        _check_flags(argv, parser)
        parsed = parser.parse_args_and_config(with_config_file(argv, parser))
        for config in parsed[: len(configs)]:
            _check_types(config)
        if runs and not _fits(parsed[-1].runs, list[str]):
            raise UserError(f"runs must be a list of folders, got {parsed[-1].runs!r}")
    except (ValueError, OSError) as error:  # such as a YAML file with unknown keys, or a missing one
        parser.exit(2, f"dco-trl {command}: {error}\n")
    if run or runs:
        return (*parsed[:-1], parsed[-1].RUN if run else parsed[-1].runs)
    return parsed


def _check_flags(argv: list[str], parser: TrlParser) -> None:
    """Report an unknown flag before missing ones, since it is often one of them, misspelt."""
    for word in argv:
        flag = word.split("=")[0]
        if flag.startswith("--") and len(flag) > 2 and flag not in (*parser._option_string_actions, "--config"):
            known = [action.dest for action in parser._actions]
            raise ValueError(f"unknown argument: {flag!r}. {did_you_mean(flag[2:], known, parser.prog)}")


def did_you_mean(name: str, known: Iterable[str], program: str, dashes: str = "--") -> str:
    """A hint at the argument that an unknown one may stand for."""
    close = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1)
    if close:
        return f"Did you mean '{dashes}{close[0].replace('_', '-') if '-' in name else close[0]}'?"
    return f"`{program} --help` lists what there is."


def _check_types(config: Any) -> None:
    """Check the types of values from a YAML file, which argparse does not convert."""
    for name, wanted in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, wanted):
            kind = str(wanted).replace("typing.", "") if get_args(wanted) else wanted.__name__
            raise ValueError(f"--{name.replace('_', '-')} must be of type {kind}, got {value!r}")


def _fits(value: Any, wanted: Any) -> bool:
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if inner:
        return any(_fits(value, kind) for kind in inner)
    return type(value) in ((int, float) if wanted is float else (wanted,))


def status(command: str, work: Callable[[], Any]) -> int:
    """Do a command's work, print what it returns, and return the exit status.

    Errors that the user caused, and those of opening files and importing libraries, are one message and status 2. Any
    other error shows its traceback.
    """
    try:
        if (result := work()) is not None:
            print(result)
    except KeyboardInterrupt:
        print(f"\ndco-trl {command}: interrupted; the same command goes on from what is on disk", file=sys.stderr)
        return 130
    except (UserError, OSError, ImportError) as error:
        print(f"dco-trl {command}: {told(error)}", file=sys.stderr)
        return 2
    return 0


def told(error: Exception) -> str:
    """An error's message as a command prints it."""
    return error.with_flag() if isinstance(error, UserError) else str(error)


def print_whole(console: Any, *parts: Any) -> None:
    """Print tables at their full width, so that names stay on one line and can be copied."""
    before, wide = console.width, console.options.update(width=100_000)
    console.width = max(before, *(console.measure(part, options=wide).maximum for part in parts))
    for part in parts:
        console.print(part)
    console.width = before


@contextmanager
def naming(name: str, kind: str = "model", adapter: str | None = None) -> Iterator[None]:
    """Name the model or adapter that could not be loaded, as not every message of Transformers and PEFT does."""
    from safetensors import SafetensorError

    from ..runs.arms import adapter_base

    try:
        yield
    except ConnectionError:  # of a Ray cluster, which says so: no model was asked for yet
        raise
    except (OSError, SafetensorError) as error:
        raise OSError(f"{kind} {name!r} could not be loaded: {error}") from error
    except RuntimeError as error:  # one line for each weight
        if "size mismatch" not in str(error) or not (base := adapter_base(Path(adapter or name))):
            raise
        raise OSError(
            f"adapter {adapter or name!r} does not fit this model: its adapter_config.json names the model {base!r}"
        ) from error
    except (ValueError, AttributeError) as error:
        if "adapter_config.json" in str(error):
            raise OSError(
                f"adapter {adapter or name!r} could not be loaded: {error}. Name a folder with that file, or one on "
                "the Hub."
            ) from error
        if "dtype" in str(error) or str(error).startswith("module 'torch' has no attribute"):
            raise UserError(f"cannot be used: {error}. Use auto, float32, bfloat16 or float16.", "dtype") from error
        raise


# The columns where published data sets have the reference, by grader; None: no reference. Any other grader, such as
# `code` or the user's function, may do without.
_ANSWER_COLUMNS: dict[str, tuple[str | None, ...]] = {
    "math": ("answer",),
    "exact": ("answer",),
    "choice": ("answer", "answerKey", "solution"),
    "json": ("answer", "solution"),
    "regex": ("answer", "pattern", "solution"),
}


def load_problems(config: DatasetConfig, grader: str = "exact") -> list:
    """The problems of a command line, with the references that a grader takes."""
    return load_rows(config, *_ANSWER_COLUMNS.get(grader, ("answer", None)))[1]


def load_rows(config: DatasetConfig, *columns: str | None) -> tuple[list[dict], list, str | None]:
    """The rows of a command line, their problems, and the column with the references.

    That column is the one that was named, or the first of `columns` that any row has.
    """
    from ..runs import problems_from_rows
    from ..runs.rows import read_rows

    source: Any = read_rows(config.dataset, split=config.split, config=config.dataset_config)
    # A few rows of a large data set do not need all of it. A number below 1 is refused below.
    rows = list(source if config.num_problems is None else islice(source, max(config.num_problems, 0)))
    present = {None, *(name for row in rows if isinstance(row, dict) for name in row)}
    column = config.answer_column or next((name for name in columns if name in present), columns[0])
    problems = problems_from_rows(
        rows,
        num_problems=config.num_problems,
        prompt_column=config.prompt_column,
        answer_column=column,
        id_column=config.id_column,
        prompt_template=config.prompt_template and unescape(config.prompt_template),
        chat=config.chat,
        name=config.dataset,
    )
    return rows, problems, column


def unescape(text: str) -> str:
    r"""The text with \n and \t, which a shell passes as two characters, as line breaks and tabs."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def json_object(text: str | dict | None, argument: str) -> dict[str, Any]:
    """Read an option that holds a JSON object, or the mapping itself in a YAML file."""
    if not text:
        return {}
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise UserError(f"must be a JSON object such as '{{\"max_model_len\": 2048}}': {error}", argument) from error
    if not isinstance(value, dict):
        raise UserError(f"must be a JSON object in braces, got {text}", argument)
    return value
