"""Samplers: draw completions from a model, the same way whichever library runs it.

`protocol` says what a sampler is. `TransformersSampler` needs only Transformers, `VLLMSampler` runs vLLM in this
process, `ServerSampler` talks to an OpenAI-compatible endpoint, `RaySampler` runs copies of a sampler on a cluster.
`exact_coverage` needs no sampling. The public names, listed in `__init__.pyi`, are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
