"""The sampler that a command line asks for by name."""

from collections.abc import Mapping
from typing import Any

from .protocol import Sampler

SAMPLER_NAMES = ("transformers", "vllm", "server")


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
        revision: Hub revision of the model. Not for "server": the endpoint has chosen its own.
        base_url: Address of the endpoint, as `http://127.0.0.1:8000/v1`. Needed by "server", refused by the others.
        progress: Show a progress bar on standard error.
        sampler_kwargs: Further keyword arguments of the sampler's constructor, such as `{"batch_size": 128}` for
            "transformers" or `{"max_model_len": 2048}` for "vllm".

    Returns:
        A sampler, loaded and ready.

    Raises:
        ValueError: Unknown name; `base_url` missing or not applicable; `revision` for "server".

    Examples:
        >>> from dco_trl.sampling import make_sampler
        >>> make_sampler("vlm", "my-model")
        Traceback (most recent call last):
        ...
        ValueError: sampler='vlm' is not known. Choose one of: transformers, vllm, server.
    """
    sampler_kwargs = dict(sampler_kwargs or {})
    if name not in SAMPLER_NAMES:
        raise ValueError(f"sampler={name!r} is not known. Choose one of: {', '.join(SAMPLER_NAMES)}.")
    if name == "server":
        if base_url is None:
            raise ValueError(
                "sampler='server' needs base_url, the address of the endpoint, for example http://127.0.0.1:8000/v1."
            )
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} cannot be chosen with sampler='server': the endpoint has loaded its model "
                "already. Start the endpoint with that revision and leave revision out."
            )
        from .server_sampler import ServerSampler

        return ServerSampler(model, base_url, adapter, progress=progress, **sampler_kwargs)
    if base_url is not None:
        raise ValueError(
            f"base_url={base_url!r} has no meaning for sampler={name!r}, which loads the model itself. "
            "Leave it out, or use sampler='server'."
        )
    if name == "vllm":
        from .vllm_sampler import VLLMSampler

        return VLLMSampler(model, adapter, revision=revision, progress=progress, **sampler_kwargs)
    from .transformers_sampler import TransformersSampler

    return TransformersSampler(model, adapter=adapter, revision=revision, progress=progress, **sampler_kwargs)
