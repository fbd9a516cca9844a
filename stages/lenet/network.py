"""LeNet-5, as published and as it is taught today, and the multilayer perceptron that it is compared with.

Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86(11),
1998 ("the paper" below), section II.B and figure 2, whose names the layers carry. As published it has 60,000 trainable
parameters (C1 156, S2 12, C3 1,516, S4 32, C5 48,120, F6 10,164). As it is taught today C3 reads every map of S2, the
subsampling has no parameters and the output is linear: 61,706 parameters on 32x32, unpadded on 28x28 44,426.

Between the layers the images of a batch are the last axis, [maps, height, width, N], and a convolution's outputs lie by
their place in the squares of 2x2 that S2 and S4 pool, [4, maps, height / 2, width / 2, N]. So a convolution is one
matrix product, pooling adds four arrays up, and each runs along memory, whatever the number of maps; PyTorch's own
layers, made for networks with many more maps, take 1.5 times as long a step (README, "How fast").
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lenet.idx import SIDE
from lenet.params import Model, check
from lenet.tensors import is_plain, load_pt, refused, write_pt

# Which maps of S2 each map of C3 reads: the paper, table I.
C3_TABLE = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)),
)

# What F6 should show for each digit, a picture of 7x12, "#" for +1 and "." for -1: the paper, figure 3, as one public
# reimplementation transcribed it.
DIGIT_CODES = """
.#####. ...##.. .#####. ####### .#####. .#####. ..####. ####### .#####. .#####.
....... ..###.. ....... .....## ....... ....... .##.... .....## ##...## ##..###
..###.. .####.. .#####. ....##. ....... ####### ##..... .....## ##...## ##...##
.##.##. ...##.. ##...## ...##.. .##..## ##..... ##..... ....##. ##...## ##...##
##...## ...##.. #....## ..####. .##..## ##..... ######. ...##.. .#####. ##..###
##...## ...##.. ....##. .....## ###..## .####.. ###..## ...##.. ##...## .######
##...## ...##.. ..###.. .....## ##...## ..####. ##...## ..##... ##...## .....##
##...## ...##.. .##.... .....## ##...## .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ##..### ##...## ###..## ..##... ##...## ....##.
..###.. .###### ####### .#####. .###### .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
"""


class Normalize(nn.Module):
    """Pad with background and normalise: [N, 28, 28], 0 to 255 -> float32 [1, 28 + 2 padding, 28 + 2 padding, N].

    The mean and the standard deviation of pixels scaled to [0, 1] are buffers, saved with the weights, so that whoever
    uses a trained network cannot use others.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, padding: int, mean: float, std: float) -> None:
        super().__init__()
        self.padding = padding
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        (count, height, width), border = images.shape, self.padding
        x = self.mean.new_zeros(height + 2 * border, width + 2 * border, count)
        x[border : border + height, border : border + width] = images.permute(1, 2, 0)
        return x.sub_(255 * self.mean).div_(255 * self.std).unsqueeze(0)


class Tanh(nn.Module):
    """tanh(a) as 2 / (1 + exp(-2a)) - 1, in place, to an error of 2e-7.

    PyTorch's own takes three times as long on an AMD EPYC, and a third of the time on an Intel Xeon.
    """

    def forward(self, a: Tensor) -> Tensor:
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


class ScaledTanh(Tanh):
    """The paper's squashing function, 1.7159 tanh(2/3 a): section II.B and appendix A."""

    def forward(self, a: Tensor) -> Tensor:
        return 1.7159 * super().forward(2 / 3 * a)


class Convolution(nn.Conv2d):
    """A 5x5 convolution, by squares: float32 [C, H, W, N] -> [4, maps, (H - 4) / 2, (W - 4) / 2, N], H and W even."""

    def __init__(self, inputs: int, maps: int, bias: bool) -> None:
        super().__init__(inputs, maps, 5, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias)


