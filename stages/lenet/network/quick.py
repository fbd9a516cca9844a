"""The networks in a form that is quick on the CPU, and portable: the same functions of the same parameters.

PyTorch's layers are made for networks with many more maps. Here the images of a mini-batch are the last axis, [maps,
height, width, N], and the outputs of a convolution are ordered by their place in the 2x2 squares that S2 and S4 pool,
[4, maps, height / 2, width / 2, N]. So a convolution is one matrix product, pooling reduces the first axis, and both
read memory in order, even with few maps. `python benchmarks/steps.py` measures what each part brings. All products are
those of `lenet.network.products`, which have the same bits on every x86-64 processor; PyTorch's convolutions have not.

Outputs and gradients equal those of the layers in `lenet.network.lenet` up to rounding in float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lenet.network.lenet import Normalize, ScaledTanh, SparseC3, Subsampling
from lenet.network.products import linear, mm

Function = Callable[[Tensor], Tensor]


def quick(network: nn.Sequential) -> Function:
    """A function that computes what the network does, images [N, 28, 28] -> logits [N, classes], in less time.

    Up to `flatten` each layer is replaced, after it the dense ones. All parameters, buffers and modes (training or
    evaluation) are shared with the network.
    """
    flatten = [name for name, _ in network.named_children()].index("flatten")
    layers = [_replacement(layer) for layer in network[: flatten + 1]]
    layers += [_dense(layer) if isinstance(layer, nn.Linear) else layer for layer in network[flatten + 1 :]]

    def forward(images: Tensor) -> Tensor:
        x = images
        for layer in layers:
            x = layer(x)
        return x

    return forward


def _replacement(layer: nn.Module) -> Function:
    """The layer's function in this module's layout; activations are in-place."""
    match layer:
        case Normalize():
            return lambda images: normalize(images, layer.padding, layer.mean, layer.std)
        case nn.Conv2d():
            return lambda x: convolve(x, layer.weight, layer.bias)
        case SparseC3():
            return lambda x: convolve(x, layer.kernels(), layer.bias)
        case nn.BatchNorm2d():
            return lambda x: batch_norm(x, layer)
        case nn.MaxPool2d():
            return max_pool
        case nn.AvgPool2d():
            return lambda x: x.mean(dim=0)
        case Subsampling():
            activation = _replacement(layer.activation)
            return lambda x: activation(layer.coefficient.unsqueeze(3) * x.sum(dim=0) + layer.bias.unsqueeze(3))
        case nn.Flatten():
            return lambda x: x.flatten(0, 2).t()
        case nn.ReLU():
            return functional.relu_
        case nn.Tanh():
            return tanh
        case ScaledTanh():
            return lambda a: 1.7159 * tanh(2 / 3 * a)
        case nn.Sigmoid():
            return torch.sigmoid_
    raise TypeError(f"{type(layer).__name__} is not one of LeNet's layers")


def _dense(layer: nn.Linear) -> Function:
    return lambda x: linear(x, layer.weight, layer.bias)


def normalize(images: Tensor, padding: int, mean: Tensor, std: Tensor) -> Tensor:
    """`Normalize`: [N, 28, 28] -> float32 [1, 28 + 2 padding, 28 + 2 padding, N]."""
    count, height, width = images.shape
    x = mean.new_zeros(height + 2 * padding, width + 2 * padding, count)
    x[padding : padding + height, padding : padding + width] = images.permute(1, 2, 0)
    return x.sub_(255 * mean).div_(255 * std).unsqueeze(0)


def convolve(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """A 5x5 convolution by 2x2 squares: float32 [C, H, W, N] -> [4, maps, (H - 4) / 2, (W - 4) / 2, N], H and W even.

    `kernels` is [maps, C, 5, 5], `bias` [maps].
    """
    y: Tensor = _Convolve.apply(x, kernels, bias)
    return y


# The places in a square, (row, column) from its corner, in the order of the first axis of a convolution's outputs.
SQUARE = ((0, 0), (0, 1), (1, 0), (1, 1))


class _Convolve(torch.autograd.Function):
    """One matrix product: weights [4 maps, 36 C + 1] times windows [36 C + 1, squares].

    A column of the windows holds the 6x6 pixels that the four outputs of a square read, 5x5 each, and a 1, whose weight
    is the bias. A row of the weights gives one of the four outputs, in one map.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
        maps, channels = kernels.shape[:2]
        around = x.unfold(1, 6, 2).unfold(2, 6, 2).permute(0, 4, 5, 1, 2, 3)
        squares = around.shape[3:]
        windows = x.new_empty(36 * channels + 1, squares.numel())
        windows[:-1].view(around.shape).copy_(around)
        windows[-1] = 1
        weights = x.new_zeros(4, maps, 36 * channels + 1)
        for kernel, (row, column) in zip(weights[..., :-1].view(4, maps, channels, 6, 6), SQUARE, strict=True):
            kernel[..., row : row + 5, column : column + 5] = kernels
        if bias is not None:
            weights[..., -1] = bias
        weights = weights.flatten(0, 1)
        ctx.save_for_backward(windows, weights)
        ctx.shapes = x.shape, kernels.shape, squares
        y = x.new_empty(4, maps, *squares)
        mm(weights, windows, out=y.view(4 * maps, -1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        windows, weights = ctx.saved_tensors
        (channels, height, width, count), shape, (rows, columns, _) = ctx.shapes
        gradient = gradient.reshape(len(weights), -1)
        of_weights = mm(gradient, windows.t()).view(4, len(weights) // 4, -1)
        of_kernels = gradient.new_zeros(shape)
        for kernel, (row, column) in zip(of_weights[..., :-1].view(4, -1, channels, 6, 6), SQUARE, strict=True):
            of_kernels += kernel[..., row : row + 5, column : column + 5]
        of_bias = of_weights[..., -1].sum(dim=0) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, of_kernels, of_bias
        # 6x6 pixels are 3x3 squares of x, so each square of x is in the windows of up to nine squares.
        around = mm(weights[:, :-1].t(), gradient).view(channels, 3, 2, 3, 2, rows, columns, count)
        of_x = gradient.new_zeros(channels, height // 2, 2, width // 2, 2, count)
        for i in range(3):
            for j in range(3):
                of_x[:, i : i + rows, :, j : j + columns].add_(around[:, i, :, j].permute(0, 3, 1, 4, 2, 5))
        return of_x.view(channels, height, width, count), of_kernels, of_bias


def batch_norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    """`BatchNorm2d`: float32 [4, maps, H, W, N] -> the same shape, each map normalised (Ioffe, Szegedy, 2015).

    PyTorch's own is made for maps whose images lie one after the other, and slower in this layout.
    """
    mean, variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    if not layer.training:
        scale = layer.weight * (variance + layer.eps).rsqrt()
        return (x - _by_map(mean)).mul_(_by_map(scale)).add_(_by_map(layer.bias))
    layer.get_buffer("num_batches_tracked").add_(1)
    y: Tensor = _BatchNorm.apply(x, layer.weight, layer.bias, mean, variance, layer.momentum, layer.eps)
    return y


class _BatchNorm(torch.autograd.Function):
    """With the statistics of the mini-batch, by which it updates the running ones in-place.

    The gradient is algorithm 1's of the paper, in the order of operations that needs the fewest passes over memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        count = x.numel() // len(weight)
        mean = _sum_by_map(x) / count
        centred = x - _by_map(mean)
        variance = torch.linalg.vector_norm(centred.flatten(2), dim=2).square_().sum(dim=0) / count
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (count / (count - 1)), momentum)
        inverse = (variance + eps).rsqrt_()
        ctx.save_for_backward(centred, weight, inverse)
        return centred.mul(_by_map(weight * inverse)).add_(_by_map(bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight, inverse = ctx.saved_tensors
        count = centred.numel() // len(weight)
        of_x = gradient * centred
        of_weight, of_bias = _sum_by_map(of_x) * inverse, _sum_by_map(gradient)
        scale = weight * inverse
        torch.mul(centred, _by_map(-scale * inverse * of_weight / count), out=of_x)
        of_x.sub_(_by_map(scale * of_bias / count)).addcmul_(gradient, _by_map(scale))
        return of_x, of_weight, of_bias, None, None, None, None


def _by_map(values: Tensor) -> Tensor:
    """[maps] -> [maps, 1, 1, 1], to be used with [4, maps, H, W, N]."""
    return values[:, None, None, None]


def _sum_by_map(x: Tensor) -> Tensor:
    """[4, maps, H, W, N] -> [maps]."""
    return x.flatten(2).sum(dim=2).sum(dim=0)


def max_pool(x: Tensor) -> Tensor:
    """The maximum of each square, [4, ...] -> [...]; among equals the first gets the gradient, as in PyTorch."""
    y: Tensor = _MaxPool.apply(x)
    return y


class _MaxPool(torch.autograd.Function):
    """The first of equal maxima gets the gradient; `amax` shares it among them, and is slower."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.amax(dim=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # Two rounds: 0 against 1 and 2 against 3, then the two maxima.
        upper, lower = x[:2].amax(dim=0), x[2:].amax(dim=0)
        of_x = torch.empty_like(x)
        of_upper = gradient * torch.ge(upper, lower, out=upper)
        of_lower = gradient - of_upper
        for of_pair, first, place in ((of_upper, x[0], 0), (of_lower, x[2], 2)):
            won = torch.ge(first, x[place + 1], out=of_x[place])
            torch.sub(of_pair, won.mul_(of_pair), out=of_x[place + 1])
        return of_x


def tanh(a: Tensor) -> Tensor:
    """tanh(a) as 2 / (1 + exp(-2a)) - 1, in-place, with an error of at most 2e-7.

    PyTorch's own is slower on some processors and quicker on others (`benchmarks/steps.py`).
    """
    y: Tensor = _Tanh.apply(a)
    return y


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        y = a.mul_(2).sigmoid_().mul_(2).sub_(1)
        ctx.mark_dirty(a)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        result: Tensor = torch.ops.aten.tanh_backward(gradient, y)
        return result
