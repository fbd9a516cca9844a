"""The quick form of a network: outputs and gradients of the plain one, layer by layer, and a training without it."""

import copy
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import DEFAULTS, RunStage, preset_overrides, set_params, sh, slow_except
from test_networks import IMAGES, LABELS, PRESETS, VARIANTS, disturb, network, preset
from torch import Tensor, nn

from lenet.network import backend, quick
from lenet.network.lenet import RBF, ScaledTanh, SparseC3, Subsampling, build
from lenet.params import Model
from lenet.training import loop
from lenet.training.losses import LOSSES

NAMED = {"-".join(map(str, changes.values())): changes for changes in VARIANTS}


def any_network(name: str) -> nn.Sequential:
    """A preset or a variant, its norms and biases randomised."""
    torch.manual_seed(0)
    net = preset(name) if name in PRESETS else network(**NAMED[name])
    disturb(net)
    return net


# What rounding explains; in float64 a wrong formula cannot hide behind it.
PRECISIONS = {torch.float32: 2e-4, torch.float64: 1e-11}


def assert_near(result: Tensor, expected: Tensor, slack: float = 1) -> None:
    """Equal up to rounding, relative to the largest value."""
    atol = slack * PRECISIONS[expected.dtype] * expected.abs().max().item()
    torch.testing.assert_close(result, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", [*PRESETS, *NAMED])
def test_outputs_and_gradients_are_the_plain_networks(name: str, dtype: torch.dtype, mode: str) -> None:
    """Also the same dropout, from the same seed, and the same running statistics."""
    plain = any_network(name).to(dtype).train(mode == "train")
    shared = copy.deepcopy(plain)
    criterion = LOSSES["rbf" if isinstance(plain[-1], RBF) else "cross_entropy"]

    results = []
    for net, forward in ((plain, plain), (shared, quick.quick(shared))):
        torch.manual_seed(1)
        logits = forward(IMAGES.to(dtype))
        results.append([logits, *torch.autograd.grad(criterion(logits, LABELS), list(net.parameters()))])
    # With the initial weights the sigmoids of a square are nearly equal, and rounding decides which is the maximum.
    slack = 20 if "max-sigmoid" in name and dtype == torch.float32 else 1
    for expected, result in zip(*results, strict=True):
        assert_near(result, expected, slack)
    for buffer, expected in zip(shared.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected)


def to_squares(x: Tensor) -> Tensor:
    """[N, maps, H, W] -> [4, maps, H / 2, W / 2, N]."""
    squares = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    result: Tensor = squares.permute(3, 5, 1, 2, 4, 0).flatten(0, 1).contiguous()
    return result


def batch_last(x: Tensor) -> Tensor:
    """[N, maps, H, W] -> [maps, H, W, N]."""
    return x.permute(1, 2, 3, 0).contiguous()


Rearrange = Callable[[Tensor], Tensor]
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], Rearrange, Rearrange]] = {
    "C1": (nn.Conv2d(1, 6, 5), (1, 32, 32), batch_last, to_squares),
    "C3": (nn.Conv2d(6, 16, 5), (6, 14, 14), batch_last, to_squares),
    "C3 on 12x12, no bias": (nn.Conv2d(6, 16, 5, bias=False), (6, 12, 12), batch_last, to_squares),
    "sparse C3": (SparseC3(), (6, 14, 14), batch_last, to_squares),
    "maximum": (nn.MaxPool2d(2), (6, 28, 28), to_squares, batch_last),
    "mean": (nn.AvgPool2d(2), (6, 28, 28), to_squares, batch_last),
    "trainable": (Subsampling(6, nn.Tanh()), (6, 28, 28), to_squares, batch_last),
    "batch norm": (nn.BatchNorm2d(6), (6, 28, 28), to_squares, to_squares),
    "ReLU": (nn.ReLU(), (6, 28, 28), to_squares, to_squares),
    "tanh": (nn.Tanh(), (6, 28, 28), to_squares, to_squares),
    "scaled tanh": (ScaledTanh(), (6, 28, 28), to_squares, to_squares),
    "sigmoid": (nn.Sigmoid(), (6, 28, 28), to_squares, to_squares),
}


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer(name: str, dtype: torch.dtype) -> None:
    layer, shape, before, after = LAYERS[name]
    layer = copy.deepcopy(layer).to(dtype)
    random = torch.Generator().manual_seed(0)
    # Many values are equal, as those of the background are: of equal maxima the first one has the gradient.
    x = torch.randint(-3, 4, (5, *shape), generator=random).to(dtype).requires_grad_()
    y = layer(x)
    weights = torch.rand(y.shape, generator=random, dtype=dtype)
    expected = torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])
    # A copy, because activations are in-place.
    result = quick._replacement(layer)(before(x).clone())
    assert_near(result, after(y))
    gradients = torch.autograd.grad((result * after(weights)).sum(), [x, *layer.parameters()])
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert_near(gradient, wanted)


