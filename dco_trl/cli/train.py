"""`dco-trl train` and `train-cot`: fine-tune with DCO from the shell, with the arguments of `trl sft`."""

import argparse
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.exceptions import DatasetsError
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from ..runs.rows import is_file, load_with_datasets, read_dataset, split_files
from ..trainer import CoTDCOConfig, DCOConfig, DCOTrainer
from ..trainer.checkpoints import checkpoint_to_resume
from ..trainer.cot_config import STATE_NAME
from ._common import did_you_mean, naming, option, told
from .config_file import with_config_file

# The errors that a user's mistake raises before the first step, in TRL and below it.
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError, DatasetsError)

_DESCRIPTION = """\
Fine-tune a language model with Direct Coverage Optimization. Every argument of `trl sft` works (TRL's SFTConfig,
ModelConfig, ScriptArguments and DatasetMixtureConfig), on the command line or in a YAML file; the command line wins.

  dco-trl train --model_name_or_path MODEL --dataset_name data/train.jsonl --num_attempts 256 --output_dir OUT
  dco-trl train --config recipe.yaml --learning_rate 1e-4
  accelerate launch -m dco_trl train --config recipe.yaml

DCO adds --num_attempts (N), --loss_reduction, --coverage_at, and --eval_dataset_name for an evaluation set that is not
a split of --dataset_name. Data sets are names on the hub, folders with train.jsonl and test.jsonl, or files
(.jsonl, .json, .parquet, .csv), with the columns `prompt` and `completion`. On a CPU, add `--use_cpu true`.
"""
_COT_DESCRIPTION = """\
Fine-tune a language model on chains of thought with Direct Coverage Optimization: the success rate of each prompt is
estimated from sampled and graded rationales. Every argument of `dco-trl train` works, on the command line or in a YAML
file; the command line wins.

  dco-trl train-cot --model_name_or_path MODEL --dataset_name data/train.jsonl --num_attempts 64 --sampler vllm \\
      --grader math --use_peft --output_dir OUT
  dco-trl train-cot --config recipe.yaml
  accelerate launch -m dco_trl train-cot --config recipe.yaml --sampler server \\
      --sampler_kwargs '{"base_url": "http://HOST:8000/v1"}'

It adds --sampler and --sampler_kwargs (where rationales come from), --grader (what judges them), --num_rationales,
--sampling_interval and the rest of CoTDCOConfig. Data sets have the columns `prompt`, `completion` (rationale and
answer) and `answer` (the reference for the grader). On a CPU, add `--use_cpu true`.
"""


@dataclass
class DCOScriptArguments(ScriptArguments):
    """TRL's arguments for the data, and a separate evaluation set."""

    eval_dataset_name: str | None = option(
        "Path or name of the dataset to evaluate on. By default the split `dataset_test_split` of `dataset_name`.",
        default=None,
    )


@dataclass
class CoTDCOScriptArguments(DCOScriptArguments):
    """Also the grader of sampled rationales."""

    grader: str = option(
        "'math', 'exact', or 'package.module:function' with the signature of a TRL reward function.", default="math"
    )


def make_parser(config_class: type[DCOConfig] = DCOConfig) -> TrlParser:
    """TRL's parser for the arguments of `trl sft`, with `DCOConfig` or `CoTDCOConfig` for `SFTConfig`."""
    is_cot = issubclass(config_class, CoTDCOConfig)
    script_class = CoTDCOScriptArguments if is_cot else DCOScriptArguments
    dataclass_types: Any = (script_class, config_class, ModelConfig, DatasetMixtureConfig)
    return TrlParser(
        dataclass_types,
        prog=_command(config_class),
        usage="%(prog)s [--config FILE.yaml] [ARGUMENTS]",
        description=_COT_DESCRIPTION if is_cot else _DESCRIPTION,
        formatter_class=_HelpFormatter,
        # Like a prefix of a YAML key, a prefix of a flag is refused: the next TRL release may make it ambiguous.
        allow_abbrev=False,
    )


