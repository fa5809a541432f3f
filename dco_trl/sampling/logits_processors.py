"""What `generate` needs beyond Transformers' own classes: draws from given uniform numbers, and stop strings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria

from .tokens import CONTEXT, Codec, Ends, cut_at_stop


class InverseCDF(LogitsProcessor):
    """Draws the token where the cumulative distribution passes the row's next uniform number, and excludes the rest.

    `uniforms` has the shape (rows, max_tokens). The completion begins after `prompt_width` tokens.
    """

    def __init__(self, uniforms: np.ndarray, prompt_width: int, device: torch.device):
        # Double precision: a cumulative sum over 150,000 tokens in single precision would round rare ones away.
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.uniforms = torch.from_numpy(uniforms).to(device=device, dtype=self.dtype)
        self.prompt_width = prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cdf = scores.to(self.dtype).softmax(-1).cumsum(-1)
        total = cdf[:, -1:]
        drawn = self.uniforms[:, input_ids.shape[1] - self.prompt_width, None] * total
        # Strictly below the total, and to the right of equal entries: a token of probability 0 is never drawn.
        drawn = torch.minimum(drawn, torch.nextafter(total, torch.zeros_like(total)))
        tokens = torch.searchsorted(cdf, drawn, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)


class StopStrings(StoppingCriteria):
    """Ends a row when its completion holds a stop string, and records after how many tokens.

    Transformers' own `StopStringCriteria` also matches strings that begin in the prompt, which neither vLLM nor the
    OpenAI interface does.
    """

    def __init__(
        self, codec: Codec, ends: Ends, prompts: Sequence[list[int]], prompt_width: int, device: torch.device
    ):
        self.codec, self.ends, self.prompt_width = codec, ends, prompt_width
        self.prompts = [ids[-CONTEXT:] for ids in prompts]
        self.end_ids = torch.tensor(ends.ids, device=device)
        # A token that is not special holds at least one byte of text, so a match that ends in the last token begins
        # within this many such tokens.
        self.tail = max((len(s.encode()) for s in ends.strings), default=0)
        self.lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)
        self.done = torch.zeros(len(prompts), dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        length = input_ids.shape[1] - self.prompt_width
        self.done |= torch.isin(input_ids[:, -1], self.end_ids)
        open_rows = (~self.done).nonzero().flatten().tolist()
        contexts, tails = [], []
        for row, ids in zip(open_rows, input_ids[open_rows, self.prompt_width :].tolist(), strict=True):
            start, missing = length, self.tail
            while start and missing:
                start -= 1
                missing -= ids[start] not in self.codec.special_ids
            contexts.append((*self.prompts[row], *ids[max(start - CONTEXT, 0) : start]))
            tails.append(ids[start:])
        for row, text in zip(open_rows, self.codec.texts(contexts, tails), strict=True):
            if cut_at_stop(text, self.ends.strings)[1]:
                self.lengths[row] = length
                self.done[row] = True
        return self.lengths > 0
