"""Whole weights of a model whose parameters are spread over processes (FSDP 2, DeepSpeed ZeRO-3)."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from torch.distributed.tensor import DTensor

from .trl_contract import DistributedBackend

# What activation checkpointing adds to the names of parameters.
_WRAPPER = "_checkpoint_wrapped_module."


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no process has the whole model."""
    backend = DistributedBackend(accelerator)
    return backend.is_fsdp or backend.is_zero3


def gather_weights(
    model: torch.nn.Module,
    accelerator: Accelerator,
    keep: Callable[[torch.Tensor], torch.Tensor | None],
    only: Callable[[torch.Tensor], bool] = lambda tensor: True,
) -> dict[str, torch.Tensor]:
    """The state of a sharded model, by the names of an unsharded one. Call it on every process.

    `only` selects tensors, the same ones on every process. They are gathered one at a time. `keep` turns each whole
    tensor into what is returned, or None to leave it out. Tied weights are the same tensor.
    """
    kept: dict[str, torch.Tensor] = {}
    by_id: dict[int, torch.Tensor | None] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not only(tensor):
            continue
        if id(tensor) not in by_id:
            with DistributedBackend(accelerator).gather_params([tensor] if hasattr(tensor, "ds_id") else []):
                by_id[id(tensor)] = keep(_whole(tensor).detach())
        if (value := by_id[id(tensor)]) is not None:
            kept[name.replace(_WRAPPER, "")] = value
    return kept


class Replica:
    """A copy of a sharded model that is whole while it is in use and takes no memory otherwise.

    A process can sample from it without the others. While it is whole, each process holds all weights once more, in
    the precision that training computes in. The argument `model` is unwrapped and not yet sharded by FSDP; the
    attribute `model` is the copy.
    """

    def __init__(self, model: Any, accelerator: Accelerator):
        base = model.get_base_model() if is_peft_model(model) else model
        if getattr(base, "is_quantized", False):
            raise ValueError(
                "A quantised model that is sharded cannot be sampled with `sampler='transformers'`, which would need "
                "all of it on each process. Use `sampler='server'`."
            )
        self._original, self._accelerator = model, accelerator
        hollow = {id(p): _hollow(p) for p in model.parameters()}
        # TRL's own `forward` is bound to the original; the copy needs its class's.
        patched = vars(base).pop("forward", None)
        try:
            self.model: Any = copy.deepcopy(model, dict(hollow))
        finally:
            if patched is not None:
                base.forward = patched
        self._empty = self.model.state_dict()

    @contextmanager
    def filled(self) -> Iterator[None]:
        """Give the copy the current weights while the context lasts. Enter it on every process."""
        policy = getattr(getattr(self._accelerator.state, "fsdp_plugin", None), "mixed_precision_policy", None)
        dtype = getattr(policy, "param_dtype", None)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            is_wide = dtype is not None and tensor.is_floating_point()
            return tensor.to(self._accelerator.device, dtype if is_wide else tensor.dtype, copy=True)

        self.model.load_state_dict(gather_weights(self._original, self._accelerator, keep), assign=True)
        self.model.to(self._accelerator.device)  # buffers that are not part of the state
        try:
            yield
        finally:
            self.model.load_state_dict(self._empty, assign=True)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with FSDP's pieces put together, on its devices even if they were offloaded."""
    if not isinstance(tensor, DTensor):
        return tensor
    pieces: Any = tensor.to(tensor.device_mesh.device_type)
    return pieces.full_tensor()


def _hollow(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3's are empty where they are not gathered
    empty = torch.empty(shape, dtype=parameter.dtype, device="meta")
    return torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
