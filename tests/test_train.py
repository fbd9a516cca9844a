"""train: a training that learns, and inputs that it must refuse."""

import copy
import json
import math
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from conftest import DEFAULTS, ROOT, RunStage, assert_refused, defaults, set_params, slow_except, tree
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, MultiStepLR, OneCycleLR

from lenet.data.info import DIGITS, read_info, write_info
from lenet.data.tensors import Dataset, load_dataset, save_dataset
from lenet.environment import AVAILABLE, environment, find_device
from lenet.errors import InputError
from lenet.network.backend import predict
from lenet.network.lenet import build
from lenet.network.saved import load_model
from lenet.params import Params, load_params
from lenet.training import loop
from lenet.training.augmentation import random_affine
from lenet.training.averaging import Average
from lenet.training.losses import LOSSES
from lenet.training.optimizer import Optimizer, learning_rate, weight_decay

# PyTorch's own classes, which the training does not use.
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
def test_a_training_of_one_step_uses_the_peak_rate(schedule: str) -> None:
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
        if step == 3:  # As a training does that is resumed.
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
    assert saved["model"] == defaults("digits").model.model_dump()
    assert saved["classes"] == [*DIGITS]
    validation = load_dataset(digits_run / "data/processed/validation.pt", 10)
    network, classes = load_model(digits_run / "models/lenet.pt")
    assert classes == [*DIGITS]
    predicted = predict(network, validation.images, 1000).argmax(dim=1)
    assert (predicted == validation.labels).float().mean().item() == pytest.approx(metrics["validation_accuracy"])