def _command(config_class: type[DCOConfig]) -> str:
    return "dco-trl train-cot" if issubclass(config_class, CoTDCOConfig) else "dco-trl train"


def parse(
    argv: list[str], config_class: type[DCOConfig] = DCOConfig
) -> tuple[DCOScriptArguments, DCOConfig, ModelConfig, DatasetMixtureConfig]:
    """Parse flags and `--config FILE`. An unknown flag or key, and a missing model or data set, are a `ValueError`."""
    parser = make_parser(config_class)
    argv = with_config_file(argv, parser)
    try:
        parsed: Any = parser.parse_args_and_config(
            argv, return_remaining_strings=True, separate_remaining_strings=True
        )
    except ValueError:  # a wrong value; report missing arguments first
        given, _ = parser.parse_known_args(argv)
        _check_model_and_data(given, given, given)
        raise
    *arguments, from_config, from_flags = parsed
    known = [action.dest for action in parser._actions]
    for source, words in (("key in the config file", from_config[::2]), ("argument", from_flags)):
        if words:
            name = words[0].removeprefix("--").split("=")[0]
            dashes = "--" if source == "argument" else ""
            raise ValueError(f"unknown {source}: '{dashes}{name}'. {did_you_mean(name, known, parser.prog, dashes)}")
    script_args, training_args, model_args, mixture = arguments
    _check_model_and_data(model_args, script_args, mixture)
    return script_args, training_args, model_args, mixture


def _check_model_and_data(model_args: Any, script_args: Any, mixture: Any) -> None:
    missing = []
    if model_args.model_name_or_path is None:
        missing.append("`model_name_or_path` (a name on the hub, or a folder)")
    if script_args.dataset_name is None and not mixture.datasets:
        missing.append("`dataset_name` (a name on the hub, a folder or a file)")
    if missing:
        raise ValueError(f"missing: {' and '.join(missing)}.")


def load_data(
    script_args: DCOScriptArguments, training_args: DCOConfig, mixture: DatasetMixtureConfig
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset | None]:
    """The training set, and the evaluation set if the run evaluates."""
    if mixture.datasets:
        if script_args.dataset_name:
            warnings.warn("`datasets` and `dataset_name` are both given: `dataset_name` is ignored.", stacklevel=2)
        data: Any = get_dataset(mixture)
        # TRL names the splits of a mixture.
        train, test, where = data["train"], "test", "the mixture `datasets`"
    else:
        assert script_args.dataset_name is not None  # or `parse` had refused it
        data = _load(script_args.dataset_name, script_args)
        test, where = script_args.dataset_test_split, f"`dataset_name={script_args.dataset_name}`"
        train = _split(data, script_args.dataset_train_split, where, "Set `dataset_train_split`.")

    if training_args.eval_strategy == "no" and not training_args.eval_on_start:
        return train, None
    if script_args.eval_dataset_name is not None:
        data = _load(script_args.eval_dataset_name, script_args)
        where = f"`eval_dataset_name={script_args.eval_dataset_name}`"
        if len(data) == 1 and test not in data:  # a file has one split
            (test,) = data
        return train, _split(data, test, where, "Set `dataset_test_split`.")
    ways_out = "Set `eval_dataset_name` or `dataset_test_split` (`test_split_size` for a mixture), or"
    return train, _split(data, test, where, f"{ways_out} `eval_strategy='no'`.")


def _load(name: str, script_args: ScriptArguments) -> DatasetDict | IterableDatasetDict:
    path = Path(name)
    files = {"train": path} if is_file(path) else split_files(path)
    if not files or script_args.dataset_config is not None:
        return load_with_datasets(name, script_args.dataset_config, streaming=script_args.dataset_streaming)
    splits = {split: read_dataset(file) for split, file in files.items()}
    if script_args.dataset_streaming:
        return IterableDatasetDict({split: rows.to_iterable_dataset() for split, rows in splits.items()})
    return DatasetDict(splits)


