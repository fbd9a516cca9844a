"""lenet sweep on this machine: which experiments there are, their names, and what lands."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RunLenet, assert_refused, commit, set_params, sh
from test_data import photographs
from test_presets import stub_stages

from lenet.experiments.sweep import name_of
from lenet.params import parse_yaml


def experiments(project: Path) -> dict[str, str]:
    """The experiments of the last commit, name -> commit."""
    listed = sh("git", "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps", cwd=project).splitlines()
    rows = [line.split() for line in listed]
    return {reference.rpartition("/")[2]: commit for reference, commit in rows if "/exec/" not in reference}


def test_a_sweep_gives_what_dvc_gives(digits_project: Path) -> None:
    """Each combination is an experiment, with the bytes of `dvc exp run`; the second time there is nothing to do."""
    settings = ["model.activation=tanh", "train.seed=range(1,3)", "train.epochs=1"]
    sweep = ["lenet", "sweep", *(word for each in settings for word in ("-S", each))]
    text = sh(*sweep, cwd=digits_project)
    names = [f"activation-tanh-epochs-1-seed{seed}" for seed in (1, 2)]
    assert sorted(experiments(digits_project)) == names
    *lines, means, empty, last = text.splitlines()
    for name in names:
        assert f"{name}: running" in lines
        [done] = [line for line in lines if line.startswith(f"{name}: done on this machine ")]
        shown = sh("git", "show", f"{experiments(digits_project)[name]}:metrics/test.json", cwd=digits_project)
        assert done.endswith(f" {json.loads(shown)['accuracy']:.2%}")
    assert means.startswith("activation-tanh-epochs-1  test accuracy ")
    assert ", 2 seeds, 95% interval of the mean " in means
    assert (empty, last) == ("", "2 experiments; `dvc exp show` lists them")
    assert "activation-tanh-epochs-1-seed2" in sh("dvc", "exp", "show", cwd=digits_project)

    assert sh("git", "status", "--porcelain", cwd=digits_project) == "", "the workspace is as it was"
    assert not list((digits_project / ".dvc/tmp/lenet/tasks").iterdir())
    values = ["model.activation=tanh", "train.seed=2", "train.threads=1", "train.epochs=1"]
    options = [word for value in values for word in ("-S", value)]
    sh("dvc", "exp", "run", "--temp", "--force", "--name", "single", *options, cwd=digits_project)
    landed = experiments(digits_project)
    assert sh("git", "diff", landed["single"], landed["activation-tanh-epochs-1-seed2"], cwd=digits_project) == ""

    text = sh(*sweep, cwd=digits_project)
    assert text.count(": landed before") == 2
    assert "running" not in text


def test_a_failure_does_not_stop_the_others(digits_project: Path, run_lenet: RunLenet) -> None:
    """The stub has an accuracy for the seeds 0, 1 and 2 only. What has failed runs again, what has landed does not."""
    (digits_project.parent / "hangs").touch()
    stub_stages(digits_project)
    commit(digits_project, "stubs")
    arguments = ["sweep", "-S", "train.seed=3,0,2", "--jobs", "2"]
    outcome = run_lenet(digits_project, *arguments)
    assert outcome.status == 1
    assert "params-seed3: failed on this machine: failed to reproduce '" in outcome.output
    assert "params  test accuracy 93.50% ± 4.95, 2 seeds" in outcome.output
    assert outcome.error.startswith("error: the experiment params-seed3 failed: failed to reproduce '")
    assert outcome.error.endswith("; .dvc/tmp/lenet/logs/params-seed3.log has what it printed\n")
    log = digits_project / ".dvc/tmp/lenet/logs/params-seed3.log"
    assert "IndexError: list index out of range" in log.read_text()
    assert sorted(experiments(digits_project)) == ["params-seed0", "params-seed2"]
    again = run_lenet(digits_project, *arguments)
    assert again.status == 1
    assert [line for line in again.output.splitlines() if "running" in line] == ["params-seed3: running"]


def test_a_clone_that_never_had_the_committed_data(digits_project: Path, run_lenet: RunLenet) -> None:
    """The second experiment's training comes from DVC's cache, which lacks what the commit's dvc.lock names."""
    hangs = digits_project.parent / "hangs"
    hangs.touch()
    stub_stages(digits_project)
    commit(digits_project, "stubs")
    lock: Any = parse_yaml((digits_project / "dvc.lock").read_bytes(), "dvc.lock")
    for stage in ("download", "preprocess"):
        [output] = lock["stages"][stage]["outs"]
        (digits_project / f".dvc/cache/files/md5/{output['md5'][:2]}/{output['md5'][2:]}").unlink()
    for mistakes in (3, 4):
        outcome = run_lenet(digits_project, "sweep", "-S", "train.seed=1", "-S", f"plot.mistakes={mistakes}")
        assert outcome.status == 0, outcome
        hangs.unlink(missing_ok=True)  # So that another training would show.
    assert not hangs.exists()