def test_the_columns_of_the_history(digits_project: Path, run_stage: RunStage) -> None:
    """Two epochs recomputed with the plain network and PyTorch's own optimiser and schedule."""
    set_params(digits_project, "train.batch_size=128")
    assert run_stage(digits_project, "train").status == 0
    options = load_params(digits_project / "params.yaml").train
    assert (options.optimizer, options.schedule, options.loss) == ("adamw", "one_cycle", "cross_entropy")
    images, labels = torch.load(digits_project / "data/processed/training.pt")
    held_out, held_out_labels = torch.load(digits_project / "data/processed/validation.pt")
    batches = math.ceil(len(labels) / 128)
    assert len(labels) % 128 == 14, "the last mini-batch is smaller than the others"
    torch.manual_seed(loop.generator(options.seed, epoch=0).initial_seed())
    network = build(defaults("digits").model)
    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate, weight_decay=0.1)
    scheduler = OneCycleLR(optimizer, options.learning_rate, total_steps=2 * batches, cycle_momentum=False)

    expected = []
    for epoch in (1, 2):
        loss_sum, right = 0.0, 0
        for batch in torch.randperm(len(labels), generator=loop.generator(options.seed, epoch)).split(128):
            logits = network.train()(images[batch])
            optimizer.zero_grad()
            cross_entropy(logits, labels[batch]).backward()
            rate = float(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
            loss_sum += cross_entropy(logits, labels[batch], reduction="sum").item()
            right += int((logits.argmax(dim=1) == labels[batch]).sum())
        with torch.no_grad():
            logits = network.eval()(held_out)
        row = {"epoch": epoch, "train_loss": loss_sum / len(labels), "train_accuracy": right / len(labels)}
        row["validation_loss"] = cross_entropy(logits, held_out_labels).item()
        row["validation_accuracy"] = (logits.argmax(dim=1) == held_out_labels).float().mean().item()
        expected.append(row | {"learning_rate": rate})

    # Rounding may move one image to another digit.
    slack = {"train_accuracy": 1 / len(labels), "validation_accuracy": 1 / len(held_out_labels)}
    rows = pandas.read_csv(digits_project / "plots/training.csv").to_dict("records")
    for found, values in zip(rows, expected, strict=True):
        assert found.keys() == values.keys()
        for name, value in values.items():
            assert found[name] == pytest.approx(value, rel=1e-3, abs=1.01 * slack.get(name, 0)), name


def test_same_bytes_again_and_others_from_another_seed(digits_project: Path, run_stage: RunStage) -> None:
    before = tree(digits_project)
    outcome = run_stage(digits_project, "train")
    assert outcome.status == 0
    assert ", on cpu\n" in outcome.output
    assert "epoch 2/2: loss " in outcome.output
    assert tree(digits_project) == before
    set_params(digits_project, "train.seed=1")
    assert run_stage(digits_project, "train").status == 0
    changed = {name for name, content in tree(digits_project).items() if content != before[name]}
    assert changed == {"models/lenet.pt", "metrics/train.json", "plots/training.csv"}


OTHER_OPTIONS = [
    ["train.optimizer=sgd", "train.schedule=step", "train.learning_rate=0.05", "train.weight_decay=0"],
    ["train.augment=1", "model.batch_norm=true", "train.epochs=3"],
    ["train.flip=true", "train.label_smoothing=0.1", "train.ema=0.9", "model.batch_norm=true"],
    ["train.optimizer=adam", "train.schedule=constant", "train.learning_rate=0.002", "train.weight_decay=0"],
    ["model.pooling=average"],
    ["model.activation=tanh", "model.padding=0"],
    ["model.dropout=0.2", "train.loss=nll"],
]


@pytest.mark.parametrize("overrides", slow_except(OTHER_OPTIONS, OTHER_OPTIONS[:2]))
def test_other_options_train(digits_project: Path, run_stage: RunStage, overrides: list[str]) -> None:
    set_params(digits_project, *overrides)
    outcome = run_stage(digits_project, "train")
    assert outcome.status == 0, outcome.error
    assert json.loads((digits_project / "metrics/train.json").read_text())["validation_accuracy"] > 0.5


def test_a_mini_batch_of_all_images(digits_project: Path, run_stage: RunStage) -> None:
    """More than are captured, and a single step in an epoch."""
    set_params(digits_project, "train.batch_size=5000", "train.epochs=3")
    assert run_stage(digits_project, "train").status == 0
    losses = pandas.read_csv(digits_project / "plots/training.csv")["train_loss"]
    assert len(losses) == 3
    assert losses.is_monotonic_decreasing


def test_dropout_and_augmentation_depend_on_the_seed_alone(digits_run: Path) -> None:
    """Not on what else has drawn from PyTorch's global generator."""
    data = load_dataset(digits_run / "data/processed/validation.pt", 10)
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


def test_a_batch_of_one_image_cannot_be_normalised(digits_project: Path, run_stage: RunStage) -> None:
    set_params(digits_project, "model.batch_norm=true", "train.batch_size=1293")
    words = ["train.batch_size is 1293", "one of 1294 images for the last mini-batch", "use another size"]
    assert_refused(run_stage(digits_project, "train"), *words)


def test_without_a_validation_set(digits_project: Path, run_stage: RunStage) -> None:
    set_params(digits_project, "preprocess.validation_size=0", "train.epochs=1")
    for stage in ("preprocess", "train", "plot"):
        assert run_stage(digits_project, stage).status == 0
    history = pandas.read_csv(digits_project / "plots/training.csv")
    assert history["validation_loss"].isna().all()
    assert set(json.loads((digits_project / "metrics/train.json").read_text())) == {
        *["parameters", "train_loss", "train_accuracy"]
    }


def test_the_test_set_is_not_read(digits_project: Path, run_stage: RunStage) -> None:
    (digits_project / "data/processed/test.pt").unlink()
    assert run_stage(digits_project, "train").status == 0


def test_progress_bar_on_a_terminal(digits_project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    outcome = run_stage(digits_project, "train")
    assert "epoch 1/2: " in outcome.error
    assert "batch/s" in outcome.error
    assert "epoch 2/2: loss " in outcome.output


@pytest.mark.parametrize("batch_size", [32, 5000])
def test_a_training_that_diverges(digits_project: Path, run_stage: RunStage, batch_size: int) -> None:
    set_params(digits_project, "train.optimizer=sgd", "train.schedule=constant", "train.learning_rate=1000")
    set_params(digits_project, f"train.batch_size={batch_size}", "train.weight_decay=0.1")
    model = (digits_project / "models/lenet.pt").read_bytes()
    outcome = run_stage(digits_project, "train")
    where = "epoch 1, mini-batch 3 of 41" if batch_size == 32 else "epoch 2, mini-batch 1 of 1"
    advice = ["learning rate 1e+03", "no model is written", "try a smaller train.learning_rate, for example 1e+02"]
    assert_refused(outcome, f"training diverged in {where}: loss nan", *advice)
    assert (digits_project / "models/lenet.pt").read_bytes() == model


@pytest.mark.parametrize(("optimizer", "decay"), [("sgd", 0), ("adam", 0), ("adamw", 0.1)])
def test_each_optimizer_has_its_own_default_weight_decay(optimizer: str, decay: float) -> None:
    """AdamW decouples it; as an L2 penalty of SGD, 0.1 would keep a network from learning."""
    options = load_params(ROOT / "params.yaml").train.model_copy(update={"optimizer": optimizer})
    assert weight_decay(options) == decay
    assert weight_decay(options.model_copy(update={"weight_decay": 0.0005})) == 0.0005
    assert weight_decay(options.model_copy(update={"weight_decay": 0})) == 0


def test_sgd_learns_with_its_default_weight_decay(digits_project: Path, run_stage: RunStage) -> None:
    set_params(digits_project, "train.optimizer=sgd", "train.learning_rate=0.05")
    assert run_stage(digits_project, "train").status == 0
    assert json.loads((digits_project / "metrics/train.json").read_text())["validation_accuracy"] > 0.8


def test_the_cpu_leaves_cuda_alone(digits_project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch) -> None:
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
    found = {name: environment(torch.device(name), "portable")["accelerator"] for name in ("cpu", "mps", "cuda")}
    assert found == {"cpu": "none", "mps": "MPS", "cuda": "NVIDIA H200"}


@pytest.mark.parametrize(
    ("available", "expected"), [(["cuda", "mps", "cpu"], "cuda"), (["mps", "cpu"], "mps"), (["cpu"], "cpu")]
)
def test_auto_is_the_first_device_available(
    monkeypatch: pytest.MonkeyPatch, available: list[str], expected: str
) -> None:
    for name in AVAILABLE:
        monkeypatch.setitem(AVAILABLE, name, partial(available.__contains__, name))
    assert find_device("auto") == torch.device(expected)


def test_a_device_that_is_not_available(
    digits_project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AVAILABLE, "cuda", lambda: False)
    set_params(digits_project, "train.device=cuda")
    assert_refused(run_stage(digits_project, "train"), "train.device is cuda", "use auto or cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(digits_project: Path, run_stage: RunStage) -> None:
    set_params(digits_project, "train.device=cuda", "train.augment=0.5", "model.dropout=0.1")
    outcome = run_stage(digits_project, "train")
    assert outcome.status == 0, outcome.error
    assert "on cuda" in outcome.output
    first = tree(digits_project)
    assert run_stage(digits_project, "train").status == 0
    assert tree(digits_project) == first
    network, _ = load_model(digits_project / "models/lenet.pt")
    assert all(not t.is_cuda for t in network.state_dict().values())


class Hostile:
    """Pickled, it runs a command when it is loaded."""

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
    "label 10": ((GOOD_IMAGES, GOOD_LABELS + 10), "holds labels from 10 to 10, not classes from 0 to 9"),
    "label -1": ((GOOD_IMAGES, GOOD_LABELS - 1), "holds labels from -1 to -1"),
    "no data": ((GOOD_IMAGES.to("meta"), GOOD_LABELS), "not dense tensors in memory"),
    "sparse": ((GOOD_IMAGES.to_sparse(), GOOD_LABELS), "not dense tensors in memory"),
    "a huge view": (
        (GOOD_IMAGES[:1].expand(10**9, 28, 28), GOOD_LABELS[:1].expand(10**9)),
        "not dense tensors in memory",
    ),
}


CASES = [("training", kind) for kind in BAD_DATA]
# `preprocess` writes a validation set of no image if there is to be none.
VALIDATION_CASES = [("validation", kind) for kind in BAD_DATA if kind != "no image"]


@pytest.mark.parametrize("case", [*CASES, *slow_except(VALIDATION_CASES, [("validation", "label 10")])], ids="-".join)
def test_bad_data(digits_project: Path, run_stage: RunStage, case: tuple[str, str]) -> None:
    name, kind = case
    content, words = BAD_DATA[kind]
    torch.save(content, digits_project / f"data/processed/{name}.pt")
    before = tree(digits_project)
    assert_refused(run_stage(digits_project, "train"), f"data/processed/{name}.pt", words, "dvc repro")
    assert tree(digits_project) == before
    assert not (digits_project / "pwned").exists()


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "pickle", "zip"])
def test_bytes_that_are_no_pt_file(digits_project: Path, run_stage: RunStage, kind: str) -> None:
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


