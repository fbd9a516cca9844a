"""The networks: their sizes against the published ones, their outputs against the layers written out by hand."""

import hashlib
import math
from itertools import pairwise

import pytest
import torch
from conftest import DEFAULTS, ROOT, RunLenet, slow_except
from torch import Tensor, nn
from torch.nn import functional as f

from lenet.network.backend import predict
from lenet.network.description import OPERATIONS, describe
from lenet.network.lenet import ACTIVATIONS, C3_TABLE, PUBLISHED, RBF, SparseC3, Subsampling, build
from lenet.params import Model, parse_yaml
from lenet.training.augmentation import random_affine, random_flip
from lenet.training.losses import LOSSES, RBF_J, rbf, training_loss
from lenet.training.optimizer import Optimizer

# From nearly empty to nearly full, so that every ReLU is active on some.
NOISE = torch.rand(70, 28, 28, generator=torch.Generator().manual_seed(0))
IMAGES = (255 * NOISE ** (1 + torch.arange(70) % 7)[:, None, None]).to(torch.uint8)
LABELS = torch.arange(70) % 10


def network(**changes: object) -> nn.Sequential:
    return build(Model(**DEFAULTS.model.model_dump() | changes))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


def preset(name: str) -> nn.Sequential:
    """The network of a preset."""
    path = ROOT / f"presets/{name}.yaml"
    changes = parse_yaml(path.read_bytes(), name)
    assert isinstance(changes, dict)
    return network(**changes.get("model", {}))


@pytest.fixture
def published() -> nn.Sequential:
    """LeNet-5 of 1998, as its preset says."""
    return preset("lenet5-1998")


def test_the_published_network_has_the_published_counts(published: nn.Sequential) -> None:
    rows = {row.layer: row for row in describe(published)}
    assert {name: (row.output, row.parameters, row.connections) for name, row in rows.items()} == {
        "input": ("1@32x32", 0, 0),
        "C1": ("6@28x28", 156, 122_304),
        "S2": ("6@14x14", 12, 5_880),
        "C3": ("16@10x10", 1_516, 151_600),
        "S4": ("16@5x5", 32, 2_000),
        "C5": ("120", 48_120, 48_120),
        "F6": ("84", 10_164, 10_164),
        "output": ("10", 0, 840),
    }
    assert count(published) == sum(row.parameters for row in rows.values()) == sum(PUBLISHED.values()) == 60_000
    assert sum(row.connections for row in rows.values()) == 340_908
    assert [(rows[name].kernel, rows[name].stride, rows[name].padding) for name in ("input", "C1", "S2", "C5")] == [
        ("", "", "2"),
        ("5x5", "1", "0"),
        ("2x2", "2", "0"),
        ("5x5", "1", "0"),
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 61_706),
        ({"padding": 0}, 44_426),
        ({"c3": "sparse"}, 60_806),
        ({"architecture": "mlp", "padding": 0}, 669_706),
    ],
)
def test_the_modern_variants_have_their_published_counts(changes: dict[str, object], expected: int) -> None:
    assert count(network(**changes)) == expected
    assert sum(row.parameters for row in describe(network(**changes))) == expected


def test_describe_prints_the_table(run_lenet: RunLenet) -> None:
    text = run_lenet(ROOT, "describe", "lenet5-1998").output
    assert text.splitlines()[-1].split() == ["total", "60,000", "340,908"]
    assert ["S2", "trainable", "subsampling,", "1.7159", "tanh(2a/3)", "2x2", "2", "0", "6@14x14", "12", "5,880"] in [
        line.split() for line in text.splitlines()
    ]
    assert "ReLU" in run_lenet(ROOT, "describe").output


# The paper, table I, as printed: a column a map of C3, a row a map of S2.
TABLE_1 = """
X...XXX..XXXX.XX
XX...XXX..XXXX.X
XXX...XXX..X.XXX
.XXX..XXXX..X.XX
..XXX..XXXX.XX.X
...XXX..XXXX.XXX
"""


