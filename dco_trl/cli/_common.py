"""What the commands share: parsing, reading the data set, and errors that are one message and exit status 2."""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from trl import TrlParser

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass
class DatasetConfig:
    """The problems."""

    dataset: str = field(
        metadata={"help": "A .jsonl, .json, .parquet or .csv file, or a folder or name that `datasets` can load."}
    )
    split: str = field(default="test", metadata={"help": "Split of the data set, where it has several."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    num_problems: int | None = field(default=None, metadata={"help": "Take the first so many problems only."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column with the prompt, plain or conversational."})
    answer_column: str | None = field(
        default=None, metadata={"help": "Column with the reference answer. Unless given, `answer`."}
    )
    id_column: str | None = field(
        default=None, metadata={"help": "Column with unique ids. Unless given, `id` if unique, else the row's number."}
    )
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": r"Prompt built from columns, for example 'Question: {problem}\nAnswer:'. \n is a line break; "
            "braces of the text are doubled. In place of --prompt-column."
        },
    )
    chat: bool = field(
        default=False, metadata={"help": "Send a plain prompt as a user message, through the model's chat template."}
    )


@dataclass
class ModelConfig:
    """The model."""

    model: str = field(metadata={"help": "Folder or name of the model; the served name with --sampler server."})
    adapter: str | None = field(default=None, metadata={"help": "Folder of a LoRA adapter."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the model on the Hub."})
    dtype: str | None = field(
        default=None, metadata={"help": "float32, bfloat16 or float16. Unless given, as the model was saved."}
    )
    batch_size: int = field(default=64, metadata={"help": "Sequences at a time; not for vllm and server."})


def parse(command: str, argv: list[str], *configs: Any, run: str | None = None, description: str) -> tuple[Any, ...]:
    """Parse a command line, and a YAML file with `--config`, into config dataclasses.

    Args:
        command: The command's name.
        argv: Its arguments.
        configs: Dataclasses; their fields become `--field-name`.
        run: Help for a positional argument RUN; None for a command without one.
        description: Shown by `--help`.

    Returns:
        An instance of each dataclass, then, with `run`, the positional argument.

    Raises:
        SystemExit: With status 2, after one message, where the arguments are wrong.
    """
    parser = TrlParser(list(configs), prog=f"dco-trl {command}", description=description)
    if run:
        parser.add_argument("RUN", help=run)
    try:
        parsed = parser.parse_args_and_config(argv)
    except (ValueError, OSError) as error:  # a YAML file with unknown keys, or none at all
        parser.exit(2, f"dco-trl {command}: {error}\n")
    return (*parsed[: len(configs)], parsed[-1].RUN) if run else parsed


def status(command: str, work: Callable[[], None]) -> int:
    """Run a command; turn an error that its user can cause into one message and status 2.

    Errors of this package, and of opening files and importing libraries, are the user's to mend. What other libraries
    raise in their own code is not expected, and its traceback is shown.

    Args:
        command: The command's name.
        work: What it does.

    Returns:
        The exit status.
    """
    try:
        work()
    except KeyboardInterrupt:
        print(f"\ndco-trl {command}: interrupted; the same command goes on from what is on disk", file=sys.stderr)
        return 130
    except (OSError, ImportError) as error:
        print(f"dco-trl {command}: {error}", file=sys.stderr)
        return 2
    except (ValueError, TypeError, RuntimeError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if not Path(last).resolve().is_relative_to(_PACKAGE):
            raise
        print(f"dco-trl {command}: {error}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def naming(model: str) -> Iterator[None]:
    """Say which model could not be loaded: not every message of Transformers does."""
    try:
        yield
    except OSError as error:
        raise OSError(f"model {model!r} could not be loaded: {error}") from error


def load_problems(config: DatasetConfig, answer_column: str | None = None) -> list:
    """Read the problems that a command line names.

    Args:
        config: The command line's.
        answer_column: In place of the config's.

    Returns:
        Problems.
    """
    return load_rows_and_problems(config, answer_column)[1]


def load_rows_and_problems(config: DatasetConfig, answer_column: str | None = None) -> tuple[list[dict], list]:
    """Read the rows that a command line names, and the problem in each.

    Args:
        config: The command line's.
        answer_column: In place of the config's.

    Returns:
        The rows with all of their columns, and as many problems in the same order.
    """
    from ..runs import problems_from_rows
    from ..runs.rows import read_rows

    source = read_rows(config.dataset, split=config.split, config=config.dataset_config)
    # Not the whole of a large data set for a few rows; a number below 1 is refused below.
    rows: list = list(source if config.num_problems is None else islice(source, max(config.num_problems, 0)))
    problems = problems_from_rows(
        rows,
        num_problems=config.num_problems,
        prompt_column=config.prompt_column,
        answer_column=answer_column or config.answer_column or "answer",
        id_column=config.id_column,
        prompt_template=config.prompt_template and unescape(config.prompt_template),
        chat=config.chat,
        name=config.dataset,
    )
    return rows, problems


def unescape(text: str) -> str:
    r"""Line breaks and tabs written as \n and \t, which a shell hands over as two characters."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def json_object(text: str | dict | None, option: str) -> dict[str, Any]:
    """Read an option that holds a JSON object; a YAML file may hold the mapping itself."""
    if not text:
        return {}
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise ValueError(f"{option} must be a JSON object such as '{{\"max_model_len\": 2048}}': {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{option} must be a JSON object, got {text}")
    return value
