"""The optimiser's step and the schedule of the learning rate."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from lenet.params import Train

State = dict[str, Any]


def weight_decay(options: Train) -> float:
    """train.weight_decay; for `auto` 0.1 with AdamW, else 0, because as an L2 penalty 0.1 prevents learning."""
    if options.weight_decay == "auto":
        return 0.1 if options.optimizer == "adamw" else 0.0
    return options.weight_decay


class Optimizer:
    """The optimiser of `train.optimizer`: SGD with momentum, Adam (L2 penalty) or AdamW (decoupled weight decay).

    It calls the functions behind the classes of `torch.optim`, because constructing such a class imports PyTorch's
    compiler, which takes more than a second.
    """

    def __init__(self, network: nn.Module, options: Train) -> None:
        self.parameters: list[Tensor] = list(network.parameters())
        self.options = options
        # SGD's momentum or Adam's mean of the gradients; Adam's mean of their squares; Adam's count of steps.
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [parameter.new_zeros(()) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rate: Tensor) -> None:
        """Update the parameters, given a gradient for each in the same order; the rate is float32 []."""
        kept: dict[str, Any] = {
            "weight_decay": weight_decay(self.options),
            "lr": learning_rate,
            "maximize": False,
            "fused": True,
        }
        if self.options.optimizer == "sgd":
            momentum: dict[str, Any] = {"momentum": self.options.momentum, "dampening": 0, "nesterov": False}
            sgd(self.parameters, [*gradients], [*self.first], **momentum, **kept)
        else:
            move = adam if self.options.optimizer == "adam" else adamw
            betas: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
            move(self.parameters, [*gradients], self.first, self.second, [], self.steps, **betas, **kept)

    def state_dict(self) -> State:
        """What the next steps depend on besides parameters and options: the tensors themselves, not copies."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def load_state_dict(self, state: State) -> None:
        """Copy the state that `state_dict` returned."""
        for name, mine in self.state_dict().items():
            for tensor, value in zip(mine, state[name], strict=True):
                tensor.copy_(value)


def learning_rate(options: Train, step: int, steps: int) -> float:
    """The learning rate of step 0, 1, ... of the `steps` steps of the whole training.

    `one_cycle`: from a 25th of train.learning_rate up to it over the first 30%, then down to almost 0 (Smith, Topin,
    "Super-convergence", 2017, with the cosine shape and the constants of PyTorch's `OneCycleLR`). `step`: a tenth of
    it after half of the steps, a hundredth after three quarters (He et al., "Deep residual learning", 2016, section
    4.2).
    `constant`, or a single step: train.learning_rate.
    """
    peak = options.learning_rate
    match options.schedule:
        case "one_cycle" if steps > 1:
            top, last = 0.3 * steps - 1, steps - 1
            low, end = peak / 25, peak / 25e4
            if step <= top:
                return _cosine(low, peak, step / top)
            return _cosine(peak, end, (step - top) / (last - top))
        case "step":
            return peak * 0.1 ** ((step >= max(1, steps // 2)) + (step >= max(2, steps * 3 // 4)))
        case _:
            return peak


def _cosine(start: float, end: float, part: float) -> float:
    """The value at `part`, in [0, 1], of the way from start to end along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))
