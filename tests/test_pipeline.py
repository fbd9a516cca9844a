"""The pipeline as users run it: dvc and make, in a clone."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import FILES, ROOT, STAGES, clone, set_params, sh
from ruamel.yaml import YAML


def ran(text: str) -> list[str]:
    return [name for name in STAGES if f"Running stage '{name}'" in text]


def test_nothing_to_do(digits_project: Path) -> None:
    assert ran(sh("dvc", "repro", cwd=digits_project)) == []
    assert "up to date" in sh("dvc", "status", cwd=digits_project)
    assert sh("git", "status", "--porcelain", cwd=digits_project) == ""


def test_an_experiment_and_its_comparison(digits_project: Path) -> None:
    text = sh("dvc", "exp", "run", "--name", "tanh", "-S", "model.activation=tanh", cwd=digits_project)
    assert ran(text) == ["train", "evaluate", "plot"]

    diff = sh("dvc", "params", "diff", cwd=digits_project)
    assert "model.activation" in diff
    assert "tanh" in diff
    assert "1 file changed, 1 insertion(+), 1 deletion(-)" in sh(
        "git", "diff", "--stat", "params.yaml", cwd=digits_project
    )
    metrics = sh("dvc", "metrics", "diff", cwd=digits_project)
    for word in ("metrics/test.json", "accuracy", "error_rate", "loss", "metrics/train.json", "train_loss"):
        assert word in metrics
    classes = [line.split()[1] for line in metrics.splitlines() if line.startswith("metrics/per_class.json")]
    assert set(classes) <= set("0123456789")
    assert len(classes) > 3, "overall and for each class"

    sh("dvc", "plots", "diff", cwd=digits_project)
    page = (digits_project / "dvc_plots/index.html").read_text()
    for title in ("Loss", "Error", "Confusion matrix", "F1 score of each class", "mistakes.png", "embedding.png"):
        assert title in page

    # The experiment is listed by name with its parameter and its metrics.
    table = sh("dvc", "exp", "show", "--csv", cwd=digits_project)
    columns, *rows = (line.split(",") for line in table.splitlines())
    [row] = [dict(zip(columns, row, strict=True)) for row in rows if "tanh" in row[0:1] or "tanh" in row[1:2]]
    assert row["model.activation"] == "tanh"
    assert float(row["accuracy"]) > 0.5

    # Results that DVC has computed before come from its cache.
    text = sh("dvc", "exp", "run", "-S", "model.activation=relu", cwd=digits_project)
    assert ran(text) == []
    assert sh("git", "status", "--porcelain", cwd=digits_project) == ""


@pytest.mark.slow
def test_an_experiment_outside_the_workspace(digits_project: Path) -> None:
    sh("dvc", "exp", "run", "--temp", "--name", "aside", "-S", "plot.mistakes=3", cwd=digits_project)
    assert sh("git", "status", "--porcelain", cwd=digits_project) == ""
    assert "aside" in sh("dvc", "exp", "list", cwd=digits_project)


def test_a_bad_value_stops_the_experiment(digits_project: Path) -> None:
    text = sh("dvc", "exp", "run", "-S", "train.epochs=1.5", cwd=digits_project, status=None)
    assert "error: params.yaml: train.epochs is 1.5; it must be an integer, at least 1" in text
    assert "Traceback" not in text
    sh("dvc", "exp", "run", "-S", "train.epocs=3", cwd=digits_project, status=255)


def test_a_misspelt_key_is_refused(digits_project: Path) -> None:
    """Stages declare whole sections, so that an unknown key makes one run and refuse it."""
    params = digits_project / "params.yaml"
    params.write_text(params.read_text().replace("\nplot:\n", "\nplot:\n  mistake: 3\n"))
    text = sh("dvc", "repro", cwd=digits_project, status=None)
    assert "plot.mistake is not a parameter; did you mean plot.mistakes?" in text


def test_switching_the_data_set_and_back_needs_no_mirror(digits_project: Path) -> None:
    set_params(digits_project, "data.dataset=mnist")
    text = sh("dvc", "repro", cwd=digits_project, status=None)
    assert "error: no mirror delivered" in text
    assert "make demo" in text
    set_params(digits_project, "data.dataset=digits")
    assert ran(sh("dvc", "repro", cwd=digits_project)) == []


def committed(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / name).read_text())
    return loaded


def test_the_committed_lock_is_up_to_date(tmp_path: Path) -> None:
    """In a fresh clone DVC misses only the outputs that are not in Git."""
    project = clone(tmp_path)
    status = json.loads(sh("dvc", "status", "--json", cwd=project))
    made = {"data/raw", "data/processed", "models/lenet.pt", "data/features.npz"}
    made |= {f"data/processed/{name}.pt" for name in ("training", "validation", "test")}
    made |= {f"data/raw/{name}" for name in ("dataset.json", *(resource.name for resource in FILES))}
    for stage, changes in status.items():
        for change in changes:
            assert set(change) <= {"changed deps", "changed outs"}, f"{stage}: {change}"
            for kind, entries in change.items():
                for path, how in entries.items():
                    assert path in made, f"{stage}: {kind}: {path}: {how}"
                    assert how in ("deleted", "not in cache"), f"{stage}: {kind}: {path}: {how}"
    lock = YAML(typ="safe").load(project / "dvc.lock")
    assert set(lock["stages"]) == set(STAGES)
    assert lock["stages"]["download"]["params"]["params.yaml"]["data"]["dataset"] == "mnist"
    assert committed("metrics/test.json")["accuracy"] >= 0.992


def test_make_lists_its_targets() -> None:
    text = sh("make", cwd=ROOT)
    for target in ("demo", "repro", "test", "test-all", "lint", "bench"):
        assert f"make {target} " in text


@pytest.mark.skipif(not (ROOT / ".venv/ready").exists(), reason="needs the .venv that make sets up")
def test_make_demo(tmp_path: Path) -> None:
    """In a clone without a network, by a user unknown to Git. The set-up of .venv is not repeated."""
    project = clone(tmp_path / "project")
    (project / ".venv").symlink_to(ROOT / ".venv")
    # -o: or make might install this clone into the environment of the tests.
    text = sh("make", "-o", ".venv/ready", "demo", cwd=project, HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path))
    assert sh("git", "status", "--porcelain", cwd=project) == ""
    assert json.loads((project / "demo/metrics/test.json").read_text())["accuracy"] > 0.95
    pictures = [line.split()[0] for line in text.splitlines() if line.strip().startswith("demo/")]
    assert pictures
    assert all((project / path).exists() for path in pictures)
    assert "demo" in sh("dvc", "exp", "show", "--csv", cwd=project / "demo")


def test_make_says_which_python_is_needed(tmp_path: Path) -> None:
    project = clone(tmp_path / "project")
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\necho \"$2\" | sed 's/sys.version_info/(3, 9)/; s/^/import sys; /' | exec python3 -\n")
    old.chmod(0o755)
    text = sh("make", "demo", f"PYTHON={old}", cwd=project, status=2)
    assert "3.11 or later is needed" in text
    assert not (project / ".venv").exists()
