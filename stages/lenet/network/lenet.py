"""LeNet-5, as published and as taught today, and the multilayer perceptron that it is compared with.

Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86(11),
1998 ("the paper" below), section II.B and figure 2; the layers are named as there. As published it has 60,000 trainable
parameters. As taught today, C3 reads every map of S2, the subsampling has no parameters and the output is linear:
61,706 parameters on 32x32 pixels, 44,426 on 28x28, for ten classes. `lenet describe lenet5-1998` prints the published
network as a table, `lenet describe` the network of params.yaml.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lenet.data.idx import SIDE
from lenet.data.info import DIGITS
from lenet.errors import InputError
from lenet.params import Model

Layers = OrderedDict[str, nn.Module]


def build(options: Model, classes: Sequence[str] = DIGITS) -> nn.Sequential:
    """Build the network of the parameters' model section: uint8 images [N, 28, 28] -> float32 logits [N, classes].

    The largest logit is the prediction; their softmax gives the probabilities. Images may be float32 too, in [0, 255].
    Like those of PyTorch's layers, the initial weights are drawn from its global generator. Mean and standard deviation
    have to be numbers: `Model.normalised`.

    Raises
    ------
    InputError
        The output layer is to be the paper's, which has pictures of the ten digits, and the classes are others.
    """
    if options.head == "rbf" and tuple(classes) != DIGITS:
        raise InputError(
            "model.head is rbf, whose codes are pictures of the digits 0 to 9, and the classes are others; "
            "use head linear and train.loss cross_entropy or nll"
        )
    layers = mlp(options, len(classes)) if options.architecture == "mlp" else lenet(options, len(classes))
    if options.batch_norm:
        layers = with_batch_norm(layers)
    if options.dropout:
        layers = with_dropout(layers, options.dropout)
    return nn.Sequential(layers)


def lenet(options: Model, classes: int) -> Layers:
    """LeNet-5. Beside each layer: its output's shape on 32x32 pixels with ten classes, its parameters in the paper."""
    squash = ACTIVATIONS[options.activation]
    side = ((SIDE + 2 * options.padding - 4) // 2 - 4) // 2  # Of a map of S4: 5; without padding 4.
    # fmt: off
    layers = OrderedDict(
        input=input_layer(options),                                   # [N,  1, 32, 32]
        C1=nn.Conv2d(1, 6, kernel_size=5),                            # [N,  6, 28, 28]     156
        C1_activation=squash(),
        S2=subsampling(options, maps=6),                              # [N,  6, 14, 14]      12
        C3=c3(options),                                               # [N, 16, 10, 10]   1,516
        C3_activation=squash(),
        S4=subsampling(options, maps=16),                             # [N, 16,  5,  5]      32
        flatten=nn.Flatten(),                                         # [N, 400]
        C5=nn.Linear(16 * side * side, 120),                          # [N, 120]         48,120
        C5_activation=squash(),
        F6=nn.Linear(120, 84),                                        # [N, 84]          10,164
        F6_activation=squash(),
        output=RBF() if options.head == "rbf" else nn.Linear(84, classes),  # [N, 10]         0
    )
    # fmt: on
    if (options.padding, options.pooling, options.c3, options.head) == (2, "trainable", "sparse", "rbf"):
        counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in layers.items()}
        assert {name: count for name, count in counts.items() if count} == PUBLISHED
    return layers


PUBLISHED = {"C1": 156, "S2": 12, "C3": 1_516, "S4": 32, "C5": 48_120, "F6": 10_164}
"""The trainable parameters of each layer in the paper, 60,000 in all."""


def mlp(options: Model, classes: int) -> Layers:
    """The multilayer perceptron 784-512-512-10 of PyTorch's first tutorial, for 28x28 pixels and ten classes."""
    activation = ACTIVATIONS[options.activation]
    side = SIDE + 2 * options.padding
    # fmt: off
    return OrderedDict(
        input=input_layer(options),                                   # [N, 1, 28, 28]
        flatten=nn.Flatten(),                                         # [N, 784]
        H1=nn.Linear(side * side, 512),                               # [N, 512]
        H1_activation=activation(),
        H2=nn.Linear(512, 512),                                       # [N, 512]
        H2_activation=activation(),
        output=nn.Linear(512, classes),                               # [N, 10]
    )
    # fmt: on


def input_layer(options: Model) -> "Normalize":
    """Padding and normalisation, by numbers: `auto` has been replaced."""
    return Normalize(options.padding, float(options.mean), float(options.std))


def subsampling(options: Model, maps: int) -> nn.Module:
    """S2 or S4: each 2x2 square becomes one value."""
    match options.pooling:
        case "max":
            return nn.MaxPool2d(2)
        case "average":
            return nn.AvgPool2d(2)
        case "trainable":
            return Subsampling(maps, ACTIVATIONS[options.activation]())


def c3(options: Model) -> nn.Module:
    """C3: from the 6 maps of S2 to 16 maps, each of which reads all of them or those of table I."""
    return SparseC3() if options.c3 == "sparse" else nn.Conv2d(6, 16, kernel_size=5)


