"""The same source and parameters give the same bytes, wherever, whenever and by whomever they are run."""

import json
import shutil
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import DIGITS, MNIST, ROOT, clone, commit, needs_mnist, set_params, sh, tree
from kill import remove, state

from lenet.data.tensors import load_dataset
from lenet.experiments.verify import RECORD, Change, environment_changes, outputs
from lenet.network.lenet import build
from lenet.params import load_params
from lenet.training import loop

DEFAULTS = load_params(ROOT / "params.yaml")


def assert_same(project: Path, reference: Path) -> None:
    found, expected = state(project), state(reference)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_forced_again(digits_project: Path, digits_run: Path) -> None:
    text = sh("dvc", "repro", "--force", cwd=digits_project)
    assert text.count("Running stage") == 5
    assert_same(digits_project, digits_run)


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
            marks=pytest.mark.skipif(not can(*AS_ANOTHER, "true"), reason="needs Linux's user namespaces"),
        ),
    ],
)
def test_elsewhere(tmp_path: Path, digits_run: Path, prefix: list[str]) -> None:
    """Another clone in another folder, and all of what a program could take from its surroundings."""
    (tmp_path / "a folder").mkdir()
    project = clone(tmp_path / "a folder")
    set_params(project, *DIGITS)
    around = {"TZ": "Pacific/Kiritimati", "LC_ALL": "de_DE.UTF-8", "PYTHONHASHSEED": "99", "OMP_NUM_THREADS": "3"}
    sh(*prefix, "dvc", "repro", "--force", cwd=project, USER="somebody", LOGNAME="somebody", **around)
    assert_same(project, digits_run)


def experiment_lock(project: Path, name: str) -> bytes:
    references = sh("git", "for-each-ref", "--format=%(refname)", "refs/exps", cwd=project).split()
    [reference] = [reference for reference in references if reference.endswith(f"/{name}")]
    return sh("git", "show", f"{reference}:dvc.lock", cwd=project).encode()


def test_experiments_elsewhere_and_side_by_side(digits_project: Path) -> None:
    """In a temporary folder, and from the queue with two workers; DVC must not have anything to take instead."""
    lock = (digits_project / "dvc.lock").read_bytes()
    remove(digits_project)
    commit(digits_project, "no run")

    sh("dvc", "exp", "run", "--temp", "--name", "aside", cwd=digits_project)
    assert experiment_lock(digits_project, "aside") == lock

    shutil.rmtree(digits_project / ".dvc/cache")
    names = ["queued-1", "queued-2"]
    for name in names:
        sh("dvc", "exp", "run", "--queue", "--name", name, cwd=digits_project)
    try:
        sh("dvc", "queue", "start", "--jobs", "2", cwd=digits_project)
        deadline = time.monotonic() + 300
        while (text := sh("dvc", "queue", "status", cwd=digits_project)).count("Success") < 2:
            assert "Failed" not in text, text
            assert time.monotonic() < deadline, text
            time.sleep(1)
    finally:
        sh("dvc", "queue", "stop", "--kill", cwd=digits_project)
    assert [experiment_lock(digits_project, name) == lock for name in names] == [True, True]


def test_outputs_say_nothing_of_where_they_were_made(digits_run: Path) -> None:
    words = [str(digits_run), digits_run.name, sys.prefix, torch.__version__.split("+")[0], time.strftime("%Y-%m-%d")]
    for name, content in tree(digits_run).items():
        assert [word for word in words if word.encode() in content] == [], name


@pytest.mark.parametrize(
    ("model", "train"),
    [
        ({}, {}),
        ({"dropout": 0.2, "batch_norm": True}, {"optimizer": "sgd", "schedule": "step", "augment": 0.5}),
        ({"pooling": "trainable", "c3": "sparse"}, {"optimizer": "adam", "schedule": "constant"}),
    ],
)
def test_an_epoch_is_a_function_of_the_state_before_it(digits_run: Path, model: dict, train: dict) -> None:
    """From the state after any epoch, with another network in memory and another global generator, the same comes."""
    data = load_dataset(digits_run / "data/processed/validation.pt")
    options = DEFAULTS.train.model_copy(update={"batch_size": 32, "epochs": 3} | train)
    network = build(DEFAULTS.model.model_copy(update=model))
    states, rows = [], []
    for row, reached in loop.train(network, data, data, options, torch.device("cpu")):
        # A copy, for the training goes on to change its own.
        states.append(deepcopy(reached))
        rows.append(row)
    expected = network.state_dict()
    for done, reached in enumerate(states, 1):
        torch.manual_seed(done)
        other = build(DEFAULTS.model.model_copy(update=model))
        again = [row for row, _ in loop.train(other, data, data, options, torch.device("cpu"), reached)]
        assert again == rows[done:]
        assert all(other.state_dict()[name].equal(expected[name]) for name in expected)