@pytest.mark.slow
def test_images_of_ones_own_beside_the_project(digits_project: Path, tmp_path: Path) -> None:
    """Git does not have them, and their folder is named relative to the project."""
    for images in photographs(tmp_path / "shapes", 10, classes=2).iterdir():
        images.rename(digits_project / "data/own" / images.name)
    settings = ["data.dataset=own", "preprocess.validation_size=2", "train.epochs=1", "train.batch_size=8"]
    text = sh("lenet", "sweep", *(word for each in settings for word in ("-S", each)), cwd=digits_project)
    assert "dataset-own-validation_size-2-epochs-1-train-batch_size-8: done" in text
    again = sh("lenet", "sweep", *(word for each in settings for word in ("-S", each)), cwd=digits_project)
    assert "landed before" in again
    next((digits_project / "data/own").rglob("*.png")).unlink()
    changed = sh("lenet", "sweep", *(x for each in settings for x in ("-S", each)), cwd=digits_project, status=1)
    assert "exists already, with other parameters or code; remove it, `dvc exp remove dataset-own-" in changed


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (
            ["model.activation=tanh", "train.learning_rate=0.003", "train.seed=4"],
            "activation-tanh-learning_rate-0.003-seed4",
        ),
        (["train.seed=4", "model.activation=tanh"], "activation-tanh-seed4"),
        (["train.seed=0"], "params-seed0"),
        (["train.batch_size=32", "evaluate.batch_size=100"], "train-batch_size-32-evaluate-batch_size-100"),
        (["preprocess.seed=1"], "preprocess-seed-1"),
        (["data.folder=/my/photos of cats"], "folder-my-photos-of-cats-96a4cf4a"),
        (["data.folder=/my/photos/of cats"], "folder-my-photos-of-cats-adad94ae"),
    ],
)
def test_names(overrides: list[str], name: str) -> None:
    assert name_of(overrides) == name


def test_long_names_differ() -> None:
    names = {name_of([f"data.folder={'x' * 300}{number}", "train.seed=1"]) for number in range(10)}
    assert len(names) == 10
    assert all(len(name) < 120 and name.endswith("-seed1") for name in names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to sweep over; name values, for example -S model.activation=relu,tanh"),
        (["-S", "train.epochs"], "-S train.epochs: "),
        (["-S", "train.epochs=range(0"], "-S train.epochs=range(0: "),
        (["-S", "epochs=1,2"], "--set epochs=1: must be SECTION.KEY=VALUE"),
        (["-S", "train.epocs=1,2"], "-S: train.epocs is not a parameter; did you mean train.epochs?"),
        (["-S", "train.epochs=1,0"], "-S: train.epochs is 0; it must be an integer, at least 1"),
        (["-S", "train.epochs=1,2", "-S", "train.epochs=3"], "-S train.epochs is given twice; give all of its values"),
        (["-S", "model.activation=glob(*)"], "-S model.activation=glob(*): "),
        (
            ["-S", "train.seed=0", "--jobs", "2", "--scheduler", "tcp://127.0.0.1:9"],
            "--jobs cannot be used with --scheduler",
        ),
        (["-S", "train.seed=0", "--scheduler", "tcp://127.0.0.1:9"], "land in the Git remote origin: add it, `git rem"),
    ],
)
def test_bad_commands(digits_run: Path, run_lenet: RunLenet, arguments: list[str], words: str) -> None:
    assert_refused(run_lenet(digits_run, "sweep", *arguments), words)


def test_what_is_not_committed(digits_project: Path, run_lenet: RunLenet) -> None:
    """Changed parameters are run, as by `dvc exp run`; changed code is refused, because runs are of a commit."""
    (digits_project.parent / "hangs").touch()
    stub_stages(digits_project)
    assert_refused(run_lenet(digits_project, "sweep", "-S", "train.seed=0"), "stages/download.py has changes that are")
    commit(digits_project, "stubs")
    set_params(digits_project, "model.activation=tanh")
    assert run_lenet(digits_project, "sweep", "-S", "train.seed=0").status == 0
    shown = sh("git", "show", f"{experiments(digits_project)['params-seed0']}:params.yaml", cwd=digits_project)
    assert "activation: tanh" in shown
    sh("git", "checkout", "params.yaml", cwd=digits_project)
    words = (
        "the experiment params-seed0 exists already, with other parameters or code; remove it, `dvc exp remove params"
    )
    assert_refused(run_lenet(digits_project, "sweep", "-S", "train.seed=0"), words)
    (digits_project / "stages/new.py").touch()
    assert_refused(run_lenet(digits_project, "sweep", "-S", "train.seed=0"), "stages/new.py has changes that are not")


def test_outside_of_a_project(tmp_path: Path, run_lenet: RunLenet) -> None:
    assert_refused(
        run_lenet(tmp_path, "sweep", "-S", "train.seed=0"), "params.yaml: no such file; run this in the proj"
    )
