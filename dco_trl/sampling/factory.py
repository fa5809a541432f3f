"""The sampler that a command line or a config asks for by name."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from ..checks import check_names
from ..errors import UserError
from .protocol import Sampler

_CLASSES = {"transformers": "TransformersSampler", "vllm": "VLLMSampler", "server": "ServerSampler"}
SAMPLER_NAMES = tuple(_CLASSES)


def make_sampler(
    name: str,
    model: str,
    *,
    adapter: str | None = None,
    revision: str | None = None,
    base_url: str | None = None,
    progress: bool = True,
    sampler_kwargs: Mapping[str, Any] | None = None,
) -> Sampler:
    """Build the sampler that a command line asked for.

    Args:
        name: "transformers", "vllm" or "server".
        model: Folder or hub name; for "server", the name under which the endpoint serves the model.
        adapter: LoRA adapter folder, or None. For "server" also the name of an adapter that is already served.
        revision: Hub revision of the model. Not for "server": the endpoint has loaded its own.
        base_url: Address of the endpoint, such as `http://127.0.0.1:8000/v1`. "server" needs it, here or in
            `sampler_kwargs`; the others refuse it.
        progress: Show a progress bar on standard error.
        sampler_kwargs: Further arguments of the sampler's constructor, such as `{"batch_size": 128}` for
            "transformers" or `{"max_model_len": 2048}` for "vllm".

    Returns:
        A sampler, loaded and ready.

    Raises:
        UserError: Unknown name; `base_url` missing or not applicable; `revision` for "server"; `sampler_kwargs` names
            what the constructor does not take.

    Examples:
        >>> from dco_trl.sampling import make_sampler
        >>> make_sampler("vlm", "my-model")
        Traceback (most recent call last):
        ...
        UserError: sampler='vlm' is not known. Choose one of: transformers, vllm, server.
    """
    if name not in _CLASSES:
        raise UserError(f"sampler={name!r} is not known. Choose one of: {', '.join(_CLASSES)}.")
    given: dict[str, Any] = {"adapter": adapter, "revision": revision, "base_url": base_url}
    given = {key: value for key, value in given.items() if value is not None}
    kwargs = dict(sampler_kwargs or {})
    twice = [key for key in (*given, "progress") if key in kwargs]
    if twice:
        raise UserError(f"sampler_kwargs repeats {', '.join(twice)}, which has an argument of its own. Give it once.")
    kwargs |= given
    if name != "server" and "base_url" in kwargs:
        raise UserError(
            f"{kwargs['base_url']!r} has no meaning for the sampler {name!r}, which loads the model itself. Leave it "
            "out, or choose 'server'.",
            "base_url",
        )
    sampler_class = getattr(importlib.import_module(__package__), _CLASSES[name])
    if name == "server":
        if "base_url" not in kwargs:
            raise UserError(
                "is missing: the sampler 'server' needs the address of the endpoint, such as http://127.0.0.1:8000/v1.",
                "base_url",
            )
        if "revision" in kwargs:
            raise UserError(
                f"{kwargs['revision']!r} cannot be chosen with the sampler 'server': the endpoint has already loaded "
                "its model. Start the endpoint with that revision, and leave it out here.",
                "revision",
            )
        check_names(sampler_class.__name__, kwargs, set(inspect.signature(sampler_class).parameters) - {"model"})
    try:
        return sampler_class(model, progress=progress, **kwargs)
    except UserError as error:
        # Commands have no flags for these: their --timeout is the grader's.
        if name == "server" and error.argument in (sampler_kwargs or {}):
            raise UserError(f"has the option `{error.argument}`, which {error.message}", "sampler_kwargs") from error
        raise
