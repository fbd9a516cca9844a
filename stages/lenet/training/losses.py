"""The losses that training minimises, each a function of logits, float32 [N, classes], and labels, int64 [N]."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, nll_loss

from lenet.params import Train

Loss = Callable[[Tensor, Tensor], Tensor]

# The paper calls j a positive constant and does not give it.
RBF_J = 10.0


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean negative log-likelihood after a log-softmax, in nats: cross-entropy in two steps, as in tutorials."""
    return nll_loss(log_softmax(logits, dim=1), labels)


def rbf(logits: Tensor, labels: Tensor) -> Tensor:
    """The paper's loss, equation 9, of the RBF layer's logits, which are minus its y_i: float32 [N, 10] -> [].

    The mean of y_label + log(exp(-j) + sum_i exp(-y_i)): cross-entropy with an eleventh class, rubbish, whose logit is
    always -j. Without it only the label's lead over the other digits would count, and its own distance could grow.
    """
    rubbish = logits.new_full((len(logits), 1), -RBF_J)
    return cross_entropy(torch.cat([logits, rubbish], dim=1), labels)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "nll": nll, "rbf": rbf}


def training_loss(options: Train) -> Loss:
    """The loss of `train.loss`, with `train.label_smoothing`.

    With smoothing s the targets are not 1 for the label and 0 for the others, but 1 - s + s / classes and s / classes
    (Szegedy et al., "Rethinking the Inception architecture", 2016, section 7).
    """
    if options.label_smoothing:
        return partial(cross_entropy, label_smoothing=options.label_smoothing)
    return LOSSES[options.loss]
