"""What a network sees, computed: see `lenet.results.features`."""

import copy

import torch
from torch import Tensor, nn

from lenet.network.backend import predict
from lenet.network.description import describe
from lenet.results.features import Features


@torch.inference_mode()
def observe(network: nn.Sequential, images: Tensor, batch_size: int) -> Features:
    """Look at images, uint8 [N, 28, 28], with a network from `lenet.network.lenet.build`.

    All is computed in double precision, but for the last hidden layer's outputs, and rounded to four decimals, so that
    it does not depend on the order in which a processor adds.
    """
    exact = copy.deepcopy(network).double().eval()
    layers, x = {}, images[:1].double()
    for name, module in exact.named_children():
        x = module(x)
        if name != "flatten":
            # What follows a layer, such as C1_activation, replaces its outputs.
            layers[name.partition("_")[0]] = x[0]
    hidden = predict(network[:-1], images, batch_size).double()
    components, variance = principal_components(hidden, 2)
    arrays = [_first_kernels(exact), hidden @ components - hidden.mean(dim=0) @ components, variance]
    kernels, embedding, shares = (values.round(decimals=4).float().numpy() for values in arrays)
    return Features(
        {name: output.round(decimals=4).float().numpy() for name, output in layers.items()},
        {row.layer: row.operation for row in describe(network)},
        kernels,
        embedding,
        shares,
    )


def principal_components(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first principal components of float64 [N, features], as columns, and the share of the variance along each.

    The direction of a component is arbitrary: its largest element is made positive.
    """
    deviations = x - x.mean(dim=0)
    variances, directions = torch.linalg.eigh(deviations.t() @ deviations / len(x))
    first = directions[:, -count:].flip(1)
    largest = first.gather(0, first.abs().argmax(dim=0, keepdim=True))
    return first * largest.sign(), variances[-count:].flip(0) / variances.sum().clamp(min=1e-12)


def _first_kernels(network: nn.Sequential) -> Tensor:
    """The weights of the first layer that has some, as pictures [K, height, width]."""
    weight = next(module.weight for module in network if isinstance(module, nn.Conv2d | nn.Linear))
    if weight.ndim == 4:
        return weight[:, 0]
    side = round(weight.shape[1] ** 0.5)
    return weight[:32].view(-1, side, side)
