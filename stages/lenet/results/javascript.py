"""A trained network as data for network.js, which computes it in a browser."""

import base64
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lenet.network.description import describe
from lenet.network.lenet import ACTIVATIONS, RBF, Normalize, SparseC3, Subsampling

Step = tuple[str, *tuple[Tensor, ...]]
"""An operation of network.js and its numbers, float32 of any shape."""

_NAMES = {activation: name for name, activation in ACTIVATIONS.items()}


def program(network: nn.Sequential) -> dict[str, Any]:
    """A network from `lenet.network.lenet.build`, in evaluation mode, as JSON.

    `layers` are those that `describe` lists, with their `steps`, each the name of an operation and how many numbers
    each of its arguments has. `numbers` has all of these, one after the other: base64 of float32, little-endian.
    """
    steps: dict[str, list[Step]] = {}
    for name, module in network.named_children():
        steps.setdefault(name.partition("_")[0], []).extend(_steps(module))
    layers = [
        {
            "name": row.layer,
            "operation": row.operation,
            "output": row.output,
            "steps": [[name, *(numbers.numel() for numbers in arguments)] for name, *arguments in steps[row.layer]],
        }
        for row in describe(network)
    ]
    numbers = [numbers for each in steps.values() for _, *arguments in each for numbers in arguments]
    return {"layers": layers, "numbers": in_base64(torch.cat([each.detach().flatten() for each in numbers]))}


def in_base64(values: Tensor) -> str:
    """The bytes of a tensor's elements, little-endian."""
    array = values.numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def _steps(module: nn.Module) -> Iterator[Step]:
    """What a module does; a dense layer is a convolution whose kernels cover the maps that it reads."""
    match module:
        case Normalize():
            yield "normalise", torch.stack([torch.tensor(float(module.padding)), module.mean, module.std])
        case SparseC3() | nn.Conv2d() | nn.Linear():
            kernels = module.kernels() if isinstance(module, SparseC3) else module.weight
            # With batch norm, whose shift replaces it, there is no bias.
            yield "convolution", kernels, torch.zeros(len(kernels)) if module.bias is None else module.bias
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            yield "affine", *_as_affine(module)
        case nn.MaxPool2d():
            yield ("maximum",)
        case nn.AvgPool2d():
            yield ("mean",)
        case Subsampling():
            yield ("sum",)
            yield "affine", module.coefficient, module.bias
            yield from _steps(module.activation)
        case RBF():
            yield "rbf", module.codes
        case nn.Flatten() | nn.Dropout():
            pass
        case _:
            yield (_NAMES[type(module)],)


def _as_affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The coefficient and the bias, float32 [maps], of a batch norm in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    coefficient = norm.weight / (norm.running_var + norm.eps).sqrt()
    return coefficient, norm.bias - coefficient * norm.running_mean