def convolve(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """What `Convolution` does, with kernels [maps, C, 5, 5] and biases [maps]."""
    y: Tensor = _Convolve.apply(x, kernels, bias)
    return y


# The places in a square, as rows and columns from its corner, in the order of a convolution's first axis.
SQUARE = ((0, 0), (0, 1), (1, 0), (1, 1))


class _Convolve(torch.autograd.Function):
    """One product: weights [4 maps, 36 C + 1], a row an output of a square, times windows [36 C + 1, squares of x].

    A column of the windows has the 6x6 pixels around a square, whose four outputs read 5x5 of them each, and a 1, of
    which the weight is the bias.
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
        torch.mm(weights, windows, out=y.view(4 * maps, -1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        windows, weights = ctx.saved_tensors
        (channels, height, width, count), shape, (rows, columns, _) = ctx.shapes
        gradient = gradient.reshape(len(weights), -1)
        of_weights = (gradient @ windows.t()).view(4, len(weights) // 4, -1)
        of_kernels = gradient.new_zeros(shape)
        for kernel, (row, column) in zip(of_weights[..., :-1].view(4, -1, channels, 6, 6), SQUARE, strict=True):
            of_kernels += kernel[..., row : row + 5, column : column + 5]
        of_bias = of_weights[..., -1].sum(dim=0) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, of_kernels, of_bias
        # 6x6 pixels are 3x3 squares of x, and a square is among the pixels around up to nine others.
        around = (weights[:, :-1].t() @ gradient).view(channels, 3, 2, 3, 2, rows, columns, count)
        of_x = gradient.new_zeros(channels, height // 2, 2, width // 2, 2, count)
        for i in range(3):
            for j in range(3):
                of_x[:, i : i + rows, :, j : j + columns].add_(around[:, i, :, j].permute(0, 3, 1, 4, 2, 5))
        return of_x.view(channels, height, width, count), of_kernels, of_bias


class AveragePool(nn.Module):
    """The mean of each square: float32 [4, maps, H, W, N] -> [maps, H, W, N]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=0) / 4


class MaxPool(nn.Module):
    """The maximum of each square: float32 [4, maps, H, W, N] -> [maps, H, W, N]. Equal ones share the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _MaxPool.apply(x)
        return y


class _MaxPool(torch.autograd.Function):
    """`amax`, whose own gradient takes three times as long, because it counts with booleans."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.amax(dim=0)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, y = ctx.saved_tensors
        largest = torch.eq(x, y, out=torch.empty_like(x))
        return largest.mul_(gradient / largest.sum(dim=0))


class Subsampling(nn.Module):
    """The sum of each 2x2 square times a trainable coefficient, plus a trainable bias, both of the map: section II.B.

    float32 [4, maps, H, W, N] -> [maps, H, W, N]. At first it is the square's mean.
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.full((maps, 1, 1), 0.25))
        self.bias = nn.Parameter(torch.zeros(maps, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.coefficient.unsqueeze(3) * x.sum(dim=0) + self.bias.unsqueeze(3)


class BatchNorm(nn.BatchNorm1d):
    """Normalisation over the batch, and over a map where there are maps: float32 [4, maps, H, W, N] or [units, N]."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x.view(4 if x.ndim > 2 else 1, self.num_features, -1))
        return y.view(x.shape)


class Dense(nn.Linear):
    """A dense layer: float32 [inputs, N] -> [units, N]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x if self.bias is None else torch.addmm(self.bias.unsqueeze(1), self.weight, x)


class ImagesFirst(nn.Module):
    """From [units, N] to [N, units], in which the loss and the user of a network expect its logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x.t().contiguous()


class SparseC3(nn.Module):
    """The convolution from 6 to 16 maps that reads only the 60 pairs of maps of table I: 1,516 parameters.

    `weight` [60, 5, 5] holds the kernels of these pairs, `bias` [16]. The others do not exist: nothing can move them.
    """

    pairs: Tensor

    def __init__(self, bias: bool) -> None:
        super().__init__()
        pairs = [6 * to + source for to, sources in enumerate(C3_TABLE) for source in sources]
        self.register_buffer("pairs", torch.tensor(pairs), persistent=False)
        fan_in = torch.tensor([25.0 * len(sources) for sources in C3_TABLE])
        # The bounds of PyTorch's own convolution, with the inputs that each map has.
        bound = fan_in.rsqrt()
        of_pair = bound.repeat_interleave(torch.tensor([len(sources) for sources in C3_TABLE]))
        self.weight = nn.Parameter((2 * torch.rand(len(pairs), 5, 5) - 1) * of_pair[:, None, None])
        self.bias = nn.Parameter((2 * torch.rand(len(C3_TABLE)) - 1) * bound) if bias else None

    def kernels(self) -> Tensor:
        """The kernels of all pairs, [16, 6, 5, 5], zero where table I has no connection."""
        return self.weight.new_zeros(96, 5, 5).index_copy(0, self.pairs, self.weight).view(16, 6, 5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.kernels(), self.bias)


