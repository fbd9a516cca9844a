"""The same source and parameters give the same bytes, wherever, whenever and by whomever they are run."""

import json
import math
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import (
    DEFAULTS,
    DIGITS,
    MNIST,
    ROOT,
    RunLenet,
    assert_refused,
    clone,
    commit,
    needs_mnist,
    set_params,
    sh,
    tree,
)
from kill import state

from lenet.data.tensors import load_dataset
from lenet.environment import environment
from lenet.experiments.verify import RECORD, Change, environment_changes, explanations, outputs
from lenet.network.lenet import build
from lenet.training import loop


def assert_same(project: Path, reference: Path) -> None:
    found, expected = state(project), state(reference)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def can(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


AS_ANOTHER = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
ONE_CORE = ["taskset", "-c", "0"] if can("taskset", "-c", "0", "true") else []


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param(["sh", "-c", 'umask 077; exec "$@"', "sh", *ONE_CORE], id="umask-and-one-core"),
        pytest.param(
            AS_ANOTHER,
            id="another-user",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not can(*AS_ANOTHER, "true"), reason="needs Linux's user namespaces"),
            ],
        ),
    ],
)
def test_elsewhere(tmp_path: Path, digits_run: Path, prefix: list[str]) -> None:
    """In another clone, in another folder, with all else that a program may take from its surroundings."""
    (tmp_path / "a folder").mkdir()
    project = clone(tmp_path / "a folder")
    set_params(project, *DIGITS)
    sh(
        *(*prefix, "dvc", "repro", "--force"),
        cwd=project,
        USER="somebody",
        LOGNAME="somebody",
        TZ="Pacific/Kiritimati",
        LC_ALL="de_DE.UTF-8",
        PYTHONHASHSEED="99",
        OMP_NUM_THREADS="3",
    )
    assert_same(project, digits_run)


def test_outputs_do_not_tell_where_they_were_made(digits_run: Path) -> None:
    words = [str(digits_run), digits_run.name, sys.prefix, torch.__version__.split("+")[0], time.strftime("%Y-%m-%d")]
    made = tuple(outputs(digits_run))
    for name, content in tree(digits_run).items():
        if name.startswith(made):
            assert [word for word in words if word.encode() in content] == [], name


@pytest.mark.parametrize(
    ("model", "train"),
    [
        ({}, {}),
        ({"dropout": 0.2, "batch_norm": True}, {"optimizer": "sgd", "schedule": "step", "augment": 0.5}),
        ({"batch_norm": True}, {"ema": 0.9, "flip": True, "label_smoothing": 0.1}),
        ({"pooling": "trainable", "c3": "sparse"}, {"optimizer": "adam", "schedule": "constant"}),
    ],
)
def test_an_epoch_is_a_function_of_the_state_before_it(
    digits_run: Path, model: dict[str, object], train: dict[str, object]
) -> None:
    """Whatever the network's weights and the global generator were before the state was loaded."""
    data = load_dataset(digits_run / "data/processed/validation.pt", 10)
    options = DEFAULTS.train.model_copy(update={"batch_size": 32, "epochs": 3} | train)
    network = build(DEFAULTS.model.model_copy(update=model))
    states, rows = [], []
    for row, reached in loop.train(network, data, data, options, torch.device("cpu")):
        # A copy, because the training changes its state in-place.
        states.append(deepcopy(reached))
        rows.append(row)
    expected = network.state_dict()
    for done, reached in enumerate(states, 1):
        torch.manual_seed(done)
        other = build(DEFAULTS.model.model_copy(update=model))
        again = [row for row, _ in loop.train(other, data, data, options, torch.device("cpu"), reached)]
        assert again == rows[done:]
        assert all(other.state_dict()[name].equal(expected[name]) for name in expected)


