"""What `generate` is told beyond Transformers' own: where a token is drawn, and where a stop string ends a row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria

from .tokens import cut_at_stop


class InverseCDF(LogitsProcessor):
    """Draws the token where the cumulative distribution passes the row's next uniform number, and rules out the rest.

    Args:
        uniforms: (rows, max_tokens), float64.
        prompt_width: Tokens before the completion.
        device: Where the scores are.
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
    """Ends a row when its completion holds a stop string, and remembers after how many tokens.

    Transformers' own `StopStringCriteria` also matches strings that begin in the prompt, which neither vLLM nor the
    OpenAI interface does.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str],
        end_ids: Sequence[int],
        prompt_width: int,
        rows: int,
        device: torch.device,
    ):
        self.tokenizer, self.stop, self.prompt_width = tokenizer, stop, prompt_width
        self.end_ids = torch.tensor(end_ids, device=device)
        # A token holds at least one byte of text, so a match that ends in the last token begins within this many; a
        # few more keep it clear of the first, which some tokenizers decode without its space.
        self.tail = max((len(s.encode()) for s in stop), default=0) + 4
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        length = input_ids.shape[1] - self.prompt_width
        self.done |= torch.isin(input_ids[:, -1], self.end_ids)
        open_rows = (~self.done).nonzero().flatten().tolist()
        if not open_rows:
            return self.lengths > 0
        tails = input_ids[open_rows, max(self.prompt_width, input_ids.shape[1] - self.tail) :].tolist()
        texts = self.tokenizer.batch_decode(tails, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for row, text in zip(open_rows, texts, strict=True):
            if cut_at_stop(text, self.stop)[1]:
                self.lengths[row] = length
                self.done[row] = True
        return self.lengths > 0
