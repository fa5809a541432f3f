"""What an attempt may sample: a model, an adapter, a temperature."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """What an attempt may sample.

    Args:
        model: Folder or hub name of the model.
        adapter: Folder of an adapter for it; "" for the model alone.
        temperature: Divides the logits.
        model_fingerprint: Hash of the model's files; "" if it is not a local folder.

    Examples:
        >>> Arm("MODEL", "runs/dco/checkpoint-64", 1.25).name
        'runs/dco/checkpoint-64, T=1.25'
    """

    model: str
    adapter: str = ""
    temperature: float = 1.0
    model_fingerprint: str = ""

    def __post_init__(self) -> None:
        # The shell completes a folder with a slash at its end.
        for field in ("model", "adapter"):
            if isinstance(path := getattr(self, field), str):
                object.__setattr__(self, field, path.rstrip("/") or path)

    @property
    def name(self) -> str:
        """The adapter, or else the model, and the temperature unless it is 1."""
        return (self.adapter or self.model) + (f", T={self.temperature:g}" if self.temperature != 1 else "")
