"""A network as a table of its layers, with the counts that papers give."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lenet.idx import SIDE
from lenet.network import (
    RBF,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    ImagesFirst,
    MaxPool,
    Normalize,
    ScaledTanh,
    SparseC3,
    Subsampling,
    Tanh,
)


class Layer(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    operation : str
        What the layer does, and the norm, activation and dropout behind it.
    kernel, stride, padding : str
        In pixels; empty where there is none. C5's kernel covers all of S4: a dense layer is the same function.
    output : str
        maps@height x width, or a number of units.
    parameters : int
        Those that are trained, a norm's among them.
    connections : int
        As the paper counts them: each weight, bias and pooled input once for every unit that uses it.
    """

    layer: str
    operation: str
    kernel: str
    stride: str
    padding: str
    output: str
    parameters: int
    connections: int


OPERATIONS = {
    Normalize: "normalise",
    Convolution: "convolution",
    SparseC3: "convolution, sparse (table I)",
    MaxPool: "maximum",
    AveragePool: "mean",
    Subsampling: "trainable subsampling",
    Dense: "dense",
    RBF: "Euclidean RBF, fixed",
    BatchNorm: "batch norm",
    nn.ReLU: "ReLU",
    Tanh: "tanh",
    ScaledTanh: "1.7159 tanh(2a/3)",
    nn.Sigmoid: "sigmoid",
    nn.Dropout: "dropout",
}


@torch.inference_mode()
def describe(network: nn.Sequential) -> list[Layer]:
    """The layers of a network that `lenet.network.build` made, in the order in which an image of 28x28 passes them."""
    network.eval()
    rows: list[Layer] = []
    x = torch.zeros(1, SIDE, SIDE)
    for name, module in network.named_children():
        y = module(x)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        if "_" in name:
            last, operation = rows[-1], OPERATIONS[type(module)]
            rows[-1] = last._replace(
                operation=f"{last.operation}, {operation}", parameters=last.parameters + parameters
            )
        elif not isinstance(module, nn.Flatten | ImagesFirst):
            rows.append(_layer(name, module, parameters, x, y))
        x = y
    return rows


def _layer(name: str, module: nn.Module, parameters: int, x: Tensor, y: Tensor) -> Layer:
    """The row of a layer that makes y of x, for a single image."""
    kernel = stride = padding = ""
    connections = 0
    match module:
        case Normalize():
            padding = str(module.padding)
        case Convolution() | SparseC3():
            kernel, stride, padding = "5x5", "1", "0"
            connections = parameters * y[:, 0].numel()
        case MaxPool() | AveragePool():
            kernel, stride, padding = "2x2", "2", "0"
            connections = 4 * y.numel()
        case Subsampling():
            kernel, stride, padding = "2x2", "2", "0"
            connections = (4 + 1) * y.numel()
        case Dense():
            connections = parameters
        case RBF():
            connections = x.numel() * y.numel()
    if name == "C5":
        side = round((x.numel() / 16) ** 0.5)
        kernel, stride, padding = f"{side}x{side}", "1", "0"
    match y.shape[:-1]:
        case (4, maps, rows, columns):
            output = f"{maps}@{2 * rows}x{2 * columns}"
        case (maps, rows, columns):
            output = f"{maps}@{rows}x{columns}"
        case (units,):
            output = str(units)
    return Layer(name, OPERATIONS[type(module)], kernel, stride, padding, output, parameters, connections)