def test_the_input() -> None:
    net = network(mean=0.3, std=0.2)
    expected = net.get_submodule("input")(IMAGES)
    assert_near(quick._replacement(net.get_submodule("input"))(IMAGES), batch_last(expected))


def test_an_unknown_layer() -> None:
    with pytest.raises(TypeError, match="GELU is not one of LeNet's layers"):
        quick._replacement(nn.GELU())


def test_tanh_is_tanh() -> None:
    a = torch.cat([torch.linspace(-20, 20, 100_001), torch.tensor([-math.inf, -1e30, 0, 1e-30, 1e30, math.inf])])
    expected = a.double().tanh().float()  # First: ours overwrites a.
    torch.testing.assert_close(quick.tanh(a), expected, rtol=0, atol=2e-7)
    assert quick.tanh(torch.tensor([math.nan])).isnan()


@pytest.mark.parametrize("trained", ["plain", "quick"])
def test_a_state_dict_goes_from_one_form_to_the_other(trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were trained in either form give the same logits in both."""
    if trained == "plain":
        monkeypatch.setattr(loop, "backend", plain_backend)
    options = Model(**DEFAULTS.model.model_dump() | {"batch_norm": True, "pooling": "trainable"})
    net = build(options)
    data = loop.Dataset(IMAGES, LABELS)
    list(loop.train(net, data, None, DEFAULTS.train.model_copy(update={"epochs": 1}), torch.device("cpu")))
    other = build(options)
    other.load_state_dict(net.state_dict())
    net.eval()
    other.eval()
    assert_near(quick.quick(other)(IMAGES), net(IMAGES))
    assert_near(other(IMAGES), quick.quick(net)(IMAGES))


def plain_backend(network: nn.Sequential, _: torch.device) -> backend.Backend:
    """The backend of an accelerator, for any device."""
    return backend.Backend(network, lambda step: step)


@pytest.mark.slow
def test_the_pipeline_works_without_it(digits_project: Path) -> None:
    """Without its two modules, and with the only place changed that chooses them."""
    before = {name: json.loads((digits_project / f"metrics/{name}.json").read_text()) for name in ("train", "test")}
    package = digits_project / "stages/lenet/network"
    (package / "quick.py").unlink()
    (package / "capture.py").unlink()
    source = (package / "backend.py").read_text()
    imports = ("from lenet.network.capture", "from lenet.network.quick")
    kept = [line for line in source.splitlines() if not line.startswith(imports)]
    kept.insert(kept.index("class Backend(NamedTuple):"), "Step = Callable[..., tuple[Tensor, ...]]\n")
    kept.remove('    if device.type == "cpu":')
    kept.remove("        return Backend(quick(network), capture)")
    (package / "backend.py").write_text("\n".join(kept))
    for stage in ("train", "evaluate"):
        sh(sys.executable, f"stages/{stage}.py", cwd=digits_project)
    for name, metrics in before.items():
        after = json.loads((digits_project / f"metrics/{name}.json").read_text())
        assert after == pytest.approx(metrics, abs=0.03)
        assert after.keys() == metrics.keys()


@pytest.mark.parametrize("name", slow_except(["params.yaml", *PRESETS], ["params.yaml", "lenet5-1998"]))
def test_a_training_of_the_plain_network_takes_the_same_course(
    digits_project: Path, run_stage: RunStage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For five steps, before rounding has grown; with dropout and augmentation."""
    data = digits_project / "data/processed"
    images, labels = torch.load(data / "training.pt")
    torch.save((images[:160].clone(), labels[:160].clone()), data / "training.pt")
    set_params(digits_project, "train.epochs=1", "model.dropout=0.1", "train.augment=0.5")
    if name in PRESETS:
        set_params(digits_project, *preset_overrides(name), "train.epochs=1", "train.batch_size=32")
    assert run_stage(digits_project, "train").status == 0
    expected = json.loads((digits_project / "metrics/train.json").read_text())
    monkeypatch.setattr(backend, "quick", lambda network: network)
    monkeypatch.setattr(backend, "capture", lambda step: step)
    assert run_stage(digits_project, "train").status == 0
    assert json.loads((digits_project / "metrics/train.json").read_text()) == pytest.approx(expected, rel=1e-3)