def test_verify_records_the_environment(
    digits_project: Path, run_lenet: RunLenet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every output is equal: here because nothing is rerun."""
    monkeypatch.setattr("lenet.experiments.verify.rerun", lambda _: None)
    outcome = run_lenet(digits_project, "verify", "--record")
    assert outcome.status == 0
    assert outcome.output.splitlines()[0] == "equal: all 19 outputs have the bytes of dvc.lock"
    assert sh("git", "status", "--porcelain", cwd=digits_project) == f" M {RECORD}\n"
    record = json.loads((digits_project / RECORD).read_bytes())
    assert record == {"environment": environment(torch.device("cpu"), "portable"), "outputs": outputs(digits_project)}


@pytest.mark.slow
def test_verify(digits_project: Path) -> None:
    before = tree(digits_project)
    text = sh("lenet", "verify", cwd=digits_project)
    assert text.count("Running stage") == 5
    assert text.startswith("equal: all 19 outputs have the bytes of dvc.lock\n"), "progress goes to standard error"
    assert "DIFFERS" not in text
    assert tree(digits_project) == before
    assert sh("git", "status", "--porcelain", cwd=digits_project) == ""


def test_verify_where_an_output_differs(digits_project: Path) -> None:
    """As if it had been committed on another machine, after a change of code that was not rerun."""
    made = outputs(digits_project)
    lock = digits_project / "dvc.lock"
    lock.write_text(lock.read_text().replace(made["models/lenet.pt"], "ab" * 16))
    there = environment(torch.device("cpu"), "portable") | {"processor": "a Pentium, 90 MHz", "torch": "0.1"}
    record = {"environment": there, "outputs": made | {"models/lenet.pt": "ab" * 16}}
    (digits_project / RECORD).write_text(json.dumps(record))
    metrics = json.loads((digits_project / "metrics/test.json").read_text())
    (digits_project / "metrics/test.json").write_text(json.dumps(metrics | {"accuracy": 0.5}))
    (digits_project / "stages/plot.py").write_text((digits_project / "stages/plot.py").read_text() + "\n")
    commit(digits_project, "from elsewhere")
    text = sh("lenet", "verify", cwd=digits_project, status=1)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("DIFFERS")] == ["models/lenet.pt"]
    assert "dvc.lock was not made from the committed sources, but from other versions of:" in lines
    assert "  stages/plot.py" in lines
    assert "  stages/train.py" not in lines
    assert "processor: a Pentium, 90 MHz; here: " in text
    assert f"torch: 0.1; here: {torch.__version__}" in text
    assert "numpy" not in text
    [accuracy] = [line for line in lines if "metrics/test.json accuracy" in line]
    assert accuracy.split()[2] == "0.5"
    assert accuracy.endswith("BEYOND")
    assert (
        lines[0]
        == "different: 1 of 19 outputs differ from those of dvc.lock, which was not made from the committed sources"
    )


def test_tolerance() -> None:
    assert Change("metrics/test.json accuracy", 0.99, 0.9949).tolerated
    assert not Change("metrics/test.json accuracy", 0.99, 0.9951).tolerated
    assert Change("metrics/train.json train_loss", 0.03, 0.011).tolerated
    assert not Change("metrics/train.json parameters", 61706, 61707).tolerated
    assert Change("metrics/per_class.json 3", 0.99, 0.975).tolerated
    assert not Change("metrics/per_class.json 3", 0.99, 0.973).tolerated


def test_verify_outside_of_a_project(tmp_path: Path, run_lenet: RunLenet) -> None:
    assert_refused(run_lenet(tmp_path, "verify"), "cannot clone this folder")
    sh("git", "init", "--quiet", cwd=tmp_path)
    sh("git", "commit", "--quiet", "--allow-empty", "-m", "nothing", cwd=tmp_path)
    assert_refused(run_lenet(tmp_path, "verify"), "the last commit has no dvc.lock")


def test_the_committed_environment_is_of_the_committed_lock() -> None:
    assert json.loads((ROOT / RECORD).read_bytes())["outputs"] == outputs(ROOT)


@pytest.mark.slow
@needs_mnist
def test_the_committed_results_are_reproduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole pipeline on MNIST: the same bytes on every processor of this arithmetic, elsewhere the same metrics."""
    project = clone(tmp_path)
    monkeypatch.chdir(project)
    elsewhere = explanations(environment_changes(outputs(project)))
    text = sh("lenet", "verify", cwd=project, status=None if elsewhere else 0, MNIST_MIRROR=str(MNIST))
    lines = text.splitlines()
    assert [line.split("'")[1] for line in lines if line.startswith("Running stage '")] == [
        *["download", "preprocess", "train", "evaluate", "plot"]
    ]
    for path in ("data/raw", "data/processed", "plots/samples.png"):
        assert f"{path:30} equal" in lines
    assert "was not made from the committed sources" not in text
    [line] = [line for line in lines if line.endswith("of 10000 test images are classified correctly")]
    accuracy = float(line.split("%")[0]) / 100
    committed = json.loads((project / "metrics/test.json").read_bytes())["accuracy"]
    assert accuracy >= 0.99
    # Another arithmetic rounds differently: then the bytes differ, but hardly the metrics.
    assert accuracy == pytest.approx(committed, abs=0.002 if elsewhere else 1e-9)
    assert lines[0].startswith("equal: ") or (elsewhere and lines[0].startswith("explained: "))


@pytest.mark.parametrize(("committed", "here"), [(0.99, math.nan), (math.nan, 0.99), (0.99, 0.9849), (0.98, 0.9851)])
def test_what_is_not_tolerated(committed: float, here: float) -> None:
    assert not Change("metrics/test.json accuracy", committed, here).tolerated


@pytest.mark.parametrize(
    ("name", "near", "far"),
    [("accuracy", 0.004, 0.006), ("error_rate", 0.004, 0.006), ("validation_loss", 0.019, 0.021)],
)
def test_each_metric_has_its_own_tolerance(name: str, near: float, far: float) -> None:
    assert Change(f"metrics/test.json {name}", 0.5, 0.5 + near).tolerated
    assert Change(f"metrics/test.json {name}", 0.5, 0.5 - near).tolerated
    assert not Change(f"metrics/test.json {name}", 0.5, 0.5 + far).tolerated
    assert not Change(f"metrics/test.json {name}_of_loss_and_more", 0.5, 0.5 + near).tolerated


def test_a_record_of_other_outputs_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment_changes({"a": "1"})["unknown"].startswith(f"{RECORD} is missing")
    RECORD.write_text(json.dumps({"environment": {"python": "3.0"}, "outputs": {"a": "2"}}))
    changes = environment_changes({"a": "1"})
    assert list(changes) == ["unknown"]
    assert changes["unknown"].startswith(f"{RECORD} belongs to other outputs")
