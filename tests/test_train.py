"""train: a training that learns, and inputs that it must refuse."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import pandas
import pytest
import torch
from conftest import ROOT, assert_refused, set_params, tree
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, MultiStepLR, OneCycleLR

from lenet.data.tensors import load_dataset
from lenet.environment import AVAILABLE, environment, find_device
from lenet.network.backend import predict
from lenet.network.lenet import build
from lenet.network.saved import load_model
from lenet.params import load_params
from lenet.training import loop
from lenet.training.optimizer import Optimizer, learning_rate, weight_decay

DEFAULTS = load_params(ROOT / "params.yaml")


# PyTorch's own classes, which the training does without.
OPTIMIZERS = {
    "sgd": lambda weights, o: torch.optim.SGD(weights, o.learning_rate, o.momentum, weight_decay=o.weight_decay),
    "adam": lambda weights, o: torch.optim.Adam(weights, o.learning_rate, weight_decay=o.weight_decay),
    "adamw": lambda weights, o: torch.optim.AdamW(weights, o.learning_rate, weight_decay=o.weight_decay),
}


def pytorch_schedule(name: str, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    match name:
        case "one_cycle":
            return OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=steps, cycle_momentum=False)
        case "step":
            return MultiStepLR(optimizer, [max(1, steps // 2), max(2, steps * 3 // 4)])
        case _:
            return ConstantLR(optimizer, factor=1)


@pytest.mark.parametrize("steps", [2, 3, 4, 7, 10, 100, 2150])
@pytest.mark.parametrize("schedule", ["constant", "step", "one_cycle"])
def test_schedules_are_those_of_pytorch(schedule: str, steps: int) -> None:
    options = DEFAULTS.train.model_copy(update={"schedule": schedule, "learning_rate": 0.3})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.3)
    scheduler = pytorch_schedule(schedule, optimizer, steps)
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    rates = [learning_rate(options, step, steps) for step in range(steps)]
    assert rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "step", "one_cycle"])
def test_the_shortest_training_uses_the_whole_rate(schedule: str) -> None:
    options = DEFAULTS.train.model_copy(update={"schedule": schedule})
    assert learning_rate(options, 0, 1) == DEFAULTS.train.learning_rate


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_those_of_pytorch(name: str, decay: float, momentum: float) -> None:
    changes = {"optimizer": name, "learning_rate": 0.03, "weight_decay": decay, "momentum": momentum}
    options = DEFAULTS.train.model_copy(update=changes)
    torch.manual_seed(0)
    ours = nn.Linear(5, 3)
    theirs = copy.deepcopy(ours)
    optimizer, reference = Optimizer(ours, options), OPTIMIZERS[name](theirs.parameters(), options)
    for step in range(5):
        if step == 3:  # What a training that was interrupted goes on with.
            resumed = Optimizer(ours, options)
            resumed.load_state_dict(optimizer.state_dict())
            optimizer = resumed
        for network in (ours, theirs):
            network.zero_grad()
            network(torch.full((2, 5), step - 1.5)).square().sum().backward()
        gradients = [parameter.grad for parameter in ours.parameters() if parameter.grad is not None]
        optimizer.step(gradients, torch.tensor(0.03 / (1 + step)))
        reference.param_groups[0]["lr"] = 0.03 / (1 + step)
        reference.step()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-6, atol=1e-7)


def test_the_run_on_digits_learned(digits_run: Path) -> None:
    history = pandas.read_csv(digits_run / "plots/training.csv")
    assert list(history.columns) == [
        *["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "learning_rate"]
    ]
    assert list(history["epoch"]) == [1, 2]
    assert history["validation_accuracy"].iloc[-1] > 0.8
    metrics = json.loads((digits_run / "metrics/train.json").read_text())
    assert metrics["parameters"] == 61706
    assert metrics["validation_accuracy"] == pytest.approx(history["validation_accuracy"].iloc[-1], rel=1e-5)
    # What the metrics say is what the saved model does.
    saved = torch.load(digits_run / "models/lenet.pt", weights_only=True)
    assert saved["model"] == DEFAULTS.model.model_dump()
    validation = load_dataset(digits_run / "data/processed/validation.pt")
    predicted = predict(load_model(digits_run / "models/lenet.pt"), validation.images, 1000).argmax(dim=1)
    assert (predicted == validation.labels).float().mean().item() == pytest.approx(metrics["validation_accuracy"])


@pytest.mark.skipif(find_device("auto").type != "cpu", reason="needs a machine where auto is the CPU")
def test_same_bytes_again_and_others_from_another_seed(digits_project: Path, run_stage) -> None:
    before = tree(digits_project)
    outcome = run_stage(digits_project, "train")
    assert outcome.status == 0
    assert "on c" in outcome.output, "the device is printed"
    assert "epoch 2/2: loss " in outcome.output
    assert tree(digits_project) == before
    set_params(digits_project, "train.seed=1")
    assert run_stage(digits_project, "train").status == 0
    changed = {name for name, content in tree(digits_project).items() if content != before[name]}
    assert changed == {"models/lenet.pt", "metrics/train.json", "plots/training.csv"}


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.optimizer=sgd", "train.schedule=step", "train.learning_rate=0.05", "train.weight_decay=0"],
        ["train.optimizer=adam", "train.schedule=constant", "train.learning_rate=0.002", "train.weight_decay=0"],
        ["model.pooling=average"],
        ["model.activation=tanh", "model.padding=0"],
        ["train.batch_size=5000", "train.epochs=1", "model.activation=sigmoid"],
        ["train.augment=1", "model.batch_norm=true", "train.epochs=3"],
        ["model.dropout=0.2", "train.loss=nll"],
    ],
)
def test_other_options_train(digits_project: Path, run_stage, overrides: list[str]) -> None:
    set_params(digits_project, *overrides)
    outcome = run_stage(digits_project, "train")
    assert outcome.status == 0, outcome.error
    if "train.batch_size=5000" not in overrides:
        assert json.loads((digits_project / "metrics/train.json").read_text())["validation_accuracy"] > 0.5


def test_dropout_and_distortions_are_the_seeds(digits_run: Path) -> None:
    """Whatever else has drawn from the global generator does not matter, another train.seed does."""
    data = load_dataset(digits_run / "data/processed/validation.pt")
    weights = []
    for state, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(0)
        network = build(DEFAULTS.model.model_copy(update={"dropout": 0.2}))
        torch.manual_seed(state)
        options = DEFAULTS.train.model_copy(update={"augment": 1.0, "epochs": 2, "batch_size": 32, "seed": seed})
        assert len(list(loop.train(network, data, None, options, torch.device("cpu")))) == 2
        weights.append(network.get_parameter("C1.weight"))
    assert weights[0].equal(weights[1])
    assert not weights[1].equal(weights[2])


def test_a_batch_of_one_image_cannot_be_normalised(digits_project: Path, run_stage) -> None:
    set_params(digits_project, "model.batch_norm=true", "train.batch_size=1293")
    words = ["train.batch_size is 1293", "one of 1294 images for the last batch", "use another size"]
    assert_refused(run_stage(digits_project, "train"), *words)


def test_without_a_validation_set(digits_project: Path, run_stage) -> None:
    set_params(digits_project, "preprocess.validation_size=0", "train.epochs=1")
    for stage in ("preprocess", "train", "plot"):
        assert run_stage(digits_project, stage).status == 0
    history = pandas.read_csv(digits_project / "plots/training.csv")
    assert history["validation_loss"].isna().all()
    assert set(json.loads((digits_project / "metrics/train.json").read_text())) == {
        *["parameters", "train_loss", "train_accuracy"]
    }


def test_the_test_set_is_not_touched(digits_project: Path, run_stage) -> None:
    (digits_project / "data/processed/test.pt").unlink()
    assert run_stage(digits_project, "train").status == 0


def test_progress_bar_on_a_terminal(digits_project: Path, run_stage, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    outcome = run_stage(digits_project, "train")
    assert "epoch 1/2: " in outcome.error
    assert "batch/s" in outcome.error
    assert "epoch 2/2: loss " in outcome.output


@pytest.mark.parametrize("batch_size", [32, 5000])
def test_a_training_that_diverges(digits_project: Path, run_stage, batch_size: int) -> None:
    set_params(digits_project, "train.optimizer=sgd", "train.schedule=constant", "train.learning_rate=1000")
    set_params(digits_project, f"train.batch_size={batch_size}", "train.weight_decay=0.1")
    model = (digits_project / "models/lenet.pt").read_bytes()
    outcome = run_stage(digits_project, "train")
    where = "epoch 1, batch 3 of 41" if batch_size == 32 else "epoch 2, batch 1 of 1"
    advice = ["learning rate 1e+03", "no model is written", "try a smaller rate, train.learning_rate=1e+02 say"]
    assert_refused(outcome, f"training diverged in {where}: loss nan", *advice)
    assert (digits_project / "models/lenet.pt").read_bytes() == model


@pytest.mark.parametrize(("optimizer", "decay"), [("sgd", 0), ("adam", 0), ("adamw", 0.1)])
def test_an_optimizer_has_a_weight_decay_of_its_own(optimizer: str, decay: float) -> None:
    """0.1 is right for AdamW, which decouples it; as an L2 penalty of SGD it keeps a network from learning."""
    options = load_params(ROOT / "params.yaml").train.model_copy(update={"optimizer": optimizer})
    assert weight_decay(options) == decay
    assert weight_decay(options.model_copy(update={"weight_decay": 0.0005})) == 0.0005
    assert weight_decay(options.model_copy(update={"weight_decay": 0})) == 0


def test_another_optimizer_learns_without_more_ado(digits_project: Path, run_stage) -> None:
    set_params(digits_project, "train.optimizer=sgd", "train.learning_rate=0.05")
    assert run_stage(digits_project, "train").status == 0
    assert json.loads((digits_project / "metrics/train.json").read_text())["validation_accuracy"] > 0.8


def test_the_cpu_leaves_cuda_alone(digits_project: Path, run_stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> None:
        raise AssertionError("CUDA is asked for")

    for name in ("is_available", "device_count", "get_device_name", "init", "_lazy_init"):
        monkeypatch.setattr(f"torch.cuda.{name}", ask)
    monkeypatch.setitem(AVAILABLE, "cuda", ask)
    set_params(digits_project, "train.device=cpu")
    outcome = run_stage(digits_project, "train")
    assert outcome.status == 0, outcome.error


def test_an_accelerator_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    found = {name: environment(torch.device(name))["accelerator"] for name in ("cpu", "mps", "cuda")}
    assert found == {"cpu": "none", "mps": "MPS", "cuda": "NVIDIA H200"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_device_that_is_not_there(digits_project: Path, run_stage) -> None:
    set_params(digits_project, "train.device=cuda")
    assert_refused(run_stage(digits_project, "train"), "train.device is cuda", "use auto or cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(digits_project: Path, run_stage) -> None:
    set_params(digits_project, "train.device=cuda", "train.augment=0.5", "model.dropout=0.1")
    outcome = run_stage(digits_project, "train")
    assert outcome.status == 0, outcome.error
    assert "on cuda" in outcome.output
    first = tree(digits_project)
    assert run_stage(digits_project, "train").status == 0
    assert tree(digits_project) == first
    assert all(not t.is_cuda for t in load_model(digits_project / "models/lenet.pt").state_dict().values())


class Hostile:
    """A pickle of this runs a command when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch pwned",)