def test_c3_reads_what_table_1_says() -> None:
    columns = zip(*TABLE_1.split(), strict=True)
    assert [tuple(row for row, mark in enumerate(column) if mark == "X") for column in columns] == list(C3_TABLE)


def test_the_codes_are_ten_pictures() -> None:
    """By the checksum of the paper's bitmaps as they were transcribed."""
    pictures = ["".join("#" if value > 0 else "." for value in code) for code in RBF().codes.tolist()]
    assert {len(picture) for picture in pictures} == {84}
    assert hashlib.sha256("\n".join(pictures).encode()).hexdigest() == (
        "c479be39194da2dff90655ef83b04d3aaea09e4cd3521e16d4815d9ebfbef8ec"
    )


def reference(options: Model, state: dict[str, Tensor], images: Tensor) -> Tensor:
    """The network in float64, written as tutorials write it: transform the images, then apply layer after layer."""
    w = {name: tensor.double() for name, tensor in state.items()}
    act = {
        "relu": torch.relu,
        "tanh": torch.tanh,
        "scaled_tanh": lambda a: 1.7159 * torch.tanh(a * 2 / 3),
        "sigmoid": torch.sigmoid,
    }[options.activation]
    p = options.padding
    x = (f.pad(images.double()[:, None], [p, p, p, p]) / 255 - float(options.mean)) / float(options.std)

    def norm(name: str, x: Tensor) -> Tensor:
        if not options.batch_norm:
            return x
        shape = [1, -1, 1, 1][: x.ndim]
        mean, var, scale, shift = (
            w[f"{name}_norm.{key}"].reshape(shape) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    if options.architecture == "mlp":
        x = x.flatten(1)
    else:
        for conv, pool in (("C1", "S2"), ("C3", "S4")):
            kernels = w[f"{conv}.weight"]
            if conv == "C3" and options.c3 == "sparse":
                full = torch.zeros(16, 6, 5, 5, dtype=torch.float64)
                pairs = [(to, source) for to, sources in enumerate(C3_TABLE) for source in sources]
                for kernel, (to, source) in zip(kernels, pairs, strict=True):
                    full[to, source] = kernel
                kernels = full
            x = act(norm(conv, f.conv2d(x, kernels, w.get(f"{conv}.bias"))))
            squares = f.unfold(x.flatten(0, 1)[:, None], 2, stride=2).unflatten(0, x.shape[:2])
            side = x.shape[-1] // 2
            match options.pooling:
                case "max":
                    x = squares.amax(dim=2).unflatten(-1, (side, side))
                case "average":
                    x = squares.mean(dim=2).unflatten(-1, (side, side))
                case "trainable":
                    sums = squares.sum(dim=2).unflatten(-1, (side, side))
                    x = act(w[f"{pool}.coefficient"] * sums + w[f"{pool}.bias"])
        x = x.flatten(1)
    for name in ("H1", "H2") if options.architecture == "mlp" else ("C5", "F6"):
        x = act(norm(name, f.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))))
    if options.head == "linear":
        return f.linear(x, w["output.weight"], w["output.bias"])
    return -torch.stack([((x - code.double()) ** 2).sum(dim=1) for code in RBF().codes], dim=1)