class RBF(nn.Module):
    """Euclidean radial basis functions: minus the squared distance of F6 to the fixed code of each digit.

    float32 [84, N] -> [10, N]: minus the paper's y_i (section II.B), so that as with a linear output the largest is the
    answer, and the softmax gives the probabilities, exp(-y_i) over their sum.
    """

    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        rows = [row.split() for row in DIGIT_CODES.split("\n") if row]
        pictures = ["".join(row[digit] for row in rows) for digit in range(10)]
        codes = [[1.0 if pixel == "#" else -1.0 for pixel in picture] for picture in pictures]
        self.register_buffer("codes", torch.tensor(codes), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # Multiplied out, |x|^2 - 2 x w + 84, it would cancel badly near a code, where it matters.
        return -(x - self.codes.unsqueeze(2)).square().sum(dim=1)


# In place where there is a way: what they are computed from is not needed again.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "tanh": Tanh,
    "scaled_tanh": ScaledTanh,
    "sigmoid": nn.Sigmoid,
}


def build(options: Model) -> nn.Sequential:
    """Build the network of the parameters' model section: uint8 images [N, 28, 28] -> float32 logits [N, 10].

    The largest logit is the answer, the softmax gives the probabilities. Images may be float32 as well, 0 to 255. The
    weights are drawn by PyTorch's global generator, as PyTorch's layers do it. Activations are computed in place: what
    the layer before one gave is overwritten.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(input=Normalize(options.padding, options.mean, options.std))
    bias = not options.batch_norm  # A constant that the norm would take off again.

    def activate(name: str, width: int) -> None:
        if options.batch_norm:
            layers[f"{name}_norm"] = BatchNorm(width)
        layers[f"{name}_activation"] = ACTIVATIONS[options.activation]()

    def convolution(name: str, layer: nn.Module, maps: int) -> None:
        layers[name] = layer
        activate(name, maps)

    def subsampling(name: str, maps: int) -> None:
        match options.pooling:
            case "max":
                layers[name] = MaxPool()
            case "average":
                layers[name] = AveragePool()
            case "trainable":
                layers[name] = Subsampling(maps)
                layers[f"{name}_activation"] = ACTIVATIONS[options.activation]()

    def dense(name: str, inputs: int, units: int) -> None:
        layers[name] = Dense(inputs, units, bias=bias)
        activate(name, units)
        if options.dropout:
            layers[f"{name}_dropout"] = nn.Dropout(options.dropout)

    side = SIDE + 2 * options.padding
    if options.architecture == "mlp":
        layers["flatten"] = nn.Flatten(0, 2)
        dense("H1", side * side, 512)
        dense("H2", 512, 512)
        layers["output"] = Dense(512, 10)
    else:
        convolution("C1", Convolution(1, 6, bias), 6)
        subsampling("S2", 6)
        convolution("C3", SparseC3(bias) if options.c3 == "sparse" else Convolution(6, 16, bias), 16)
        subsampling("S4", 16)
        layers["flatten"] = nn.Flatten(0, 2)
        side = ((side - 4) // 2 - 4) // 2
        dense("C5", 16 * side * side, 120)
        dense("F6", 120, 84)
        layers["output"] = RBF() if options.head == "rbf" else Dense(84, 10)
    layers["logits"] = ImagesFirst()
    return nn.Sequential(layers)


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """The logits, float32 [N, 10], of images, uint8 [N, 28, 28], computed `batch_size` at a time in evaluation mode."""
    was_training = network.training
    network.eval()
    logits = torch.cat([network(batch) for batch in images.split(batch_size)])
    network.train(was_training)
    return logits


def save_model(path: Path, options: Model, network: nn.Module) -> None:
    """Write the model section and the network's `state_dict`, on the CPU, as a dictionary of the two."""
    state = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    write_pt(path, {"model": options.model_dump(), "state_dict": state})


def load_model(path: Path) -> nn.Sequential:
    """Build the network that `save_model` wrote, with its weights, on the CPU.

    Raises
    ------
    InputError
        The file holds no model, its model section is not valid, or its weights are not those of such a network.
    """
    match load_pt(path):
        case {"model": dict() as options, "state_dict": dict() as state}:
            network = build(check(Model, options, f"{path}, its model section"))
        case _:
            raise refused(path, "does not hold a model section and a state_dict")
    expected = network.state_dict()
    for name in expected | state:
        have, want = state.get(name), expected.get(name)
        if have is None or want is None or not is_plain(have) or (have.shape, have.dtype) != (want.shape, want.dtype):
            raise refused(path, f"its weights do not fit its model section: {name!r}")
        if name.startswith("input.") and not have.equal(want):
            raise refused(path, f"its {name} is {have.item():.4g}, but its model section says {want.item():.4g}")
    network.load_state_dict(state)
    return network
