r"""Token-level objectives that a user would weigh against DCO, each from its own paper's formula.

Every function takes the logits and the labels of the completion tokens, shapes (tokens, vocabulary) and (tokens,), and
returns one loss a token, in nats, shape (tokens,). With \(z\) the logits, \(\pi = \mathrm{softmax}(z)\) and \(y\) the
label:

- label smoothing, Szegedy et al., arXiv 1512.00567, section 7:
  \(-(1-\epsilon)\log\pi_y - \frac{\epsilon}{V}\sum_v \log\pi_v\);
- focal loss, Lin et al., arXiv 1708.02002, equation 4: \(-(1-\pi_y)^\gamma\log\pi_y\);
- entropy bonus (confidence penalty), Pereyra et al., arXiv 1701.06548, section 3: \(-\log\pi_y - \lambda H(\pi)\);
- GEM, Li et al., arXiv 2408.16673: \(-\sum_v q_v w_v (\log\pi_y - \log\pi_v)\) with
  \(q = \mathrm{softmax}(z/\beta)\), held constant, and \(w_v = h'(\log\pi_y - \log\pi_v)\), held constant: 1 for
  \(h(u) = u\), and \(\sigma(0.01(z_v - z_y))\) for the log-sigmoid as its authors use it. With \(h(u) = u\) its
  gradient in \(z\) is \(q\) minus the label: cross-entropy of a model sharpened by \(1/\beta\).
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

# Scale inside GEM's log-sigmoid, as its authors' released code has it.
GEM_SIGMOID_SCALE = 0.01


def label_smoothing(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    log_probs = log_softmax(logits, -1)
    return -(1 - epsilon) * _of_label(log_probs, labels) - epsilon * log_probs.mean(-1)


def focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    log_p = _of_label(log_softmax(logits, -1), labels)
    return -((-torch.expm1(log_p)) ** gamma) * log_p


def entropy_bonus(logits: Tensor, labels: Tensor, strength: float) -> Tensor:
    log_probs = log_softmax(logits, -1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return -_of_label(log_probs, labels) - strength * entropy


def gem(logits: Tensor, labels: Tensor, beta: float, h: str) -> Tensor:
    log_probs = log_softmax(logits, -1)
    behind = _of_label(log_probs, labels)[:, None] - log_probs
    q = softmax(logits.detach() / beta, -1)
    if h == "logsigmoid":
        q = q * torch.sigmoid(-GEM_SIGMOID_SCALE * behind.detach())
    elif h != "linear":
        raise ValueError(f"h: got {h!r}; GEM is documented for 'linear' and 'logsigmoid'")
    return -(q * behind).sum(-1)


def _of_label(log_probs: Tensor, labels: Tensor) -> Tensor:
    return log_probs.gather(-1, labels[:, None])[:, 0]