def test_verify(digits_project: Path) -> None:
    """What is committed comes out again; where it does not, it is said what, and what may be why."""
    before = tree(digits_project)
    text = sh("lenet", "verify", "--record", cwd=digits_project)
    assert "all 14 outputs are those of dvc.lock, to the byte" in text
    assert "DIFFERS" not in text
    assert tree(digits_project) == before
    assert sh("git", "status", "--porcelain", cwd=digits_project) in ("", f" M {RECORD}\n")
    record = json.loads((digits_project / RECORD).read_bytes())
    assert record["outputs"] == outputs(digits_project)

    # The same as if it had been committed from another machine, after a change of code that was not run.
    md5 = record["outputs"]["models/lenet.pt"]
    lock = digits_project / "dvc.lock"
    lock.write_text(lock.read_text().replace(md5, "ab" * 16))
    record["outputs"]["models/lenet.pt"] = "ab" * 16
    record["environment"] |= {"processor": "a Pentium, 90 MHz", "torch": "0.1"}
    (digits_project / RECORD).write_text(json.dumps(record))
    metrics = json.loads((digits_project / "metrics/test.json").read_text())
    (digits_project / "metrics/test.json").write_text(json.dumps(metrics | {"accuracy": 0.5}))
    (digits_project / "stages/plot.py").write_text((digits_project / "stages/plot.py").read_text() + "\n")
    commit(digits_project, "from elsewhere")
    text = sh("lenet", "verify", cwd=digits_project, status=1)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("DIFFERS")] == ["models/lenet.pt"]
    assert "dvc.lock was not made from what is committed beside it, but from other versions of:" in lines
    assert "  stages/plot.py" in lines
    assert "  stages/train.py" not in lines
    assert "processor: a Pentium, 90 MHz; here: " in text
    assert f"torch: 0.1; here: {torch.__version__}" in text
    assert "numpy" not in text
    [accuracy] = [line for line in lines if "metrics/test.json accuracy" in line]
    assert accuracy.split()[2] == "0.5"
    assert accuracy.endswith("BEYOND")
    assert lines[-1].startswith("error: 1 of 14 outputs are not those of dvc.lock; their metrics are beyond")


def test_tolerance() -> None:
    assert Change("metrics/test.json accuracy", 0.99, 0.9949).tolerated
    assert not Change("metrics/test.json accuracy", 0.99, 0.9951).tolerated
    assert Change("metrics/train.json train_loss", 0.03, 0.011).tolerated
    assert not Change("metrics/train.json parameters", 61706, 61707).tolerated


def test_verify_outside_of_a_project(tmp_path: Path) -> None:
    assert "error: cannot clone this folder" in sh("lenet", "verify", cwd=tmp_path, status=1)
    sh("git", "init", "--quiet", cwd=tmp_path)
    sh("git", "commit", "--quiet", "--allow-empty", "-m", "nothing", cwd=tmp_path)
    assert "error: the last commit has no dvc.lock" in sh("lenet", "verify", cwd=tmp_path, status=1)


def test_the_committed_environment_is_of_the_committed_lock() -> None:
    assert json.loads((ROOT / RECORD).read_bytes())["outputs"] == outputs(ROOT)


@needs_mnist
def test_what_is_committed_can_be_had_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole pipeline on MNIST: the same bytes in the environment that is recorded, elsewhere the same metrics."""
    project = clone(tmp_path)
    monkeypatch.chdir(project)
    elsewhere = environment_changes(outputs(project))
    text = sh("lenet", "verify", cwd=project, status=None if elsewhere else 0, MNIST_MIRROR=str(MNIST))
    lines = text.splitlines()
    assert [line.split("'")[1] for line in lines if line.startswith("Running stage '")] == [
        *["download", "preprocess", "train", "evaluate", "plot"]
    ]
    for path in ("data/raw", "data/processed", "plots/samples.png"):
        assert f"{path:30} equal" in lines
    assert "was not made from what is committed" not in text
    [line] = [line for line in lines if line.endswith("of 10000 test images are classified right")]
    accuracy = float(line.split("%")[0]) / 100
    committed = json.loads((project / "metrics/test.json").read_bytes())["accuracy"]
    assert accuracy >= 0.99
    # Another processor may round otherwise, and the bytes differ from the committed ones; what they mean does not.
    assert accuracy == pytest.approx(committed, abs=0.002 if elsewhere else 1e-9)
    assert lines[-1].endswith("to the byte") or (elsewhere and lines[-1].endswith("metrics are within the tolerance"))
