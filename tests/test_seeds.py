"""lenet seeds: the same experiment with several seeds, resumed, named, summarised."""

import json
from pathlib import Path

import pytest
from conftest import RunLenet, assert_refused, commit, set_params, sh
from test_presets import kill_while_it_hangs, stub_stages

from lenet.experiments.seeds import group_name


def test_interrupted_seeds_do_not_repeat_finished_runs(digits_project: Path, run_lenet: RunLenet) -> None:
    stub_stages(digits_project)
    commit(digits_project, "stubs")
    seen = kill_while_it_hangs(digits_project, "lenet", "seeds", "3", "-S", "model.activation=tanh", "--jobs", "1")
    assert "activation-tanh-seed0: done on this machine 90.00%" in seen

    text = sh("lenet", "seeds", "3", "-S", "model.activation=tanh", "--jobs", "2", cwd=digits_project)
    assert text.count(": running") == 2
    assert "activation-tanh-seed0: done 90.00%: landed before" in text
    assert text.splitlines()[-4:] == [
        "activation-tanh-seed0  90.00%",
        "activation-tanh-seed1  92.00%",
        "activation-tanh-seed2  97.00%",
        "activation-tanh: 3 seeds, test accuracy 93.00% ± 3.61 (the deviation), from 90.00% to 97.00%, "
        "95% interval of the mean 84.04% to 100.00%",
    ]
    assert sh("git", "status", "--porcelain", cwd=digits_project) == "", "the workspace is as it was"
    [table] = json.loads(sh("dvc", "exp", "show", "--json", cwd=digits_project))[1:]
    done = [group["revs"][0] for group in table["experiments"] if not group["executor"]]
    params = {entry["name"]: entry["data"]["params"]["params.yaml"]["data"] for entry in done}
    assert [params[f"activation-tanh-seed{seed}"]["train"]["seed"] for seed in range(3)] == [0, 1, 2]
    assert {values["model"]["activation"] for values in params.values()} == {"tanh"}
    assert {values["train"]["threads"] for values in params.values()} == {1}

    # Again: nothing is left to do. A fourth seed: the stub has no accuracy for it, and the failure is reported.
    outcome = run_lenet(digits_project, "seeds", "3", "-S", "model.activation=tanh")
    assert outcome.status == 0
    assert "running" not in outcome.output
    assert run_lenet(digits_project, "seeds", "2", "-S", "model.activation=tanh").output.splitlines() == [
        "activation-tanh-seed0: done 90.00%: landed before",
        "activation-tanh-seed1: done 92.00%: landed before",
        "activation-tanh-seed0  90.00%",
        "activation-tanh-seed1  92.00%",
        "activation-tanh: 2 seeds, test accuracy 91.00% ± 1.41 (the deviation), from 90.00% to 92.00%, "
        "95% interval of the mean 78.29% to 100.00%",
    ]

    # The same name with other parameters or code is refused: nothing is lost.
    words = (
        "activation-tanh-seed0 exists already, with other parameters or code; remove it, `dvc exp remove activation-"
    )
    assert_refused(run_lenet(digits_project, "seeds", "3", "--name", "activation-tanh"), words)
    set_params(digits_project, "train.epochs=7")
    assert_refused(run_lenet(digits_project, "seeds", "3", "-S", "model.activation=tanh"), words)

    # A group is compared with another by its name.
    other = ["--name", "seven", "--jobs", "2"]
    assert "seven: 3 seeds, test accuracy 93.00%" in sh("lenet", "seeds", "3", *other, cwd=digits_project)
    outcome = run_lenet(digits_project, "compare", "activation-tanh", "seven")
    assert outcome.output.startswith("activation-tanh and seven have the same mean accuracy.")
    assert "Parameters that differ: model.activation tanh and relu, train.epochs 2 and 7" in outcome.output


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ([], "params"),
        (["model.activation=tanh"], "activation-tanh"),
        (["data.dataset=fashion_mnist", "train.learning_rate=1e-3"], "dataset-fashion_mnist-learning_rate-1e-3"),
        (["data.folder=../photos"], "folder---photos"),
        (["data.folder=/my/photos of cats"], "folder-my-photos-of-cats"),
    ],
)
def test_the_name_says_what_is_set(settings: list[str], name: str) -> None:
    assert group_name(settings) == name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["3", "-S", "train.seed=1"], "--set train.seed: the runs have the seeds 0, 1, ... and train in one thread"),
        (["3", "-S", "train.threads=2"], "--set train.threads: the runs have the seeds"),
        (["3", "-S", "train.epocs=1"], "--set: train.epocs is not a parameter; did you mean train.epochs?"),
        (["3", "-S", "epochs=1"], "--set epochs=1: must be SECTION.KEY=VALUE"),
        (["3", "--name", "a/b"], "--name a/b: a name consists of letters"),
        (["3", "--name", "a b"], "--name a b: a name consists of letters"),
        (["3", "--name", "-x"], "--name -x: a name consists of letters, digits, -, _ and ., and does not begin with -"),
        (["3", "--name", "a..b"], "--name a..b: a name consists of letters"),
        (["3", "--name", "HEAD"], "--name HEAD: HEAD is the name of a revision already; choose another"),
        (["3", "--name", "workspace"], "--name workspace: workspace is the name of a revision already"),
    ],
)
def test_bad_commands(digits_run: Path, run_lenet: RunLenet, arguments: list[str], words: str) -> None:
    assert_refused(run_lenet(digits_run, "seeds", *arguments), words)


def test_one_seed_is_not_several(digits_run: Path, run_lenet: RunLenet) -> None:
    outcome = run_lenet(digits_run, "seeds", "1")
    assert outcome.status == 2
    assert outcome.error.startswith("error: Invalid value for 'N'")


def test_outside_of_a_project(tmp_path: Path, run_lenet: RunLenet) -> None:
    assert_refused(run_lenet(tmp_path, "seeds", "3"), "params.yaml: no such file; run this in the project's root")
