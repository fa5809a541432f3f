"""`dco-trl train`: fine-tune with DCO from the shell, with the arguments of `trl sft`."""

import argparse
import difflib
import sys
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset
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
from yaml import YAMLError

from ..grading import GraderError
from ..trainer import CoTDCOConfig, CoTDCOTrainer, DCOConfig, DCOTrainer
from ..trainer.checkpoints import checkpoint_to_resume

_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
# What a user's mistake raises, in TRL and below it, before the first step.
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError, DatasetsError, YAMLError, GraderError)

_DESCRIPTION = """\
Fine-tune a language model with Direct Coverage Optimization. Every argument of `trl sft` works (TRL's SFTConfig,
ModelConfig, ScriptArguments and DatasetMixtureConfig), on the command line or in a YAML file; the command line wins.

  dco-trl train --model_name_or_path MODEL --dataset_name data/train.jsonl --num_attempts 256 --output_dir OUT
  dco-trl train --config recipe.yaml --learning_rate 1e-4
  accelerate launch -m dco_trl train --config recipe.yaml

What DCO adds: --num_attempts (N), --loss_reduction, --coverage_at, and --eval_dataset_name for an evaluation set that
is not a split of --dataset_name. Data sets are names on the hub, folders with train.jsonl and test.jsonl, or files
(.jsonl, .json, .parquet, .csv), with the columns `prompt` and `completion`.
"""


@dataclass
class DCOScriptArguments(ScriptArguments):
    """TRL's arguments for the data, and an evaluation set of its own."""

    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Path or name of the dataset to evaluate on. If not given, the split `dataset_test_split` of "
            "`dataset_name` is used."
        },
    )


@dataclass
class CoTDCOScriptArguments(DCOScriptArguments):
    """And what grades sampled rationales."""

    grader: str = field(
        default="math",
        metadata={
            "help": "'math', 'exact', or 'package.module:function' with the signature of a TRL reward function."
        },
    )


def make_parser(config_class: type[DCOConfig] = DCOConfig, prog: str = "dco-trl train") -> TrlParser:
    """TRL's parser over the arguments of `trl sft`, with `DCOConfig` or `CoTDCOConfig` for `SFTConfig`."""
    script_class = CoTDCOScriptArguments if issubclass(config_class, CoTDCOConfig) else DCOScriptArguments
    dataclass_types: Any = (script_class, config_class, ModelConfig, DatasetMixtureConfig)
    return TrlParser(
        dataclass_types,
        prog=prog,
        usage="%(prog)s [--config FILE.yaml] [ARGUMENTS]",
        description=_DESCRIPTION,
        formatter_class=_HelpFormatter,
        # A prefix of a flag is refused, as a prefix of a YAML key is: the next TRL release may make it ambiguous.
        allow_abbrev=False,
    )


def parse(
    argv: list[str], config_class: type[DCOConfig] = DCOConfig
) -> tuple[DCOScriptArguments, DCOConfig, ModelConfig, DatasetMixtureConfig]:
    """Parse flags and `--config FILE`; unknown flags and unknown keys are errors.

    Raises:
        ValueError: An unknown key or flag, or a value out of its range.
    """
    parser = make_parser(config_class)
    parsed: Any = parser.parse_args_and_config(argv, return_remaining_strings=True, separate_remaining_strings=True)
    *arguments, from_config, from_flags = parsed
    known = [action.dest for action in parser._actions]
    for source, words in (("key in the config file", from_config[::2]), ("argument", from_flags)):
        if words:
            name = words[0].removeprefix("--").split("=")[0]
            close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else " `dco-trl train --help` lists what there is."
            raise ValueError(f"unknown {source}: `{name}`.{hint}")
    return tuple(arguments)


def load_data(
    script_args: DCOScriptArguments, training_args: DCOConfig, mixture: DatasetMixtureConfig
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset | None]:
    """The training set, and the evaluation set if there is to be any evaluation.

    Raises:
        ValueError: No data set is named, or a split is not there.
        FileNotFoundError: A file or folder is not there.
    """
    if mixture.datasets:
        if script_args.dataset_name:
            warnings.warn("`datasets` and `dataset_name` are both given: `dataset_name` is ignored.", stacklevel=2)
        data: Any = get_dataset(mixture)
        # TRL's mixture names its splits itself.
        train, test, where = data["train"], "test", "the mixture `datasets`"
    elif script_args.dataset_name:
        data = _load(script_args.dataset_name, script_args)
        test, where = script_args.dataset_test_split, f"`dataset_name={script_args.dataset_name}`"
        train = _split(data, script_args.dataset_train_split, where, "Set `dataset_train_split`.")
    else:
        raise ValueError("no data: give `dataset_name` (a name on the hub, a folder or a file), or `datasets`.")

    if training_args.eval_strategy == "no" and not training_args.eval_on_start:
        return train, None
    if script_args.eval_dataset_name is not None:
        data = _load(script_args.eval_dataset_name, script_args)
        where = f"`eval_dataset_name={script_args.eval_dataset_name}`"
        if len(data) == 1 and test not in data:  # a file: there is nothing to choose
            (test,) = data
        return train, _split(data, test, where, "Set `dataset_test_split`.")
    ways_out = "Set `eval_dataset_name` or `dataset_test_split` (`test_split_size` for a mixture), or"
    return train, _split(data, test, where, f"{ways_out} `eval_strategy='no'`.")


def _load(name: str, script_args: ScriptArguments) -> DatasetDict | IterableDatasetDict:
    path = Path(name)
    if path.suffix in _BUILDERS:
        if not path.is_file():
            raise FileNotFoundError(f"there is no data file {name}.")
        return load_dataset(
            _BUILDERS[path.suffix], data_files={"train": name}, streaming=script_args.dataset_streaming
        )
    return load_dataset(name, name=script_args.dataset_config, streaming=script_args.dataset_streaming)


def _split(data: DatasetDict | IterableDatasetDict, split: str, where: str, way_out: str):
    if split not in data:
        raise ValueError(f"{where} has no split '{split}', only {sorted(data)}. {way_out}")
    return data[split]


def make_trainer(
    script_args: DCOScriptArguments,
    training_args: DCOConfig,
    model_args: ModelConfig,
    mixture: DatasetMixtureConfig,
) -> DCOTrainer:
    """The trainer that the arguments describe, as `trl sft` makes its own.

    Raises:
        ValueError: The arguments do not go together, or name no model or no data.
        OSError: A model, file or checkpoint is not there.
    """
    if model_args.model_name_or_path is None:
        raise ValueError("no model: give `model_name_or_path` (a name on the hub, or a folder).")
    also = CoTDCOTrainer._own_state_files if isinstance(training_args, CoTDCOConfig) else ()
    training_args.resume_from_checkpoint = checkpoint_to_resume(
        training_args.resume_from_checkpoint, training_args.output_dir, also
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
        trainer_class, further = CoTDCOTrainer, {"grader": script_args.grader}
    try:
        return trainer_class(
            model=model_args.model_name_or_path,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
            **further,
        )
    except OSError as error:  # transformers does not always say which model it did not find
        raise OSError(f"cannot load `model_name_or_path={model_args.model_name_or_path}`: {error}") from error


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
        print(f"dco-trl train: {error}", file=sys.stderr)
        return 2
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=arguments[0].dataset_name)
        trainer.accelerator.print(f"Model pushed to https://huggingface.co/{trainer.hub_model_id}.")
    # Together: a process whose peer has gone can wait for it for ever while gloo's threads are taken down.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return 0


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults for each argument, and the description as it is written."""
