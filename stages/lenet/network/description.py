"""A network as a table of its layers, with the counts that the paper gives."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lenet.data.idx import SIDE
from lenet.network.lenet import RBF, Normalize, ScaledTanh, SparseC3, Subsampling


class Layer(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    operation : str
        The layer's operation and the norm, activation and dropout that follow it.
    kernel, stride, padding : str
        In pixels; empty where there are none. C5 is dense, the same function as a convolution whose kernel covers S4.
    output : str
        maps@heightxwidth, or the number of units.
    parameters : int
        The trainable ones, including a norm's.
    connections : int
        As the paper counts them: each weight, bias and pooled input once for each unit that uses it.
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
    nn.Conv2d: "convolution",
    SparseC3: "convolution, sparse (table I)",
    nn.MaxPool2d: "maximum",
    nn.AvgPool2d: "mean",
    Subsampling: "trainable subsampling",
    nn.Linear: "dense",
    RBF: "Euclidean RBF, fixed",
    nn.BatchNorm1d: "batch norm",
    nn.BatchNorm2d: "batch norm",
    nn.ReLU: "ReLU",
    nn.Tanh: "tanh",
    ScaledTanh: "1.7159 tanh(2a/3)",
    nn.Sigmoid: "sigmoid",
    nn.Dropout: "dropout",
}


@torch.inference_mode()
def describe(network: nn.Sequential) -> list[Layer]:
    """The layers of a network from `lenet.network.lenet.build`, from input to output."""
    network.eval()
    rows: list[Layer] = []
    x = torch.zeros(1, SIDE, SIDE)
    for name, module in network.named_children():
        y = module(x)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        if "_" in name:
            last = rows[-1]
            operation = f"{last.operation}, {OPERATIONS[type(module)]}"
            rows[-1] = last._replace(operation=operation, parameters=last.parameters + parameters)
        elif not isinstance(module, nn.Flatten):
            rows.append(_layer(name, module, parameters, x, y))
        x = y
    return rows


def _layer(name: str, module: nn.Module, parameters: int, x: Tensor, y: Tensor) -> Layer:
    """The row of a layer that maps x to y, both of a single image."""
    operation = OPERATIONS[type(module)]
    kernel = stride = padding = ""
    connections = 0
    match module:
        case Normalize():
            padding = str(module.padding)
        case nn.Conv2d() | SparseC3():
            kernel, stride, padding = "5x5", "1", "0"
            connections = parameters * y[0, 0].numel()
        case nn.MaxPool2d() | nn.AvgPool2d():
            kernel, stride, padding = "2x2", "2", "0"
            connections = 4 * y.numel()
        case Subsampling():
            operation += f", {OPERATIONS[type(module.activation)]}"
            kernel, stride, padding = "2x2", "2", "0"
            connections = (4 + 1) * y.numel()
        case nn.Linear():
            connections = parameters
        case RBF():
            connections = x.numel() * y.numel()
    if name == "C5":
        side = round((x.numel() / 16) ** 0.5)
        kernel, stride, padding = f"{side}x{side}", "1", "0"
    match y.shape[1:]:
        case (maps, rows, columns):
            output = f"{maps}@{rows}x{columns}"
        case (units,):
            output = str(units)
    return Layer(name, operation, kernel, stride, padding, output, parameters, connections)