CPU = torch.device("cpu")
PLAIN: dict[str, object] = {"optimizer": "sgd", "schedule": "constant"}


def random_data(count: int) -> Dataset:
    random = torch.Generator().manual_seed(7)
    images = torch.randint(256, (count, 28, 28), generator=random, dtype=torch.uint8)
    return Dataset(images, torch.randint(10, (count,), generator=random))


def changed(model: dict[str, object], train: dict[str, object]) -> Params:
    values = DEFAULTS.model_dump()
    return Params.model_validate(values | {"model": values["model"] | model, "train": values["train"] | train})


@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_training_equals_a_loop_written_by_hand(schedule: str) -> None:
    """With the plain network and PyTorch's own optimiser; order, dropout and distortions come from the epoch's seed."""
    options = changed(
        {"dropout": 0.2, "activation": "tanh"},
        PLAIN | {"schedule": schedule, "learning_rate": 0.05, "batch_size": 32, "epochs": 3, "augment": 0.5},
    )
    data = random_data(70)  # Two batches of 32 and one of 6.
    torch.manual_seed(0)
    ours = build(options.model)
    theirs = copy.deepcopy(ours)
    rows = [row for row, _ in loop.train(ours, data, None, options.train, CPU)]

    reference = torch.optim.SGD(theirs.parameters(), 0.05, options.train.momentum)
    for epoch in range(1, 4):
        random = loop.generator(options.train.seed, epoch)
        order = torch.randperm(70, generator=random)
        torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=random)))
        total, right = 0.0, 0
        for number, batch in enumerate(order.split(32)):
            rate = learning_rate(options.train, 3 * (epoch - 1) + number, 9)
            reference.param_groups[0]["lr"] = rate
            logits = theirs(random_affine(data.images[batch], 0.5, random))
            loss = nn.functional.cross_entropy(logits, data.labels[batch])
            reference.zero_grad()
            loss.backward()
            reference.step()
            total += loss.item() * len(batch)
            right += int((logits.argmax(dim=1) == data.labels[batch]).sum())
        row = rows[epoch - 1]
        assert row.epoch == epoch
        assert row.train_loss == pytest.approx(total / 70, rel=1e-4)
        assert row.train_accuracy == pytest.approx(right / 70)
        assert row.learning_rate == rate
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), parameter, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_model_is_the_average_of_the_weights(decay: float) -> None:
    """Of those after each step, in a loop with mini-batches of the whole; the training itself goes its own way."""
    options = changed({"batch_norm": True}, PLAIN | {"learning_rate": 0.05, "batch_size": 70, "epochs": 1})
    data, steps = random_data(70), 12
    torch.manual_seed(0)
    start = build(options.model)

    def after(epochs: int, ema: float) -> dict[str, torch.Tensor]:
        network = copy.deepcopy(start)
        train = options.train.model_copy(update={"epochs": epochs, "ema": ema})
        assert len(list(loop.train(network, data, data, train, CPU))) == epochs
        return network.state_dict()

    expected = {name: tensor.double() for name, tensor in start.state_dict().items()}
    for step in range(1, steps + 1):
        now = min(decay, (1 + step) / (10 + step))
        for name, tensor in after(step, 0).items():
            expected[name] = now * expected[name] + (1 - now) * tensor.double()
    averaged, last = after(steps, decay), after(steps, 0)
    for name in ("C1.weight", "C3_norm.running_var", "C3_norm.running_mean", "F6_norm.bias"):
        torch.testing.assert_close(averaged[name].double(), expected[name], rtol=1e-4, atol=1e-6)
        assert not averaged[name].allclose(last[name], rtol=1e-3)
    assert averaged["C1_norm.num_batches_tracked"] == steps


