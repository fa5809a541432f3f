"""PEFT adapters that are loaded beside each other into one model, of which one or none works at a time."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model


class LoadedAdapters:
    """A model and the adapters loaded into it.

    An adapter may come with embeddings of its own, of more tokens than the model has: the model's then grow, and the
    tokens that are not an arm's own are to be kept out of its draws.

    Args:
        model: A Transformers or PEFT model.
    """

    def __init__(self, model: Any):
        self.model = model
        self._names: dict[str, str] = {}  # PEFT's, by folder
        embeddings = (self.base_model.get_input_embeddings(), self.base_model.get_output_embeddings())
        modules = self.base_model.named_modules()
        self._embeddings = tuple(f"base_model.model.{name}." for name, module in modules if module in embeddings)
        self._own_size = 0  # the model's, once an adapter has a vocabulary of its own
        self._sizes: dict[str, int] = {}  # of these vocabularies

    @property
    def base_model(self) -> Any:
        """The Transformers model: inside a PEFT model, it holds the LoRA layers too."""
        return self.model.get_base_model() if is_peft_model(self.model) else self.model

    def _size(self) -> int:
        return self.base_model.get_input_embeddings().weight.shape[0]

    def load(self, adapter: str) -> None:
        """Load an adapter beside those that are loaded, unless it is one of them."""
        from peft import PeftModel

        if adapter in self._names:
            return
        self._own_size = self._own_size or self._size()
        size = self._size_of(adapter)
        if size is not None and size != self._own_size:
            self._sizes[adapter] = size
        if size is not None and size > self._size():
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
        if self._sizes:
            self._sizes.clear()
            self.base_model.resize_token_embeddings(self._own_size)

    def _unload(self) -> None:
        if is_peft_model(self.model):
            from peft.utils import ModulesToSaveWrapper

            modules = self.base_model.named_modules()
            # PEFT would leave an adapter's own modules in their place.
            own = {name: m.original_module for name, m in modules if isinstance(m, ModulesToSaveWrapper)}
            learns_prompt = self.model.active_peft_config.is_prompt_learning
            self.model = self.model.get_base_model() if learns_prompt else self.model.unload()
            for name, module in own.items():
                self.model.set_submodule(name, module)
        self._names.clear()

    def working(self, adapter: str | None) -> AbstractContextManager:
        """Whatever else is loaded, this adapter alone works inside; none is the model alone."""
        if adapter:
            self.model.set_adapter(self._names[adapter])
            return nullcontext()
        return self.model.disable_adapter() if is_peft_model(self.model) else nullcontext()

    def foreign_tokens(self, adapter: str | None) -> range:
        """Ids of the tokens that the model has for another adapter only."""
        return range(self._sizes.get(adapter or "", self._own_size), self._size()) if self._sizes else range(0)

    def _size_of(self, adapter: str) -> int | None:
        """Number of tokens of an adapter's own embeddings; None if it has none."""
        from safetensors import safe_open

        file = Path(adapter, "adapter_model.safetensors")
        if not file.is_file():
            return None
        with safe_open(file, "np") as tensors:
            keys = [key for key in tensors.keys() if key.startswith(self._embeddings) and "lora_" not in key]
            keys = [key for key in keys if key.endswith(".weight")]
            return max((tensors.get_slice(key).get_shape()[0] for key in keys), default=None)
