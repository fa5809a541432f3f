"""A sampler for tiny Llama models: the forward pass written out, with a cache of fixed size.

`TransformersSampler` spends most of its time in `generate` when a model has a hundred thousand parameters. This one
draws the same samples, from the same uniform numbers, at several times the speed; `tests/research` compares them. It
knows prompts of one length, one token per character, and plain Llama in float32.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dco_trl.sampling import Sample, SampleRequest, SamplingParams
from dco_trl.sampling.transformers_sampler import _uniforms


class FastSampler:
    """Samples a `LlamaForCausalLM` as its weights are at the time.

    Args:
        model: The model. It may be training on another device.
        tokenizer: Its tokenizer.
        device: Where to sample.
        batch_size: Sequences at a time. On a CPU, some hundreds stay in its caches.
    """

    def __init__(self, model: Any, tokenizer: Any, device: str = "cpu", batch_size: int | None = None):
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self.batch_size = batch_size or (1024 if device == "cpu" else 16384)
        self.end_id = tokenizer.eos_token_id

    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Sample]]:
        """As `Sampler.sample`."""
        prompts = torch.tensor([self._ids(request.prompt) for request in requests])
        owners = np.repeat(np.arange(len(requests)), [request.num_samples for request in requests])
        uniforms = np.stack(
            [_uniforms(request, i, params) for request in requests for i in range(request.num_samples)]
        )
        tokens = self._sample(prompts[owners], torch.from_numpy(uniforms), params.temperature)
        results: list[list[Sample]] = [[] for _ in requests]
        for owner, row in zip(owners, tokens.tolist(), strict=True):
            ended = self.end_id in row
            ids = row[: row.index(self.end_id) + 1] if ended else row
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            results[owner].append(Sample(text, tuple(ids), len(ids), "stop" if ended else "length"))
        return results

    def draw(
        self, prompts: Sequence[Any], num_samples: int, max_tokens: int, seed: int, temperature: float
    ) -> torch.Tensor:
        """Tokens of `num_samples` completions of each prompt, prompt after prompt, padded by 0 after their end.

        The uniform numbers are of one generator, on the CPU, and each prompt has the same ones in each call.
        """
        ids = torch.tensor([self._ids(prompt) for prompt in prompts]).repeat_interleave(num_samples, 0)
        generator = torch.Generator().manual_seed(seed)
        uniforms = torch.rand(len(ids), max_tokens, generator=generator, dtype=torch.float64)
        return self._sample(ids, uniforms, temperature)

    def count_correct(
        self, problems: list[dict], num_samples: int, max_tokens: int, seed: int, temperature: float = 1.0
    ) -> np.ndarray:
        """Right answers among `num_samples` of each problem: those that end in "=", the answer, and the end."""
        tails = [self._ids("=" + row["answer"]) + [self.end_id] for row in problems]
        width = max(map(len, tails))
        patterns = torch.tensor([[-1] * (width - len(tail)) + tail for tail in tails])
        patterns = patterns.repeat_interleave(num_samples, 0)
        tokens = self.draw([row["prompt"] for row in problems], num_samples, max_tokens, seed, temperature)
        ended = tokens == self.end_id
        last = torch.where(ended.any(1), ended.int().argmax(1), -1)
        at = last[:, None] - torch.arange(width).flip(0)
        tail = tokens.gather(1, at.clamp(min=0))
        right = (((tail == patterns) & (at >= 0)) | (patterns == -1)).all(1) & (last >= 0)
        return right.view(len(problems), num_samples).sum(1).numpy()

    def _ids(self, text: Any) -> list[int]:
        return text if isinstance(text, list) else self.tokenizer.convert_tokens_to_ids(list(text))

    @torch.inference_mode()
    def _sample(self, prompts: torch.Tensor, uniforms: torch.Tensor, temperature: float) -> torch.Tensor:
        """Completions of each prompt, (rows, max_tokens), padded by 0 after their end."""
        self._read_weights()
        parts = [
            self._sample_batch(some.to(self.device), u.to(self.device), temperature).cpu()
            for some, u in zip(prompts.split(self.batch_size), uniforms.split(self.batch_size), strict=True)
        ]
        return torch.cat(parts)

    def _read_weights(self) -> None:
        weights = {name: value.detach().to(self.device) for name, value in self.model.state_dict().items()}
        config = self.model.config
        self.heads, self.eps = config.num_attention_heads, config.rms_norm_eps
        self.head_dim = config.hidden_size // self.heads
        self.layers = []
        for i in range(config.num_hidden_layers):
            of_layer = {
                name.split(".", 3)[3].removesuffix(".weight"): value
                for name, value in weights.items()
                if name.startswith(f"model.layers.{i}.")
            }
            qkv = torch.cat([of_layer[f"self_attn.{x}_proj"] for x in "qkv"]).T.contiguous()
            up = torch.cat([of_layer[f"mlp.{x}_proj"] for x in ("gate", "up")]).T.contiguous()
            self.layers.append(
                (
                    of_layer["input_layernorm"],
                    qkv,
                    of_layer["self_attn.o_proj"].T.contiguous(),
                    of_layer["post_attention_layernorm"],
                    up,
                    of_layer["mlp.down_proj"].T.contiguous(),
                )
            )
        self.embeddings, self.norm = weights["model.embed_tokens.weight"], weights["model.norm.weight"]
        self.head = weights["lm_head.weight"].T.contiguous()
        frequencies = self.model.model.rotary_emb.inv_freq.detach().to(self.device)
        angles = torch.arange(config.max_position_embeddings, device=self.device)[:, None] * frequencies
        self.cos, self.sin = (x.repeat(1, 2) for x in (angles.cos(), angles.sin()))

    def _sample_batch(self, prompts: torch.Tensor, uniforms: torch.Tensor, temperature: float) -> torch.Tensor:
        rows, width = prompts.shape
        max_tokens = uniforms.shape[1]
        # Keys and values, (rows, heads, tokens, head_dim) for each layer.
        caches = [
            torch.empty(2, rows, self.heads, width + max_tokens, self.head_dim, device=self.device)
            for _ in self.layers
        ]
        logits = self._forward(prompts, 0, caches)
        result = torch.zeros(rows, max_tokens, dtype=torch.long, device=self.device)
        alive = torch.arange(rows, device=self.device)
        done = torch.zeros(rows, dtype=torch.bool, device=self.device)
        for t in range(max_tokens):
            cdf = (logits.double() / temperature).softmax(-1).cumsum(-1)
            total = cdf[:, -1:]
            drawn = torch.minimum(uniforms[alive, t, None] * total, torch.nextafter(total, torch.zeros_like(total)))
            tokens = torch.searchsorted(cdf, drawn, right=True)
            result[alive, t] = tokens[:, 0]
            if t == max_tokens - 1:
                break
            done[alive] |= tokens[:, 0] == self.end_id
            open_rows = ~done[alive]
            num_open = int(open_rows.sum())
            if not num_open:
                break
            if num_open < 0.7 * len(alive):
                alive, tokens = alive[open_rows], tokens[open_rows]
                caches = [cache[:, open_rows] for cache in caches]
            logits = self._forward(tokens, width + t, caches)
        return result

    def _forward(self, tokens: torch.Tensor, start: int, caches: list[torch.Tensor]) -> torch.Tensor:
        """Logits after the last of these tokens, which stand from `start` on."""
        rows, length = tokens.shape
        end = start + length
        cos, sin = self.cos[start:end], self.sin[start:end]
        mask = None if length == 1 else torch.ones(length, end, dtype=torch.bool, device=tokens.device).tril(start)
        x = self.embeddings[tokens]
        for (norm_in, qkv, out, norm_mlp, up, down), cache in zip(self.layers, caches, strict=True):
            q, k, v = (self._normed(x, norm_in) @ qkv).view(rows, length, 3, self.heads, self.head_dim).unbind(2)
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            cache[0, :, :, start:end], cache[1, :, :, start:end] = _rotated(k, cos, sin), v
            scores = _rotated(q, cos, sin) @ cache[0, :, :, :end].transpose(-1, -2) / self.head_dim**0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            mixed = scores.softmax(-1) @ cache[1, :, :, :end]
            x = x + mixed.transpose(1, 2).reshape(rows, length, -1) @ out
            gate, value = (self._normed(x, norm_mlp) @ up).chunk(2, -1)
            x = x + (torch.nn.functional.silu(gate) * value) @ down
        return self._normed(x[:, -1], self.norm) @ self.head

    def _normed(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * scale


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin
