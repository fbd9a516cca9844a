"""A captured step: from its second call on it computes what the step itself would, to the bit."""

import pytest
import torch
from conftest import INFO, ROOT, slow_except
from torch import Tensor, nn
from torch.nn import functional as f

from lenet.data.tensors import Dataset
from lenet.experiments.presets import Values, load_preset, overlaid, workspace
from lenet.network import backend
from lenet.network.capture import LARGEST, Step, capture
from lenet.network.lenet import build
from lenet.params import Params
from lenet.training import loop

RANDOM = torch.Generator().manual_seed(0)
# Five mini-batches of 32 and one of 20.
DATA = Dataset(
    torch.randint(256, (180, 28, 28), dtype=torch.uint8, generator=RANDOM),
    torch.randint(10, (180,), generator=RANDOM),
)
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
OTHERS: dict[str, Values] = {
    "params.yaml": {},
    "batch-norm": {"model": {"batch_norm": True, "dropout": 0.3}},
    "batch-norm-tanh": {"model": {"batch_norm": True, "activation": "tanh", "pooling": "average"}},
    "sigmoid-adam": {"model": {"activation": "sigmoid"}, "train": {"optimizer": "adam", "schedule": "step"}},
    "nll-augment": {"model": {"pooling": "trainable"}, "train": {"loss": "nll", "augment": 1}},
    "average-smoothing-flip": {"train": {"ema": 0.9, "label_smoothing": 0.1, "flip": True}},
    "mlp-dropout": {"model": {"architecture": "mlp", "dropout": 0.5, "batch_norm": True}},
}


def trained(values: Values) -> tuple[list[loop.Epoch], dict[str, Tensor]]:
    options = Params.model_validate(values)
    torch.manual_seed(0)
    network = build(options.model.normalised(INFO.mean, INFO.std))
    chosen = options.train.model_copy(update={"batch_size": 32, "epochs": 2})
    rows = [row for row, _ in loop.train(network, DATA, DATA, chosen, torch.device("cpu"))]
    return rows, network.state_dict()


@pytest.mark.parametrize(
    "name",
    slow_except(
        [*PRESETS, *OTHERS], ["lenet5-1998", "batch-norm", "sigmoid-adam", "nll-augment", "average-smoothing-flip"]
    ),
)
def test_a_captured_training_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    values = overlaid(workspace(), (name, OTHERS[name] if name in OTHERS else load_preset(name).changes))
    rows, weights = trained(values)
    monkeypatch.setattr(backend, "capture", lambda function: function)
    expected_rows, expected = trained(values)
    assert rows == expected_rows
    assert [key for key in expected if not weights[key].equal(expected[key])] == []


def in_place(x: Tensor) -> tuple[Tensor, ...]:
    y = torch.zeros(3, 4)
    y[1:, ::2] = x[:2, :2]
    y.t().mul_(2).add_(x.sum())
    return y, y[0], torch.empty_like(y).copy_(y).relu_()


def several_results(x: Tensor) -> tuple[Tensor, ...]:
    values, indices = x.max(dim=0)
    return values, indices, *torch.std_mean(x, dim=1), *x.sort(dim=1), x[indices.clamp(max=2)]


def random_numbers(x: Tensor) -> tuple[Tensor, ...]:
    return torch.rand(5), f.dropout(x, 0.5), torch.randperm(7), torch.randn_like(x)


def with_gradients(x: Tensor) -> tuple[Tensor, ...]:
    weight = torch.full((4, 2), 0.5, requires_grad=True)
    y = f.layer_norm(torch.cat([x, torch.ones_like(x)]) @ weight, [2]).logsumexp(dim=0)
    return y.detach(), *torch.autograd.grad(y.sum(), [weight])


@pytest.mark.parametrize("function", [in_place, several_results, random_numbers, with_gradients])
def test_what_a_step_may_do(function: Step) -> None:
    captured = capture(function)
    for call in range(4):
        x = torch.randn(3 if call != 2 else 6, 4, generator=torch.Generator().manual_seed(call))
        before = x.clone()
        torch.manual_seed(call)
        results = [tensor.clone() for tensor in captured(x)]
        torch.manual_seed(call)
        for result, expected in zip(results, function(x), strict=True):
            torch.testing.assert_close(result, expected, rtol=0, atol=0)
        assert x.equal(before)


def test_a_step_may_change_tensors_in_place() -> None:
    norm = nn.BatchNorm1d(3)
    network = nn.Sequential(nn.Linear(4, 3), norm)
    mean = norm.get_buffer("running_mean")
    captured = capture(lambda x: (network(x).detach(),))
    for call in range(3):
        captured(torch.full((2, 4), call + 1.0))
    assert norm.num_batches_tracked == 3
    after = mean.clone()
    for parameter in network.parameters():
        parameter.data.zero_()
    [y] = captured(torch.ones(2, 4))
    assert not y.any()
    assert not mean.equal(after)


class Counted:
    """A step that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        return (x + 1,)


def test_operations_are_replayed_without_calling_the_step() -> None:
    step = Counted()
    captured = capture(step)
    results = [captured(torch.full((2,), float(value)))[0].tolist() for value in range(3)]
    assert results == [[1, 1], [2, 2], [3, 3]]
    assert step.calls == 1


def test_large_mini_batches_are_not_captured() -> None:
    step = Counted()
    captured = capture(step)
    for _ in range(3):
        assert captured(torch.zeros(LARGEST + 1))[0].sum() == LARGEST + 1
    assert step.calls == 3