def disturb(net: nn.Sequential) -> None:
    """Randomise norms, coefficients and biases, which at first have no effect and would hide a mistake."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for name in ("running_mean", "running_var", "weight", "bias"):
                module.state_dict()[name].uniform_(0.5, 1.5)
        if isinstance(module, Subsampling):
            module.coefficient.data.uniform_(0.1, 0.4)
            module.bias.data.uniform_(-0.5, 0.5)


VARIANTS: list[dict[str, object]] = [
    *[
        dict[str, object](padding=padding, pooling=pooling, activation=activation)
        for padding in (0, 2)
        for pooling in ("max", "average", "trainable")
        for activation in ACTIVATIONS
    ],
    {"c3": "sparse"},
    {"c3": "sparse", "batch_norm": True, "dropout": 0.3},
    {"batch_norm": True, "padding": 0},
    {"head": "rbf", "activation": "tanh", "batch_norm": True},
    {"head": "rbf", "activation": "scaled_tanh", "pooling": "trainable", "c3": "sparse"},
    {"architecture": "mlp", "padding": 0, "dropout": 0.5},
    {"architecture": "mlp", "activation": "tanh", "batch_norm": True},
]


def joined(changes: dict[str, object]) -> str:
    return "-".join(map(str, changes.values()))


@pytest.mark.parametrize("changes", VARIANTS, ids=joined)
def test_a_network_computes_what_its_layers_say(changes: dict[str, object]) -> None:
    options = Model(**DEFAULTS.model.model_dump() | changes)
    net = build(options)
    disturb(net)
    expected = reference(options, net.state_dict(), IMAGES)
    with torch.inference_mode():
        logits = net.eval()(IMAGES)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", VARIANTS, ids=joined)
def test_gradients_reach_every_parameter(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = network(**changes)
    criterion = LOSSES["rbf" if changes.get("head") == "rbf" else "cross_entropy"]
    criterion(net(IMAGES), LABELS).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("changes", [v for v in VARIANTS if v.get("activation", "relu") != "relu"], ids=joined)
def test_gradients_reach_every_kernel(changes: dict[str, object]) -> None:
    """Not with ReLU: with its initial weights, a whole map may be zero on images of noise."""
    torch.manual_seed(0)
    net = network(**changes)
    LOSSES["rbf" if changes.get("head") == "rbf" else "cross_entropy"](net(IMAGES), LABELS).backward()
    gradient = net.get_parameter("H1.weight" if changes.get("architecture") == "mlp" else "C3.weight").grad
    assert gradient is not None
    assert gradient.flatten(1).any(dim=1).all()


@pytest.mark.parametrize("changes", VARIANTS, ids=joined)
def test_gradients_are_those_of_the_layers_by_hand(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    options = Model(**DEFAULTS.model.model_dump() | changes)
    net = build(options).double().eval()
    state = {
        name: tensor.clone().requires_grad_(tensor.is_floating_point()) for name, tensor in net.state_dict().items()
    }
    f.cross_entropy(net(IMAGES.double()), LABELS).backward()
    f.cross_entropy(reference(options, state, IMAGES), LABELS).backward()
    for name, parameter in net.named_parameters():
        expected = state[name].grad
        assert expected is not None, name
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("name", slow_except(PRESETS, ["lenet5-1998"]))
def test_torch_export_accepts_every_preset(name: str) -> None:
    """For any number of images; the exported program computes what the network does."""
    net = preset(name).eval()
    count = torch.export.Dim("count", min=1)
    exported = torch.export.export(net, (IMAGES,), dynamic_shapes=({0: count},)).module()
    for images in (IMAGES, IMAGES[:7]):
        torch.testing.assert_close(exported(images), net(images))


def test_connections_outside_table_1_stay_zero(published: nn.Sequential) -> None:
    c3 = published.get_submodule("C3")
    assert isinstance(c3, SparseC3)
    connected = torch.zeros(16, 6, dtype=torch.bool)
    for to, sources in enumerate(C3_TABLE):
        connected[to, list(sources)] = True
    assert connected.sum() == 60
    before = c3.kernels().detach().clone()
    options = DEFAULTS.train.model_copy(update={"optimizer": "sgd", "learning_rate": 0.01})
    optimizer = Optimizer(published, options)
    for _ in range(3):
        loss = rbf(published(IMAGES), LABELS)
        optimizer.step(torch.autograd.grad(loss, optimizer.parameters), torch.tensor(options.learning_rate))
    after = c3.kernels().detach()
    assert (after[connected] != before[connected]).flatten(1).any(dim=1).all()
    assert (after[~connected] == 0).all()
    # The first map of C3 reads only the first three maps of S2.
    x = torch.rand(1, 6, 14, 14)
    y = x.clone()
    y[:, 3:] = 0
    assert torch.equal(c3(x)[:, 0], c3(y)[:, 0])
    assert not torch.equal(c3(x)[:, 1], c3(y)[:, 1])


def test_sparse_c3_is_initialised_by_the_fan_in_of_each_map() -> None:
    kernels = SparseC3().kernels().detach().abs().flatten(2).amax(dim=2).amax(dim=1)
    bounds = torch.tensor([(25 * len(sources)) ** -0.5 for sources in C3_TABLE])
    assert ((kernels <= bounds) & (kernels > 0.8 * bounds)).all()


def test_rbf_loss_is_equation_9() -> None:
    y = torch.rand(50, 10, generator=torch.Generator().manual_seed(1)) * 30
    labels = torch.arange(50) % 10
    total = 0.0
    for distances, label in zip(y.double().tolist(), labels.tolist(), strict=True):
        total += distances[label] + math.log(math.exp(-RBF_J) + sum(math.exp(-d) for d in distances))
    assert rbf(-y, labels).item() == pytest.approx(total / 50, rel=1e-5)


def test_rbf_distances_hold_far_from_and_on_a_code() -> None:
    codes = RBF().codes
    on_the_code = RBF()(codes)
    assert on_the_code.diagonal().tolist() == [0] * 10
    far = 1e4 * torch.ones(1, 84)
    expected = [-(((far[0].double() - code.double()) ** 2).sum().item()) for code in codes]
    assert RBF()(far)[0].tolist() == pytest.approx(expected, rel=1e-5)
    loss = rbf(RBF()(far), torch.tensor([3]))
    assert loss.isfinite()


def test_nll_is_cross_entropy() -> None:
    logits = 5 * torch.randn(20, 10, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(20) % 10
    by_hand = -logits.double().exp().div(logits.double().exp().sum(1, keepdim=True)).log()[range(20), labels].mean()
    for name in ("nll", "cross_entropy"):
        assert LOSSES[name](logits, labels).item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0, 0.1, 0.5])
def test_label_smoothing(smoothing: float) -> None:
    """Of the target, every class has a tenth of `smoothing`, and the label what is left."""
    logits = 5 * torch.randn(20, 10, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(20) % 10
    target = torch.full((20, 10), smoothing / 10, dtype=torch.float64)
    target[range(20), labels] += 1 - smoothing
    by_hand = -(target * logits.double().log_softmax(dim=1)).sum(dim=1).mean()
    criterion = training_loss(DEFAULTS.train.model_copy(update={"label_smoothing": smoothing}))
    assert criterion(logits, labels).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_random_flip() -> None:
    """Whole images, about half of them, the same from the same seed."""
    batch = NOISE.mul(255).to(torch.uint8).repeat(10, 1, 1)
    once, again, other = (random_flip(batch, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert once.equal(again)
    assert not once.equal(other)
    assert once.dtype == torch.uint8
    flipped = [image.equal(original.flip(1)) for image, original in zip(once, batch, strict=True)]
    kept = [image.equal(original) for image, original in zip(once, batch, strict=True)]
    assert [one != two for one, two in zip(flipped, kept, strict=True)] == [True] * 700
    assert 300 < sum(flipped) < 400


def test_random_affine() -> None:
    """One transform for each image, the same from the same seed, within the limits of the strength."""
    cross = torch.zeros(28, 28, dtype=torch.uint8)
    cross[13:15, 6:22] = cross[6:22, 13:15] = 255
    batch = cross.repeat(400, 1, 1)
    once, again, other = (random_affine(batch, 1, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert once.equal(again)
    assert not once.equal(other)
    assert len(once.flatten(1).unique(dim=0)) == 400, "each image has its own transform"
    assert once.min() >= 0
    assert once.max() < 255.01  # Interpolation rounds.
    torch.testing.assert_close(random_affine(batch, 0, torch.Generator()), batch.float(), rtol=0, atol=0.01)

    # The centre of mass moves by up to 2.5 pixels along each axis, rotated, sheared and scaled with the image.
    def centres(images: Tensor) -> Tensor:
        along = torch.arange(28.0)
        mass = images.sum(dim=(1, 2))
        return torch.stack([(images.sum(dim=axis) * along).sum(dim=1) / mass for axis in (1, 2)], dim=1) - 13.5

    for strength in (0.5, 1.0):
        moved = centres(random_affine(batch, strength, torch.Generator().manual_seed(5))).abs()
        assert 2.3 * strength < moved.max() < 4 * strength
        assert 1.0 * strength < moved.mean() < 1.5 * strength  # Of a uniform amount of up to 2.5: 1.25.
    # 0.88 to 1.12 along each side.
    areas = once.sum(dim=(1, 2)) / batch[0].sum()
    assert 0.75 < areas.min() < 0.85
    assert 1.2 < areas.max() < 1.35


def test_predict_is_in_evaluation_mode() -> None:
    net = network(dropout=0.5, batch_norm=True)
    assert predict(net, IMAGES, 70).equal(predict(net, IMAGES, 70))
    torch.testing.assert_close(predict(net, IMAGES, 1), predict(net, IMAGES, 70))
    assert net.training


def test_distortions_follow_their_documentation() -> None:
    """The pixels of these images are numbered by column or by row, which shows where each new pixel was read."""
    count = 2000
    ramp = 9 * torch.arange(28, dtype=torch.uint8)

    def read(image: Tensor, strength: float) -> Tensor:
        distorted = random_affine(image.repeat(count, 1, 1), strength, torch.Generator().manual_seed(0))
        return distorted / 9

    for strength in (1.0, 0.5):
        x, y = read(ramp.expand(28, 28), strength), read(ramp[:, None].expand(28, 28), strength)
        # Along a row and a column through the middle, away from the border.
        along = torch.stack([torch.stack([c[:, 14, 18] - c[:, 14, 10], c[:, 18, 14] - c[:, 10, 14]]) for c in (x, y)])
        (a, b), (c, d) = along.double() / 8
        scale = (a**2 + c**2).sqrt()
        angle = torch.atan2(c, a)
        # The second column is the shear times the first, plus the first rotated by a right angle.
        shear = (a * b + c * d) / scale**2
        torch.testing.assert_close(a * d - b * c, scale**2, rtol=1e-3, atol=1e-3)
        middle = [v[:, 13:15, 13:15].mean(dim=(1, 2)).double() - 13.5 for v in (x, y)]
        amounts = torch.stack(
            [angle / math.radians(12), (scale - 1) / 0.12, shear / 0.2, middle[0] / 2.5, middle[1] / 2.5]
        )
        assert amounts.abs().amax(dim=1).tolist() == pytest.approx([strength] * 5, rel=0.01)
        assert amounts.mean(dim=1).abs().max() < 0.05 * strength
        assert amounts.abs().mean(dim=1).tolist() == pytest.approx([strength / 2] * 5, rel=0.05)
        # They are drawn independently.
        assert (amounts.corrcoef() - torch.eye(5)).abs().max() < 0.06


def test_pixels_are_interpolated_and_outside_is_background() -> None:
    full = torch.full((50, 28, 28), 255, dtype=torch.uint8)
    distorted = random_affine(full, 1, torch.Generator().manual_seed(0))
    assert (distorted.flatten(1).min(dim=1).values == 0).float().mean() > 0.5
    assert ((distorted > 1) & (distorted < 254)).any()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"dropout": 0.3}, ["C5_activation C5_dropout", "F6_activation F6_dropout"]),
        ({"dropout": 0.3, "batch_norm": True}, ["C5_activation C5_dropout", "F6_activation F6_dropout"]),
        ({"dropout": 0.3, "architecture": "mlp"}, ["H1_activation H1_dropout", "H2_activation H2_dropout"]),
    ],
)
def test_dropout_follows_the_hidden_dense_layers_only(changes: dict[str, object], expected: list[str]) -> None:
    layers = list(build(Model(**DEFAULTS.model.model_dump() | changes)).named_children())
    found = [(before, name, layer) for (before, _), (name, layer) in pairwise(layers) if isinstance(layer, nn.Dropout)]
    assert [f"{before} {name}" for before, name, _ in found] == expected
    assert all(layer.p == 0.3 for *_, layer in found)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_can_be_described(activation: str) -> None:
    rows = describe(build(DEFAULTS.model.model_copy(update={"activation": activation})))
    assert rows[1].operation == f"convolution, {OPERATIONS[ACTIVATIONS[activation]]}"