GOOD_IMAGES, GOOD_LABELS = torch.zeros(5, 28, 28, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64)
BAD_DATA = {
    "a pickle that runs code": (Hostile(), "not a .pt file that is safe to load"),
    "a model": ({"model": {}, "state_dict": {}}, "does not hold a pair (images, labels)"),
    "three tensors": ((GOOD_IMAGES, GOOD_LABELS, GOOD_LABELS), "does not hold a pair"),
    "floats": ((GOOD_IMAGES.float(), GOOD_LABELS), "holds images torch.float32 [5, 28, 28], not uint8 [N, 28, 28]"),
    "32x32": ((torch.zeros(5, 32, 32, dtype=torch.uint8), GOOD_LABELS), "holds images torch.uint8 [5, 32, 32]"),
    "flat": ((GOOD_IMAGES.flatten(1), GOOD_LABELS), "holds images torch.uint8 [5, 784]"),
    "too few labels": ((GOOD_IMAGES, GOOD_LABELS[:4]), "holds labels torch.int64 [4]"),
    "int32 labels": ((GOOD_IMAGES, GOOD_LABELS.int()), "holds labels torch.int32 [5]"),
    "no image": ((GOOD_IMAGES[:0], GOOD_LABELS[:0]), "for N > 0 images"),
    "label 10": ((GOOD_IMAGES, GOOD_LABELS + 10), "holds labels from 10 to 10, not digits from 0 to 9"),
    "label -1": ((GOOD_IMAGES, GOOD_LABELS - 1), "holds labels from -1 to -1"),
    "no data": ((GOOD_IMAGES.to("meta"), GOOD_LABELS), "not plain arrays of numbers"),
    "sparse": ((GOOD_IMAGES.to_sparse(), GOOD_LABELS), "not plain arrays of numbers"),
    "a huge view": (
        (GOOD_IMAGES[:1].expand(10**9, 28, 28), GOOD_LABELS[:1].expand(10**9)),
        "not plain arrays of numbers",
    ),
}