def _split(data: DatasetDict | IterableDatasetDict, split: str, where: str, way_out: str) -> Any:
    if split not in data:
        raise ValueError(f"{where} has no split '{split}': the only splits are {sorted(data)}. {way_out}")
    return data[split]


def make_trainer(
    script_args: DCOScriptArguments,
    training_args: DCOConfig,
    model_args: ModelConfig,
    mixture: DatasetMixtureConfig,
) -> DCOTrainer:
    """The trainer that the arguments describe, made as `trl sft` makes its own."""
    assert model_args.model_name_or_path is not None  # or `parse` had refused it
    training_args.resume_from_checkpoint = checkpoint_to_resume(
        training_args.resume_from_checkpoint,
        training_args.output_dir,
        also=_state_files(training_args),
    )
    train_dataset, eval_dataset = load_data(script_args, training_args, mixture)
    given: Any = training_args.model_init_kwargs
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(given or {}),
    }
    trainer_class: type[DCOTrainer] = DCOTrainer
    further: dict[str, Any] = {}
    if isinstance(script_args, CoTDCOScriptArguments):
        from ..trainer import CoTDCOTrainer  # which needs the extra [eval]

        trainer_class, further = CoTDCOTrainer, {"grader": script_args.grader}
    _check_output(str(training_args.output_dir))
    with naming(model_args.model_name_or_path, "`model_name_or_path`"), _one_import_error():
        return trainer_class(
            model=model_args.model_name_or_path,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
            **further,
        )


def _state_files(args: DCOConfig) -> tuple[str, ...]:
    return (STATE_NAME,) if isinstance(args, CoTDCOConfig) else ()


def _check_output(folder: str) -> None:
    """Raise an `OSError` now, rather than after hours, if the folder cannot be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"`output_dir={folder}` cannot be made or written: {error}. Name another folder.") from error


@contextmanager
def _one_import_error() -> Iterator[None]:
    """Turn Transformers' RuntimeError about a missing tracker of `report_to` into an ImportError."""
    try:
        yield
    except RuntimeError as error:
        if "to be installed" not in str(error):
            raise
        raise ImportError(f"{error} Or leave `report_to` out.") from error


def main(argv: list[str], config_class: type[DCOConfig] = DCOConfig) -> int:
    """Train, save, and push to the hub if asked to; return the exit status."""
    debug = False
    try:
        arguments = parse(argv, config_class)
        training_args = arguments[1]
        debug = training_args.log_level == "debug"
        trainer = make_trainer(*arguments)
    except _USER_ERRORS as error:
        if debug:
            traceback.print_exc()
        print(f"{_command(config_class)}: {told(error)}", file=sys.stderr)
        return 2
    try:
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    except KeyboardInterrupt:
        trainer.accelerator.print(f"\n{_command(config_class)}: {_interrupted(trainer)}", file=sys.stderr)
        return 130
    trainer.save_model(training_args.output_dir)
    # Only a name on the hub is a name that the card can link to.
    name = arguments[0].dataset_name
    on_hub = name if name and not Path(name).exists() else None
    trainer.create_model_card(model_name=Path(str(training_args.output_dir)).name, dataset_name=on_hub)
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=on_hub)
        trainer.accelerator.print(f"Model pushed to https://huggingface.co/{trainer.hub_model_id}.")
    # All together: once a peer is gone, a process may wait for it forever while gloo's threads stop.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return 0


def _interrupted(trainer: DCOTrainer) -> str:
    """The step of an interruption, and how to go on."""
    told = f"interrupted at step {trainer.state.global_step:,}"
    try:
        last = checkpoint_to_resume(True, trainer.args.output_dir, also=_state_files(trainer.args))
    except FileNotFoundError:
        return f"{told}, before a checkpoint was saved (--save_strategy and --save_steps): training starts over"
    return f"{told}; the same command with `--resume_from_checkpoint true` goes on from {last}"


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of each argument, and the description as it is written."""
