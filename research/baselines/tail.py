"""TailSFT (arXiv 2608.25756) as read here: each epoch leaves out the examples whose loss fell most.

A fixed share of the examples is left out of an epoch: those whose loss has fallen most since it was first seen. An
example that is left out still passes through the model, so its loss is known, and it returns once others fell more.
The first epoch leaves out none. The share is the only setting.
"""

import torch
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

IGNORED = -100


class TailTrainer(SFTTrainer):
    """Cross-entropy, the mean over the tokens of the examples that take part.

    Args:
        dropped: Share of the examples that an epoch leaves out, at least 0 and below 1.
    """

    def __init__(self, *args, dropped: float, **kwargs):
        super().__init__(*args, **kwargs)
        if not 0 <= dropped < 1:
            raise ValueError(f"dropped: got {dropped}; give a share of at least 0 and below 1")
        self.dropped = dropped
        self.left_out: set[tuple[int, ...]] = set()
        self.first_loss: dict[tuple[int, ...], float] = {}
        self.last_loss: dict[tuple[int, ...], float] = {}
        self._epoch = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        epoch = int(self.state.epoch or 0)
        if epoch > self._epoch:
            self._epoch = epoch
            self.left_out = self.fallen_most()
        labels = inputs["labels"][:, 1:]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False)
        losses = cross_entropy(outputs.logits[:, :-1].transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        mask = labels != IGNORED
        attended = inputs["attention_mask"].bool()
        # An example is known by its tokens: prompts differ.
        examples = [tuple(row[kept].tolist()) for row, kept in zip(inputs["input_ids"], attended, strict=True)]
        for example, loss in zip(examples, (losses.detach().sum(1) / mask.sum(1)).tolist(), strict=True):
            self.first_loss.setdefault(example, loss)
            self.last_loss[example] = loss
        takes_part = torch.tensor([example not in self.left_out for example in examples], device=mask.device)
        mask = mask & takes_part[:, None]
        loss = (losses * mask).sum() / mask.sum().clamp(min=1)
        return (loss, outputs) if return_outputs else loss

    def fallen_most(self) -> set[tuple[int, ...]]:
        """The share of the examples seen so far that is left out next."""
        fell = {example: first - self.last_loss[example] for example, first in self.first_loss.items()}
        return set(sorted(fell, key=fell.__getitem__, reverse=True)[: int(self.dropped * len(fell))])
