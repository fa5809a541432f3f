"""Splits conversations into prompt and completion where the answer cannot be marked within them."""

import copy
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import AutoProcessor

from .columns import count_assistant_turns, counted
from .dco_config import DCOConfig
from .trl_contract import get_config_model_id, get_training_chat_template

logger = get_logger(__name__)


def has_conversations(dataset: Any) -> bool:
    """Whether the rows are whole conversations, in TRL's column `messages`."""
    if not isinstance(dataset, (Dataset, IterableDataset)):
        return False
    columns = set(dataset.column_names or ())
    return "messages" in columns and not columns & {"prompt", "input_ids", "text"}


def drop_unsupported_assistant_mask(dataset: Any, args: DCOConfig, model: Any, processing_class: Any) -> DCOConfig:
    """The arguments, without `assistant_only_loss` if the chat template cannot mark the assistant's tokens.

    Raises:
        ValueError: It cannot, and some rows have several turns, so they cannot be split into prompt and completion.
    """
    if not (args.assistant_only_loss and has_conversations(dataset)) or args.chat_template_path is not None:
        return args
    if processing_class is None:  # as TRL will load it
        given: Any = args.model_init_kwargs or {}
        processing_class = AutoProcessor.from_pretrained(
            model if isinstance(model, str) else get_config_model_id(model.config),
            revision=given.get("revision") if isinstance(model, str) else None,
            trust_remote_code=given.get("trust_remote_code", args.trust_remote_code),
        )
    if processing_class.chat_template is None:
        return args  # TRL's own error
    try:
        get_training_chat_template(processing_class)
        return args
    except ValueError as error:
        several = ""
        if isinstance(dataset, Dataset):
            rows = ~_are_single_turns(dataset)
            if not rows.any():
                args = copy.copy(args)
                args.assistant_only_loss = False
                return args
            several = f"; and {counted(rows, 'train')} do not end with their only assistant turn"
        raise ValueError(
            "The tokenizer's chat template does not mark the assistant's tokens (`{% generation %}`), so "
            f"`assistant_only_loss=True` cannot tell the answer from the prompt{several}. Give the dataset `prompt` "
            "and `completion` columns, one row per assistant turn: `prompt` holds the messages before the turn, "
            "`completion` the turn alone. That works with every template."
        ) from error


def split_conversations(dataset: Any, args: DCOConfig, name: str) -> Any:
    """Split conversations of one answer into `prompt` and `completion`, and say so; leave other data sets alone."""
    if args.assistant_only_loss or not isinstance(dataset, Dataset) or not has_conversations(dataset):
        return dataset
    if not _are_single_turns(dataset).all():
        return dataset
    logger.warning(
        f"The conversations of the {name} dataset have one assistant turn each. They are split into `prompt` (the "
        "messages before it) and `completion` (the turn), because DCO needs the probability of the answer alone."
    )
    with PartialState().main_process_first():  # the others read what it has written
        return dataset.map(
            lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}, remove_columns="messages"
        )


def _are_single_turns(dataset: Dataset) -> np.ndarray:
    """Whether the only message of the assistant is the last, and something comes before it."""
    turns, ends_with_one = count_assistant_turns(dataset, "messages")
    return (turns == 1) & ends_with_one
