"""Everything private in TRL and Transformers that the trainers rely on, checked when a trainer is constructed.

A TRL release may change any of this. Constructing a trainer then raises one error that names the version and the
change, instead of computing a wrong loss.
"""

import copy
import inspect
from types import SimpleNamespace
from typing import Any

import torch
import transformers
import trl
from trl import SFTTrainer

# For each method, the arguments after `self` that are passed to it, or that it passes to an override.
_METHODS = {
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "create_model_card": ("model_name", "dataset_name", "tags"),
    "evaluation_loop": ("dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"),
    "get_batch_samples": ("epoch_iterator", "num_batches", "device"),
    "log": ("logs", "start_time"),
    "_get_num_items_in_batch": ("batch_samples", "device"),
    "_get_output_dir": ("trial",),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_prepare_dataset": ("dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"),
    "_save_checkpoint": ("model", "trial"),
    "_save_rng_state": ("output_dir",),
    "_set_signature_columns_if_needed": (),
}
# Attributes of a constructed trainer.
_ATTRIBUTES = "_metrics _total_train_tokens _signature_columns _skip_prepare_dataset _tokenizer padding_free".split()


def _refuse(changes: list[str]) -> str:
    return (
        f"`dco_trl` does not work with TRL {trl.__version__} and Transformers {transformers.__version__}: "
        f"{'; '.join(changes)}. Install a TRL version that `dco_trl` supports: see the dependencies in its package "
        "metadata."
    )


try:
    from trl.chat_template_utils import get_training_chat_template as get_training_chat_template
    from trl.distributed import DistributedBackend as DistributedBackend
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as DataCollatorForLanguageModeling
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling as DataCollatorForVisionLanguageModeling
    from trl.trainer.utils import get_config_model_id as get_config_model_id
except ImportError as error:
    raise ImportError(_refuse([str(error)])) from error


def check_methods() -> None:
    """Raise a `RuntimeError` unless `SFTTrainer` has the methods that are called or overridden here, as they were."""
    changes = []
    for name, expected in _METHODS.items():
        method = getattr(SFTTrainer, name, None)
        if method is None:
            changes.append(f"`SFTTrainer.{name}` is gone")
            continue
        found = list(inspect.signature(method).parameters)[1:]
        if tuple(found[: len(expected)]) != expected:
            changes.append(f"`SFTTrainer.{name}` takes ({', '.join(found)}), not ({', '.join(expected)})")
    if changes:
        raise RuntimeError(_refuse(changes))


def check_attributes(trainer: SFTTrainer) -> None:
    """Raise a `RuntimeError` unless a trainer that was made has the attributes that are read or set here."""
    changes = [f"`SFTTrainer` no longer has `{name}`" for name in _ATTRIBUTES if not hasattr(trainer, name)]
    if changes:
        raise RuntimeError(_refuse(changes))


def check_loss_uses_log_probs(trainer: SFTTrainer) -> None:
    """Raise a `RuntimeError` if TRL does not compute the loss from the `log_probs` of the model that it is handed."""
    device = trainer.accelerator.device
    label_mask = torch.tensor([[False, True, True]], device=device)
    log_probs, zero = torch.tensor([[0.0, -3.0, -5.0]], device=device), torch.zeros((), device=device)
    entropy, is_top1 = torch.zeros_like(log_probs), torch.zeros_like(label_mask)
    ids = torch.zeros((1, 4), dtype=torch.long, device=device)
    metrics, num_tokens = copy.deepcopy(trainer._metrics), trainer._total_train_tokens
    asked_for = []

    def model(**kwargs: Any) -> SimpleNamespace:
        asked_for.append(kwargs.get("fused_lm_head"))
        known = {"loss": zero, "aux_loss": zero, "entropy": entropy, "is_top1": is_top1}
        return SimpleNamespace(log_probs=log_probs, label_mask=label_mask, **known)

    try:
        inputs = {"input_ids": ids, "labels": ids, "attention_mask": ids + 1}
        loss = SFTTrainer.compute_loss(trainer, model, inputs).item()
        found = f"calls with fused_lm_head={asked_for}, loss {loss}"
    except Exception as error:  # whatever a future TRL trips over
        found = f"{type(error).__name__}: {error}"
    finally:
        trainer._metrics, trainer._total_train_tokens = metrics, num_tokens
    if found != "calls with fused_lm_head=[True], loss 4.0":
        change = (
            "`SFTTrainer.compute_loss` no longer computes its loss from the `log_probs` of `model(..., "
            f"fused_lm_head=True)`, so the coverage weights would be ignored ({found})"
        )
        raise RuntimeError(_refuse([change]))
