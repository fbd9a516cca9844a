"""LeNet-5, as published and as it is taught today, and the multilayer perceptron that it is compared with.

Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86(11),
1998 ("the paper" below), section II.B and figure 2, whose names the layers carry. As published it has 60,000 trainable
parameters (C1 156, S2 12, C3 1,516, S4 32, C5 48,120, F6 10,164). As it is taught today C3 reads every map of S2, the
subsampling has no parameters and the output is linear: 61,706 parameters on 32x32, unpadded on 28x28 44,426.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import avg_pool2d, conv2d, pad

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
    """Pad with background and normalise: [N, 28, 28], 0 to 255 -> float32 [N, 1, 28 + 2 padding, 28 + 2 padding].

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
        padded = pad(images.unsqueeze(1), 4 * [self.padding])
        return padded.to(self.mean.dtype).sub(255 * self.mean).div_(255 * self.std)


class Tanh(nn.Module):
    """tanh(a) as 2 / (1 + exp(-2a)) - 1, to an error of 2e-7: on a processor PyTorch's own takes four times as long."""

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


class ScaledTanh(Tanh):
    """The paper's squashing function, 1.7159 tanh(2/3 a): section II.B and appendix A."""

    def forward(self, a: Tensor) -> Tensor:
        return 1.7159 * super().forward(2 / 3 * a)


class Subsampling(nn.Module):
    """The sum of each 2x2 square times a trainable coefficient, plus a trainable bias, both of the map: section II.B.

    float32 [N, maps, H, W] -> [N, maps, H/2, W/2]. At first it is the square's mean.
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.full((maps, 1, 1), 0.25))
        self.bias = nn.Parameter(torch.zeros(maps, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.coefficient * avg_pool2d(x, 2) + self.bias


class SparseC3(nn.Module):
    """The 5x5 convolution from 6 to 16 maps that reads only the 60 pairs of maps of table I: 1,516 parameters.

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
        return conv2d(x, self.kernels(), self.bias)


class RBF(nn.Module):
    """Euclidean radial basis functions: minus the squared distance of F6 to the fixed code of each digit.

    float32 [N, 84] -> [N, 10]: minus the paper's y_i (section II.B), so that as with a linear output the largest is the
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
        return -(x.unsqueeze(1) - self.codes).square().sum(dim=2)


ACTIVATIONS = {"relu": nn.ReLU, "tanh": Tanh, "scaled_tanh": ScaledTanh, "sigmoid": nn.Sigmoid}


def build(options: Model) -> nn.Sequential:
    """Build the network of the parameters' model section: uint8 images [N, 28, 28] -> float32 logits [N, 10].

    The largest logit is the answer, the softmax gives the probabilities. Images may be float32 as well, 0 to 255. The
    weights are drawn by PyTorch's global generator, as PyTorch's layers do it.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(input=Normalize(options.padding, options.mean, options.std))
    bias = not options.batch_norm  # A constant that the norm would take off again.

    def activate(name: str, norm: nn.Module) -> None:
        if options.batch_norm:
            layers[f"{name}_norm"] = norm
        layers[f"{name}_activation"] = ACTIVATIONS[options.activation]()

    def convolution(name: str, layer: nn.Module, maps: int) -> None:
        layers[name] = layer
        activate(name, nn.BatchNorm2d(maps))

    def subsampling(name: str, maps: int) -> None:
        match options.pooling:
            case "max":
                layers[name] = nn.MaxPool2d(2)
            case "average":
                layers[name] = nn.AvgPool2d(2)
            case "trainable":
                layers[name] = Subsampling(maps)
                layers[f"{name}_activation"] = ACTIVATIONS[options.activation]()

    def dense(name: str, inputs: int, units: int) -> None:
        layers[name] = nn.Linear(inputs, units, bias=bias)
        activate(name, nn.BatchNorm1d(units))
        if options.dropout:
            layers[f"{name}_dropout"] = nn.Dropout(options.dropout)

    side = SIDE + 2 * options.padding
    if options.architecture == "mlp":
        layers["flatten"] = nn.Flatten()
        dense("H1", side * side, 512)
        dense("H2", 512, 512)
        layers["output"] = nn.Linear(512, 10)
    else:
        convolution("C1", nn.Conv2d(1, 6, 5, bias=bias), 6)
        subsampling("S2", 6)
        convolution("C3", SparseC3(bias) if options.c3 == "sparse" else nn.Conv2d(6, 16, 5, bias=bias), 16)
        subsampling("S4", 16)
        layers["flatten"] = nn.Flatten()
        side = ((side - 4) // 2 - 4) // 2
        dense("C5", 16 * side * side, 120)
        dense("F6", 120, 84)
        layers["output"] = RBF() if options.head == "rbf" else nn.Linear(84, 10)
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
    state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
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