def test_without_an_average_nothing_is_kept() -> None:
    network = build(DEFAULTS.model)
    assert Average(network, 0).other == []


@pytest.mark.parametrize("head", ["linear", "rbf"])
def test_a_row_averages_the_chosen_loss_over_all_images(head: str) -> None:
    """With weights that do not move, training and validation on the same images give the same loss and accuracy."""
    options = changed(
        {"head": head, "activation": "tanh"},
        {"loss": "rbf" if head == "rbf" else "nll", "learning_rate": 1e-30, "batch_size": 32, "epochs": 1} | PLAIN,
    )
    data = random_data(33)  # The last mini-batch has one image, and must count as one image.
    torch.manual_seed(0)
    network = build(options.model)
    [(row, _)] = loop.train(network, data, data, options.train, CPU)
    logits = predict(network, data.images, 33)
    assert row.validation_loss == pytest.approx(LOSSES[options.train.loss](logits, data.labels).item(), rel=1e-5)
    assert row.train_loss == pytest.approx(row.validation_loss, rel=1e-5)
    right = (logits.argmax(dim=1) == data.labels).double().mean().item()
    assert row.validation_accuracy == pytest.approx(right)
    assert row.train_accuracy == pytest.approx(right)


@pytest.mark.parametrize(("rate", "validated", "loss"), [(1e39, False, ""), (1e39, True, ""), (1e30, True, "nan")])
def test_a_last_step_that_breaks_the_weights_is_reported(rate: float, validated: bool, loss: str) -> None:
    """No loss has seen yet what it did. Weights can be finite and still too large to compute with."""
    data = random_data(32)
    changes = PLAIN | {"learning_rate": rate, "batch_size": 32, "epochs": 1}
    torch.manual_seed(0)
    training = loop.train(
        *(build(DEFAULTS.model), data, data if validated else None),
        *(DEFAULTS.train.model_copy(update=changes), CPU),
    )
    with pytest.raises(InputError, match=f"training diverged in epoch 1, mini-batch 1 of 1: loss {loss}"):
        list(training)


