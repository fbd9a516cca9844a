"""What a training makes small: a function of the logits, float32 [N, 10], and the labels, int64 [N], for each loss."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, nll_loss

Loss = Callable[[Tensor, Tensor], Tensor]

# The paper has a positive constant j and does not give it.
RBF_J = 10.0


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean negative log-likelihood after a log-softmax, in nats: cross-entropy in the tutorials' two steps."""
    return nll_loss(log_softmax(logits, dim=1), labels)


def rbf(logits: Tensor, labels: Tensor) -> Tensor:
    """The paper's loss, equation 9, of the RBF layer's logits, which are minus its y_i: float32 [N, 10] -> [].

    The mean of y_right + log(exp(-j) + sum_i exp(-y_i)): cross-entropy with an eleventh class, rubbish, whose logit is
    always -j. It keeps the distance to the right code from growing where only its lead over the others would matter.
    """
    rubbish = logits.new_full((len(logits), 1), -RBF_J)
    return cross_entropy(torch.cat([logits, rubbish], dim=1), labels)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "nll": nll, "rbf": rbf}