def with_batch_norm(layers: Layers) -> Layers:
    """The layers with a batch norm before each activation; its shift replaces the layer's bias."""
    result: Layers = OrderedDict()
    for name, layer in layers.items():
        unit = name.removesuffix("_activation")
        if unit != name:
            before = result[unit]
            assert isinstance(before.bias, Tensor)
            norm = nn.BatchNorm1d if isinstance(before, nn.Linear) else nn.BatchNorm2d
            result[f"{unit}_norm"] = norm(len(before.bias))
            before.register_parameter("bias", None)
        result[name] = layer
    return result


def with_dropout(layers: Layers, probability: float) -> Layers:
    """The layers with dropout after the activation of each hidden dense layer."""
    result: Layers = OrderedDict()
    for name, layer in layers.items():
        result[name] = layer
        unit = name.removesuffix("_activation")
        if unit != name and isinstance(layers[unit], nn.Linear):
            result[f"{unit}_dropout"] = nn.Dropout(probability)
    return result


class Normalize(nn.Module):
    """Pad with background and normalise: [N, 28, 28] in [0, 255] -> float32 [N, 1, 28 + 2 padding, 28 + 2 padding].

    The mean and the standard deviation of pixels scaled to [0, 1] are buffers, saved with the weights, so that a
    trained network is always used with its own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, padding: int, mean: float, std: float) -> None:
        super().__init__()
        self.padding = padding
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        x = functional.pad(images.unsqueeze(1), 4 * [self.padding])
        return (x / 255 - self.mean) / self.std


class ScaledTanh(nn.Module):
    """The paper's squashing function, 1.7159 tanh(2/3 a): section II.B and appendix A."""

    def forward(self, a: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 / 3 * a)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "scaled_tanh": ScaledTanh,
    "sigmoid": nn.Sigmoid,
}


class Subsampling(nn.Module):
    """The paper's S2 and S4: the sum of each 2x2 square times a trainable coefficient, plus a trainable bias, squashed.

    float32 [N, maps, H, W] -> [N, maps, H / 2, W / 2]; each map has one coefficient and one bias. The initial
    coefficient gives the mean of the square; the paper does not state its own.
    """

    def __init__(self, maps: int, activation: nn.Module) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.full((maps, 1, 1), 0.25))
        self.bias = nn.Parameter(torch.zeros(maps, 1, 1))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        sums = functional.avg_pool2d(x, kernel_size=2, divisor_override=1)
        y: Tensor = self.activation(self.coefficient * sums + self.bias)
        return y


# Which maps of S2 each map of C3 reads: the paper, table I.
C3_TABLE = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)),
)


class SparseC3(nn.Module):
    """The convolution from 6 to 16 maps with the 60 connections between maps of table I: 1,516 parameters.

    float32 [N, 6, H, W] -> [N, 16, H - 4, W - 4]. `weight` [60, 5, 5] holds the kernels of these connections, `bias` is
    [16]. Pairs of maps without a connection have no weights.
    """

    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        pairs = [6 * to + source for to, sources in enumerate(C3_TABLE) for source in sources]
        self.register_buffer("pairs", torch.tensor(pairs), persistent=False)
        fan_in = torch.tensor([25.0 * len(sources) for sources in C3_TABLE])
        # The bounds of PyTorch's convolution, each for the number of inputs that its map has.
        bound = fan_in.rsqrt()
        of_pair = bound.repeat_interleave(torch.tensor([len(sources) for sources in C3_TABLE]))
        self.weight = nn.Parameter((2 * torch.rand(len(pairs), 5, 5) - 1) * of_pair[:, None, None])
        self.bias = nn.Parameter((2 * torch.rand(len(C3_TABLE)) - 1) * bound)

    def kernels(self) -> Tensor:
        """The kernels of all pairs of maps, [16, 6, 5, 5], zero where table I has no connection."""
        return self.weight.new_zeros(96, 5, 5).index_copy(0, self.pairs, self.weight).view(16, 6, 5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.kernels(), self.bias)


# The target of F6 for each digit, a picture of 7x12 with "#" for +1 and "." for -1: the paper, figure 3, as transcribed
# by a public reimplementation.
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


class RBF(nn.Module):
    """Euclidean radial basis functions: minus the squared distance between F6 and the fixed code of each digit.

    float32 [N, 84] -> [N, 10]: minus the paper's y_i (section II.B), so that the largest is the prediction, as with a
    linear output, and the softmax gives the probabilities, exp(-y_i) over their sum.
    """

    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        rows = [row.split() for row in DIGIT_CODES.split("\n") if row]
        pictures = ["".join(row[digit] for row in rows) for digit in range(10)]
        codes = [[1.0 if pixel == "#" else -1.0 for pixel in picture] for picture in pictures]
        self.register_buffer("codes", torch.tensor(codes), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # Not expanded to |x|^2 - 2 x w + 84, which loses precision near a code, where it matters.
        return -(x.unsqueeze(1) - self.codes).square().sum(dim=2)
