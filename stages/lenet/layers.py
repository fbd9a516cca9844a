"""Layers that compute what PyTorch's own do, arranged so that a processor computes them faster.

A LeNet does little arithmetic with many numbers, so its time goes into reading and writing them. PyTorch's 2x2 pooling
picks its numbers one by one, and its tanh costs as much as the convolution in front of it. Here the maps between a
convolution and its pooling are kept **by squares**, float32 [N, maps, 4, H/2, W/2]: the pixels of each 2x2 square, left
column first, in a dimension of their own, so that pooling is arithmetic on long rows. `make bench` times both networks.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, pad


def by_squares(maps: Tensor) -> Tensor:
    """Rearrange [N, maps, H, W], H and W even, to [N, maps, 4, H/2, W/2]."""
    n, count, height, width = maps.shape
    squares = maps.view(n, count, height // 2, 2, width // 2, 2).permute(0, 1, 5, 3, 2, 4)
    return squares.reshape(n, count, 4, height // 2, width // 2)


class Convolution(nn.Conv2d):
    """A 5x5 convolution, stride 1, no padding: float32 [N, inputs, H, W] -> by squares [N, maps, 4, (H-4)/2, (W-4)/2].

    Weights, their names and their initial values are `nn.Conv2d`'s.
    """

    def __init__(self, inputs: int, maps: int, bias: bool) -> None:
        super().__init__(inputs, maps, 5, bias=bias)
        if inputs == 1:
            self.register_buffer("places", _places(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels > 1:
            return by_squares(super().forward(x))
        y: Tensor = _ConvolutionOfOneMap.apply(x, self.weight, self.bias, self.places)
        return y


def _places() -> Tensor:
    """[25, 144], 0 and 1: a flat 5x5 kernel times this is that kernel at each of the four places in a field of 6x6."""
    kernels = torch.eye(25).view(25, 5, 5)
    fields = [pad(kernels, (right, 1 - right, down, 1 - down)) for right in (0, 1) for down in (0, 1)]
    return torch.stack(fields, dim=1).flatten(1)


class _ConvolutionOfOneMap(torch.autograd.Function):
    """The convolution as one of 6x6 with stride 2 that has a map for each pixel of the square.

    A few maps of one input leave most of a processor's lanes idle; these are four times as many. It does 1.44 times the
    arithmetic in less time, and its output is by squares at once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, places: Tensor) -> Tensor:
        kernels = (weight.flatten(1) @ places).view(-1, 1, 6, 6)
        ctx.save_for_backward(x, kernels, places)
        ctx.with_bias = bias is not None
        y = conv2d(x, kernels, None if bias is None else bias[:, None].expand(-1, 4).flatten(), stride=2)
        return y.view(len(x), len(weight), 4, *y.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, kernels, places = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], True, ctx.with_bias]
        options: tuple[Any, ...] = ([2, 2], [0, 0], [1, 1], False, [0, 0], 1, wanted)
        to_x, to_kernels, to_bias = torch.ops.aten.convolution_backward(
            gradient.flatten(1, 2), x, kernels, [len(kernels)], *options
        )
        to_weight = (to_kernels.view(-1, 144) @ places.T).view(-1, 1, 5, 5)
        return to_x, to_weight, to_bias.view(-1, 4).sum(dim=1) if ctx.with_bias else None, None


class AveragePooling(nn.Module):
    """The mean of each 2x2 square: by squares [N, maps, 4, H/2, W/2] -> [N, maps, H/2, W/2]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=2)


class MaxPooling(nn.Module):
    """The greatest of each 2x2 square: by squares [N, maps, 4, H/2, W/2] -> [N, maps, H/2, W/2].

    The gradient goes to the greatest; of equal ones, as in `nn.MaxPool2d`, to the first of the upper row.
    """

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Greater.apply(_Greater.apply(x, 2), 1)
        return y.squeeze(2)


class _Greater(torch.autograd.Function):
    """The element-wise maximum of the two halves of dimension 2, the `half` long each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, half: int) -> Tensor:
        first, second = x.split(half, dim=2)
        ctx.save_for_backward(x)
        return torch.maximum(first, second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        result = torch.empty_like(x)
        half = x.shape[2] // 2
        (first, second), (to_first, to_second) = x.split(half, dim=2), result.split(half, dim=2)
        # ReLU's: the gradient where second - first > 0, else 0. The same with torch.where takes five times as long.
        torch.ops.aten.threshold_backward(gradient, second - first, 0, grad_input=to_second)
        torch.sub(gradient, to_second, out=to_first)
        return result, None


class Tanh(nn.Module):
    """tanh(a) as 2 / (1 + exp(-2a)) - 1, to an error of 2e-7: PyTorch's takes four times as long."""

    def forward(self, a: Tensor) -> Tensor:
        y: Tensor = _Tanh.apply(a)
        return y


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        y = (2 * a).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        result: Tensor = torch.ops.aten.tanh_backward(gradient, y)
        return result