def test_the_initial_weights_come_from_the_seed(digits_project: Path, run_stage: RunStage) -> None:
    """A learning rate that moves nothing leaves them in the model; another seed gives others."""
    names = ["train.optimizer=sgd", "train.schedule=constant", "train.learning_rate=1e-30", "train.epochs=1"]
    set_params(digits_project, *names)
    for seed in (0, 1):
        set_params(digits_project, f"train.seed={seed}")
        assert run_stage(digits_project, "train").status == 0
        state = torch.load(digits_project / "models/lenet.pt", weights_only=True)["state_dict"]
        torch.manual_seed(loop.generator(seed, epoch=0).initial_seed())
        expected = build(defaults("digits").model).state_dict()
        assert all(state[name].equal(expected[name]) for name in expected)


def test_the_validation_set_does_not_influence_training(digits_project: Path, run_stage: RunStage) -> None:
    path = digits_project / "data/processed/validation.pt"
    model = (digits_project / "models/lenet.pt").read_bytes()
    validation = load_dataset(path, 10)
    save_dataset(path, Dataset(255 - validation.images, 9 - validation.labels))
    history = (digits_project / "plots/training.csv").read_bytes()
    assert run_stage(digits_project, "train").status == 0
    assert (digits_project / "models/lenet.pt").read_bytes() == model
    assert (digits_project / "plots/training.csv").read_bytes() != history