@pytest.mark.parametrize("name", ["training", "validation"])
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(digits_project: Path, run_stage, case: str, name: str) -> None:
    content, words = BAD_DATA[case]
    torch.save(content, digits_project / f"data/processed/{name}.pt")
    before = tree(digits_project)
    if (case, name) == ("no image", "validation"):  # That is how `preprocess` says that there is no validation set.
        assert run_stage(digits_project, "train").status == 0
        return
    assert_refused(run_stage(digits_project, "train"), f"data/processed/{name}.pt", words, "dvc repro")
    assert tree(digits_project) == before
    assert not (digits_project / "pwned").exists()


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "pickle", "zip"])
def test_bytes_that_are_no_pt_file(digits_project: Path, run_stage, kind: str) -> None:
    path = digits_project / "data/processed/training.pt"
    match kind:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1000])
        case "pickle":
            path.write_bytes(pickle.dumps(Hostile()))
        case "zip":
            path.unlink()
            shutil.make_archive(str(path), "zip", digits_project / "plots")
            path.with_suffix(".pt.zip").rename(path)
        case _:
            path.write_bytes({"empty": b"", "text": b"<!DOCTYPE html>\n"}[kind])
    before = tree(digits_project)
    assert_refused(run_stage(digits_project, "train"), "training.pt: is not a .pt file that is safe to load")
    assert tree(digits_project) == before
    assert not (digits_project / "pwned").exists()


def test_epochs_are_a_function_of_seed_and_number() -> None:
    seeds = {loop.generator(seed, epoch).initial_seed() for seed in range(20) for epoch in range(20)}
    assert len(seeds) == 400
    assert loop.generator(3, 4).initial_seed() == loop.generator(3, 4).initial_seed()
