"""PEFT adapters loaded into one model side by side, of which at most one works at a time."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model


class LoadedAdapters:
    """A model and the adapters loaded into it.

    An adapter may have embeddings of its own, for more tokens than the model has. The model's then grow, and tokens
    that are not an adapter's own (`foreign_tokens`) must be kept out of its draws.
    """

    def __init__(self, model: Any):
        self.model = model
        self._names: dict[str, str] = {}  # PEFT's, by folder
        embeddings = (self.base_model.get_input_embeddings(), self.base_model.get_output_embeddings())
        modules = self.base_model.named_modules()
        self._embeddings = tuple(f"base_model.model.{name}." for name, module in modules if module in embeddings)
        self._own_size = 0  # the model's number of tokens before the first adapter
        self._sizes: dict[str, int] = {}  # each adapter's number of tokens

    @property
    def base_model(self) -> Any:
        """The Transformers model. Inside a PEFT model it has the LoRA layers too."""
        return base_of(self.model)

    def _size(self) -> int:
        return self.base_model.get_input_embeddings().weight.shape[0]

    def load(self, adapter: str) -> None:
        """Load an adapter beside the others, unless it is loaded already."""
        from peft import PeftModel

        if adapter in self._names:
            return
        self._own_size = self._own_size or self._size()
        size = self._sizes[adapter] = self._vocabulary_of(adapter) or self._own_size
        if size > self._size():
            loaded = list(self._names)
            self._unload()
            self.base_model.resize_token_embeddings(size, mean_resizing=False)
            for other in loaded:
                self.load(other)
        name = f"adapter-{len(self._names)}"
        if is_peft_model(self.model):
            self.model.load_adapter(adapter, name)
        else:
            self.model = PeftModel.from_pretrained(self.model, adapter, name)
        self._names[adapter] = name

    def clear(self) -> None:
        """Go back to the model alone."""
        self._unload()
        if self._sizes and self._size() != self._own_size:
            self.base_model.resize_token_embeddings(self._own_size)

    def _unload(self) -> None:
        if is_peft_model(self.model):
            from peft.utils import ModulesToSaveWrapper

            modules = self.base_model.named_modules()
            # PEFT would leave the adapter's own modules in the model.
            own = {name: m.original_module for name, m in modules if isinstance(m, ModulesToSaveWrapper)}
            self.model = self.base_model if learns_prompt(self.model) else self.model.unload()
            for name, module in own.items():
                self.model.set_submodule(name, module)
        self._names.clear()

    def working(self, adapter: str | None) -> AbstractContextManager:
        """A context in which only this adapter works; for "", only the model. With None, nothing changes."""
        if adapter:
            self.model.set_adapter(self._names[adapter])
        return self.model.disable_adapter() if adapter == "" and is_peft_model(self.model) else nullcontext()

    def foreign_tokens(self, adapter: str | None) -> range:
        """Ids of the tokens that the model has only for other adapters."""
        return range(self._sizes.get(adapter or "", self._own_size), self._size()) if self._sizes else range(0)

    def _vocabulary_of(self, adapter: str) -> int | None:
        """Number of tokens of an adapter's own embeddings; None if it has none."""
        from safetensors import safe_open

        file = Path(adapter, "adapter_model.safetensors")
        if not file.is_file():
            return None
        with safe_open(file, "np") as tensors:
            keys = [key for key in tensors.keys() if key.startswith(self._embeddings) and "lora_" not in key]
            sizes = (tensors.get_slice(key).get_shape()[0] for key in keys if key.endswith(".weight"))
            return max(sizes, default=None)


def base_of(model: Any) -> Any:
    """The Transformers model: of a PEFT model, the one inside."""
    return model.get_base_model() if is_peft_model(model) else model


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode inside; each module's own mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def learns_prompt(model: Any) -> bool:
    """Whether a PEFT adapter puts virtual tokens in front of the prompt."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))
