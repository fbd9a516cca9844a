"""How a network is computed on a device: the one place that chooses between the plain network and its quick form."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lenet.network.capture import Step, capture
from lenet.network.quick import quick


class Backend(NamedTuple):
    """The network as a function, images [N, 28, 28] -> logits float32 [N, classes], and what makes a step quicker."""

    forward: Callable[[Tensor], Tensor]
    prepare: Callable[[Step], Step]


def backend(network: nn.Sequential, device: torch.device) -> Backend:
    """The backend, on a device, of a network from `lenet.network.lenet.build`; it shares its parameters and mode."""
    if device.type == "cpu":
        return Backend(quick(network), capture)
    return Backend(network, lambda step: step)


@torch.inference_mode()
def predict(network: nn.Sequential, images: Tensor, batch_size: int) -> Tensor:
    """The logits, float32 [N, classes], of images, uint8 [N, 28, 28]: `batch_size` at a time, in evaluation mode."""
    forward = backend(network, images.device).forward
    was_training = network.training
    network.eval()
    logits = torch.cat([forward(batch) for batch in images.split(batch_size)])
    network.train(was_training)
    return logits