def test_threads_and_determinism_are_set(digits_project: Path, run_stage: RunStage) -> None:
    set_params(digits_project, "train.arithmetic=native", "train.threads=3", "train.epochs=1")
    before = torch.get_num_threads()
    torch.use_deterministic_algorithms(False)
    try:
        assert run_stage(digits_project, "train").status == 0
        assert torch.get_num_threads() == 3
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.set_num_threads(before)


def test_the_environment_lists_everything_that_decides_a_result() -> None:
    found = environment(CPU, "portable")
    assert list(found) == [
        *["system", "processor", "arithmetic", "accelerator", "python"],
        *["matplotlib", "numpy", "pandas", "pillow", "scikit-learn", "torch"],
    ]
    assert all(found.values())
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert environment(CPU, "native")["arithmetic"] == f"native, {torch.backends.cpu.get_cpu_capability()}"


def test_a_run_that_only_lacks_its_model_writes_the_same_files(digits_project: Path, run_stage: RunStage) -> None:
    """A checkpoint after the last epoch holds the history in full precision."""
    # In single precision, the last of the six digits that are written would differ.
    set_params(digits_project, "train.schedule=constant", "train.learning_rate=0.01000005")
    model, history = digits_project / "models/lenet.pt", digits_project / "plots/training.csv"
    assert run_stage(digits_project, "train").status == 0
    expected = tree(digits_project)

    model.unlink()
    model.mkdir()  # The last epoch ends, and the model cannot be written.
    assert_refused(run_stage(digits_project, "train"), "models/lenet.pt: Is a directory")
    model.rmdir()
    history.unlink()  # As DVC does with a stage's outputs.
    outcome = run_stage(digits_project, "train")
    assert outcome.status == 0
    assert "resuming after epoch 2 of 2" in outcome.output
    assert "epoch 2/2: " not in outcome.output
    assert tree(digits_project) == expected


def test_optimizer_state_is_copied_only_when_it_is_loaded() -> None:
    """A yielded state holds the optimiser's own tensors; loading copies them."""
    network = nn.Linear(2, 2)
    optimizer = Optimizer(network, DEFAULTS.train)
    state = optimizer.state_dict()
    gradients = [torch.ones_like(parameter) for parameter in network.parameters()]
    optimizer.step(gradients, torch.tensor(0.1))
    other = Optimizer(copy.deepcopy(network), DEFAULTS.train)
    other.load_state_dict(state)
    assert [step.item() for step in state["steps"]] == [1, 1]
    other.step(gradients, torch.tensor(0.1))
    assert [step.item() for step in state["steps"]] == [1, 1]
    assert math.isclose(other.steps[0].item(), 2)


CHANGES = ["nothing", "model", "train", "training labels", "validation labels", "normalisation", "classes"]


@pytest.mark.parametrize("change", CHANGES)
def test_only_the_same_training_run_is_resumed(digits_project: Path, run_stage: RunStage, change: str) -> None:
    """If a section of the parameters, a data set or what is known of it differs, training starts from scratch."""
    set_params(digits_project, "train.epochs=1")
    about, model = digits_project / "data/raw/dataset.json", digits_project / "models/lenet.pt"
    model.unlink()
    model.mkdir()  # The epoch ends, and the model cannot be written.
    assert_refused(run_stage(digits_project, "train"), "models/lenet.pt: Is a directory")
    model.rmdir()
    match change.split():
        case ["model"]:
            set_params(digits_project, "model.dropout=0.1")
        case ["train"]:
            set_params(digits_project, "train.momentum=0.1")
        case [name, "labels"]:
            path = digits_project / f"data/processed/{name}.pt"
            dataset = load_dataset(path, 10)
            save_dataset(path, Dataset(dataset.images, dataset.labels.flip(0)))
        case ["normalisation"]:
            write_info(about, read_info(about)._replace(mean=0.2))
        case ["classes"]:
            write_info(about, read_info(about)._replace(classes=DIGITS[::-1]))
    outcome = run_stage(digits_project, "train")
    assert outcome.status == 0
    assert ("resuming after epoch 1 of 1" in outcome.output) == (change == "nothing")
    assert ("epoch 1/1: " in outcome.output) == (change != "nothing")
