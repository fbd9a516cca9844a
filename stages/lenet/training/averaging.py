"""The exponential moving average of a network's weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Average:
    """A second set of weights, which follows the network's: after each step by (1 - decay) of the way.

    "Weights" are the parameters and the running statistics of batch norm. In the first steps the decay is smaller,
    (1 + step) / (10 + step), so that the initial weights are soon forgotten, as in TensorFlow's
    `ExponentialMovingAverage`. Averages of the iterates are due to Polyak and Juditsky, "Acceleration of stochastic
    approximation by averaging", 1992. With decay 0 nothing is kept, and nothing is done.

    Attributes
    ----------
    other : list of Tensor
        The average, or, after `swap`, the weights that are trained.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = [tensor for tensor in network.state_dict().values() if decay and tensor.is_floating_point()]
        self.other = [tensor.clone() for tensor in self.weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the network's weights after step 1, 2, ... of the training."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mine, tensor in zip(self.other, self.weights, strict=True):
            mine.lerp_(tensor, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's weights and the others."""
        for mine, tensor in zip(self.other, self.weights, strict=True):
            kept = tensor.clone()
            tensor.copy_(mine)
            mine.copy_(kept)

    def load_state(self, other: Sequence[Tensor]) -> None:
        """Copy what `other` was when a checkpoint was written."""
        for mine, tensor in zip(self.other, other, strict=True):
            mine.copy_(tensor)
