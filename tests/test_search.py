"""lenet search: spaces, trials that do not depend on the order of their ends, pruning, one look at the test set."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import RunLenet, assert_refused, commit, sh
from test_presets import stub_stages

from lenet.errors import InputError
from lenet.experiments import origin, search
from lenet.experiments.origin import Finished
from lenet.experiments.presets import Values
from lenet.experiments.search import Plan
from lenet.experiments.sweep import Run, Sweep

SPACES = ["train.learning_rate=log(0.001,0.1)", "model.dropout=0:0.4"]
SPACED = [space.split("=")[0] for space in SPACES]

STUB = """
import sys
record, text = Path(RECORD), Path("params.yaml").read_text()
rate, dropout = (float(re.search(f"^  {key}: ([0-9.e-]+)", text, re.M)[1]) for key in ("learning_rate", "dropout"))
if stage in ("train", "evaluate"):
    with record.open("a") as file:
        print(stage, rate, dropout, file=file)
if stage == "train":
    if dropout > 0 and not record.with_name("hung").exists():
        record.with_name("hung").touch()
        time.sleep(600)
    if rate == FAILS:
        sys.exit("error: training diverged in epoch 1")
    Path("metrics/train.json").write_text(json.dumps(train | {"validation_accuracy": 0.9 + dropout / 10}))
"""


def stub(project: Path, fails: float = 0) -> Path:
    """Stages that record their runs in a file, which is returned.

    The first training with dropout hangs, and all with the learning rate `fails` fail.
    """
    stub_stages(project)
    record = project.parent / "record"
    for path in [project / "stages/train.py", project / "stages/evaluate.py"]:
        more = STUB.replace("RECORD", repr(str(record))).replace("FAILS", str(fails))
        path.write_text(path.read_text() + more)
    commit(project, "stubs")
    return record


class Judge:
    """In place of a sweep: judges an experiment by its parameters, and keeps which were run."""

    def __init__(self, backwards: bool = False, fails: Sequence[str] = ()) -> None:
        self.batches: list[list[str]] = []
        self._backwards = backwards
        self._fails = fails

    def run(self, runs: Sequence[Run]) -> tuple[dict[str, Finished], dict[str, str]]:
        self.batches.append([run.name for run in runs])
        failures = {run.name: "training diverged" for run in runs if run.name in self._fails}
        done = {run.name: self._finished(run) for run in runs if run.name not in failures}
        return (dict(reversed(done.items())) if self._backwards else done), failures

    def _finished(self, run: Run) -> Finished:
        accuracy = 0.95 - abs(run.values["model"]["dropout"] - 0.2) - run.values["train"]["seed"] / 1000
        test = {} if run.last == "train" else {"accuracy": accuracy - 0.01}
        return Finished("", run.values, {"validation_accuracy": accuracy, **test}, True)


def found(planned: Plan, judge: Judge) -> list[search.Trial]:
    return search.run(planned, cast(Sweep, judge))


@pytest.fixture
def _in_a_project(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits_run)


def plan(*settings: str, trials: int = 16, batch: int = 4, seeds: int = 1, seed: int = 0) -> Plan:
    return search.plan(settings or SPACES, "search", trials, batch, seeds, seed)


def experiments(project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Values, dict[str, float]]]:
    """The parameters and metrics of all experiments, by name."""
    monkeypatch.chdir(project)
    place = origin.here()
    done = origin.finished(place, place.landed())
    return {name: (experiment.values, experiment.metrics) for name, experiment in sorted(done.items())}


COMMAND = ["search", *(word for space in SPACES for word in ("-S", space))]


def test_an_interrupted_search_is_resumed_and_meets_the_test_set_once(
    digits_project: Path, run_lenet: RunLenet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits_project)
    default, other = (trial.chosen for trial in found(plan(trials=2), Judge()))
    assert repr(default) == "{'train.learning_rate': 0.01, 'model.dropout': 0}", "as params.yaml has them"
    record = stub(digits_project)
    command = [*COMMAND, "--trials", "2", "--jobs", "1"]

    # Kill it while the second trial is trained.
    running = subprocess.Popen(
        ["lenet", *command], cwd=digits_project, stdout=subprocess.DEVNULL, start_new_session=True
    )
    while not (tmp_path / "hung").exists():
        assert running.poll() is None
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=60)

    outcome = run_lenet(digits_project, *command)
    assert outcome.status == 0, outcome
    text = outcome.output
    assert "search-trial00: done 90.00%: landed before" in text
    assert text.splitlines()[0] == "search-trial00: -S train.learning_rate=0.01 -S model.dropout=0"
    words = f"-S train.learning_rate={other['train.learning_rate']} -S model.dropout={other['model.dropout']}"
    best = f"{0.9 + other['model.dropout'] / 10:.2%}"
    summary = text[text.index("\n2 trials: ") + 1 :].splitlines()
    assert summary[0] == "2 trials: 2 completed"
    assert [row.split()[:2] for row in summary[2:4]] == [["search-trial01", best], ["search-trial00", "90.00%"]]
    assert summary[5:8] == [
        f"The best is search-trial01: {words}",
        f"Validation accuracy {best}; with the values of params.yaml, search-trial00, 90.00%.",
        "As the best of many it is optimistic: luck has helped to choose it. The test accuracy, below, is not.",
    ]
    assert summary[-1] == "search-best: test accuracy 90.00%"
    assert sh("git", "status", "--porcelain", cwd=digits_project) == "", "the workspace is as it was"

    ran = ["train 0.01 0.0", *(f"{stage} {' '.join(map(str, other.values()))}" for stage in ("train", "evaluate"))]
    assert sorted(set(record.read_text().splitlines())) == sorted(ran)
    assert record.read_text().count("train 0.01 0.0\n") == record.read_text().count("evaluate") == 1
    there = experiments(digits_project, monkeypatch)
    assert list(there) == ["search-best", "search-trial00", "search-trial01"]
    assert ["accuracy" in metrics for _, metrics in there.values()] == [True, False, False]
    assert there["search-best"][0] == there["search-trial01"][0]
    assert {values["train"]["threads"] for values, _ in there.values()} == {1}

    again = run_lenet(digits_project, *command).output
    assert again[again.index("\n2 trials: ") + 1 :].splitlines()[:8] == summary[:8]
    assert "search-best: done 90.00%: landed before" in again
    assert record.read_text().count("evaluate") == 1


def test_if_all_trials_fail_nothing_is_chosen(digits_project: Path, run_lenet: RunLenet) -> None:
    record = stub(digits_project, fails=0.01)
    record.with_name("hung").touch()
    outcome = run_lenet(digits_project, *COMMAND, "--trials", "1")
    words = "all trials failed (1), the first because: training diverged in epoch 1; .dvc/tmp/lenet/logs has what they"
    assert_refused(outcome, words)
    assert "evaluate" not in record.read_text()


@pytest.mark.slow
def test_a_search_that_really_trains(digits_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["-S", "train.epochs=1", "-S", "train.learning_rate=log(0.001,0.03)", "-S", "model.activation=relu,tanh"]
    text = sh("lenet", "search", *settings, "--trials", "2", "--name", "few", cwd=digits_project)
    assert "\n2 trials: 2 completed\n" in text
    (chosen, metrics), *trials = experiments(digits_project, monkeypatch).values()
    assert text.splitlines()[-1] == f"few-best: test accuracy {metrics['accuracy']:.2%}"
    accuracies = [each["validation_accuracy"] for _, each in trials]
    assert len(set(accuracies)) == 2
    assert metrics["validation_accuracy"] == max(accuracies), "training is reproducible"
    assert chosen == trials[accuracies.index(max(accuracies))][0]
    assert not any("accuracy" in each for _, each in trials)
    assert {values["train"]["epochs"] for values, _ in trials} == {1}


@pytest.mark.usefixtures("_in_a_project")
def test_trials_depend_on_the_seed_and_the_batch_alone() -> None:
    trials = found(plan(), Judge())
    assert [trial.name for trial in trials] == [f"search-trial{number:02}" for number in range(16)]
    assert found(plan(), Judge(backwards=True)) == trials, "whichever ends first"
    assert found(plan(trials=18), Judge())[:16] == trials, "so that a search can be extended"
    assert found(plan(trials=18), Judge())[16:] == found(plan(trials=20), Judge())[16:18], "in the midst of a batch too"
    for others in (plan(seed=1), plan(batch=3)):
        assert found(others, Judge())[1:] != trials[1:]
        assert found(others, Judge())[0] == trials[0]

    judge = Judge()
    found(plan(trials=6), judge)
    assert [len(batch) for batch in judge.batches] == [4, 2]


@pytest.mark.usefixtures("_in_a_project")
def test_a_search_finds_what_is_better() -> None:
    """Once it has drawn ten trials at random, it learns where."""
    trials = found(plan("model.dropout=0:0.9", "train.learning_rate=log(0.001,0.1)", trials=40), Judge())
    assert search.best(trials) == max(trials, key=lambda trial: trial.accuracy)
    away = [abs(trial.chosen["model.dropout"] - 0.2) for trial in trials]
    assert statistics.median(away[20:]) < statistics.median(away[1:10])


@pytest.mark.usefixtures("_in_a_project")
def test_bad_trials_get_no_more_seeds() -> None:
    judge = Judge()
    planned = plan(trials=12, seeds=3)
    trials = found(planned, judge)
    assert {trial.state for trial in trials[:8]} == {"completed"}, "the median of fewer than five says little"
    assert judge.batches[0] == [f"search-trial0{number}-seed0" for number in range(4)]
    assert judge.batches[1] == [f"search-trial0{number}-seed1" for number in range(4)]
    before = sorted(trial.accuracies[0] for trial in trials[:8])
    median = (before[3] + before[4]) / 2
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    assert pruned == [trial for trial in trials[8:] if trial.accuracies[0] < median]
    for trial in trials:
        assert len(trial.accuracies) == (1 if trial in pruned else 3)
        ran = [name for batch in judge.batches for name in batch if name.startswith(trial.name)]
        assert ran == [f"{trial.name}-seed{seed}" for seed in range(len(trial.accuracies))]
    assert found(planned, Judge(backwards=True)) == trials
    text = search.summary(planned, trials)
    assert text.startswith(f"12 trials: {12 - len(pruned)} completed, {len(pruned)} pruned\n")
    assert {trial.state for trial in found(plan(trials=12), Judge())} == {"completed"}, "with one seed"

    best = search.best(trials)
    done = search.evaluate(planned, best, cast(Sweep, judge))
    assert list(done) == [f"search-best-seed{seed}" for seed in range(3)]
    words = f"search-best: test accuracy {best.accuracy - 0.01:.2%} (mean over 3 seeds)"
    assert search.verdict(planned, done) == words


@pytest.mark.usefixtures("_in_a_project")
def test_trials_that_fail() -> None:
    fails = ["search-trial00-seed0", "search-trial02-seed1"]
    planned = plan(trials=6, seeds=2)
    trials = found(planned, Judge(fails=fails))
    assert [trial.state for trial in trials] == ["failed", "completed", "failed", *3 * ["completed"]]
    assert [len(trial.accuracies) for trial in trials] == [0, 2, 1, 2, 2, 2]
    assert trials[2].message == "training diverged"
    text = search.summary(planned, trials)
    assert text.startswith("6 trials: 4 completed, 2 failed\n")
    assert "params.yaml" not in text, "its values have failed"
    one = plan(trials=2)
    with pytest.raises(InputError, match=r"all trials failed \(2\), the first because: training diverged; "):
        found(one, Judge(fails=one.names()))


@pytest.mark.usefixtures("_in_a_project")
@pytest.mark.parametrize(
    ("setting", "kinds", "allowed"),
    [
        ("train.learning_rate=log(0.001,0.03)", float, lambda value: 0.001 <= value <= 0.03),
        ("train.learning_rate=log(1e-3, 3e-2)", float, lambda value: 0.001 <= value <= 0.03),
        ("train.learning_rate=0.0012344:0.0012366", float, lambda value: 0.0012344 <= value <= 0.0012366),
        ("train.augment=0:4", float, lambda value: 0 <= value <= 4),
        ("train.epochs=3:6", int, lambda value: 3 <= value <= 6),
        ("train.batch_size=log(16,256)", int, lambda value: 16 <= value <= 256),
        ("train.batch_size=range(16,19)", int, lambda value: value in (16, 17, 18)),
        ("train.weight_decay=auto,0.01,1", str | float | int, lambda value: value in ("auto", 0.01, 1)),
        ("model.batch_norm=true,false", bool, lambda value: value in (True, False)),
        ("model.activation=tanh,sigmoid", str, lambda value: value in ("tanh", "sigmoid")),
    ],
)
def test_spaces(setting: str, kinds: Any, allowed: Any) -> None:
    """Each value is of the space and, of the ranges, most are different."""
    name = setting.split("=")[0]
    planned = plan(setting, "preprocess.validation_size=100", trials=12)
    values = [trial.chosen[name] for trial in found(planned, Judge())]
    default = planned.spaces[0].default
    for value in values[1:] if planned.spaces[0].has_default else values:
        assert isinstance(value, kinds)
        assert allowed(value)
    assert len(set(values)) > 1
    assert planned.spaces[0].has_default == (values[0] == default)
    inner = [value for value in values if isinstance(value, float) and value not in planned.spaces[0].values]
    assert all(float(f"{value:.4g}") == value for value in inner), "four digits"


@pytest.mark.usefixtures("_in_a_project")
def test_what_a_trial_consists_of() -> None:
    """Constants, seeds, one thread unless it is set, and the last of two settings of a key."""
    planned = plan("model.dropout=0:0.4", "train.epochs=3", "train.epochs=4", "model.c3=sparse", seeds=2)
    first, second = planned.runs("trial00", {"model.dropout": 0.1}, "train")
    assert (first.name, second.name) == ("search-trial00-seed0", "search-trial00-seed1")
    assert [run.values["train"]["seed"] for run in (first, second)] == [0, 1]
    assert [first.values["train"][key] for key in ("epochs", "threads")] == [4, 1]
    assert [first.values["model"][key] for key in ("c3", "dropout")] == ["sparse", 0.1]
    assert planned.words({"model.dropout": 0.1}) == "-S train.epochs=4 -S model.c3=sparse -S model.dropout=0.1"
    assert [run.last for run in planned.runs("best", {"model.dropout": 0.1})] == ["plot", "plot"]
    [run] = plan("model.dropout=0:0.4", "train.threads=2").runs("best", {"model.dropout": 0})
    assert (run.name, run.values["train"]["threads"]) == ("search-best", 2)
    assert plan("model.dropout=0:0.4", trials=101).names()[100] == "search-trial100"
    # Trial 0 has what lies in its space.
    judge = Judge()
    [trial, *_] = found(plan("train.optimizer=sgd,adam", "model.dropout=0:0.4"), judge)
    assert trial.chosen["train.optimizer"] in ("sgd", "adam")
    assert trial.chosen["model.dropout"] == 0
    assert "params.yaml" not in search.summary(plan("train.optimizer=sgd,adam", "model.dropout=0:0.4"), [trial])


SPACE = ["-S", "model.dropout=0:0.4"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to search over; name a space, for example -S 'train.learning_rate=log(0.001,0.03)'"),
        (["-S", "train.epochs=2"], "nothing to search over"),
        (["-S", "train.epochs=2:2"], "nothing to search over"),
        (["-S", "epochs=2:6"], "-S epochs=2:6: must be SECTION.KEY=SPACE, for example"),
        (["-S", "train.epochs"], "-S train.epochs: must be SECTION.KEY=SPACE"),
        (["-S", "train.epocs=2:6"], "-S: train.epocs is not a parameter; did you mean train.epochs?"),
        (["-S", "trian.epochs=2:6"], "-S: trian is not a parameter; did you mean train?"),
        (["-S", "train.epochs=2:many"], "-S train.epochs=2:many: a range is two numbers, A:B or log(A,B)"),
        (["-S", "train.epochs=2:3:4"], "-S train.epochs=2:3:4: a range is two numbers"),
        (["-S", "train.epochs=:3"], "-S train.epochs=:3: a range is two numbers"),
        (["-S", "train.learning_rate=log(0.1)"], "-S train.learning_rate=log(0.1): a range is two numbers"),
        (["-S", "train.learning_rate=log(a,b)"], "-S train.learning_rate=log(a,b): a range is two numbers"),
        (["-S", "train.learning_rate=log(0,1)"], "log(0,1): a logarithmic scale has only numbers greater than 0"),
        (["-S", "train.epochs=6:2"], "-S train.epochs=6:2: the range ends before it begins"),
        (["-S", "train.epochs=2:[3"], "-S train.epochs=2:[3"),
        (["-S", "train.epochs=range(1,"], "-S train.epochs=range(1,: "),
        (["-S", "train.epochs=interval(1,2)"], "-S train.epochs=interval(1,2): "),
        (["-S", "train.epochs=0:6"], "-S: train.epochs is 0; it must be an integer, at least 1"),
        (["-S", "train.epochs=1.5:6"], "-S: train.epochs is 1.5; it must be an integer"),
        (["-S", "model.dropout=0:1"], "-S: model.dropout is 1; it must be a number, at least 0 and less than 1"),
        (["-S", "model.dropout=0:.inf"], "-S: model.dropout is inf; it must be a number"),
        (["-S", "model.padding=0:2"], "-S: model.padding is 1; it must be a multiple of 2, at least 0"),
        (["-S", "model.activation=relu,gelu"], "-S: model.activation is 'gelu'; it must be relu or"),
        (["-S", "model.activation=1:2"], "-S: model.activation is 1; it must be relu or"),
        (["-S", "model.pooling=max,trainable", "-S", "model.architecture=mlp,lenet"], "model.pooling is trainable, wh"),
        (["-S", "train.seed=0:9"], "-S train.seed=0:9: each trial is trained with the seeds 0, 1, ...; --seeds says"),
        (["-S", "preprocess.seed=0:9"], "-S preprocess.seed=0:9: only parameters of model and train can be searched"),
        (["-S", "evaluate.batch_size=1,2"], "-S evaluate.batch_size=1,2: only parameters of model and train can"),
        ([*SPACE, "-S", "preprocess.validation_size=0"], "preprocess.validation_size is 0, and without a validation"),
        ([*SPACE, "--name", "a/b"], "--name a/b: a name consists of letters"),
        ([*SPACE, "--name", "HEAD"], "--name HEAD: HEAD is the name of a revision already"),
    ],
)
def test_bad_commands(digits_run: Path, run_lenet: RunLenet, arguments: list[str], words: str) -> None:
    assert_refused(run_lenet(digits_run, "search", *arguments), words)


@pytest.mark.parametrize("option", ["--trials", "--batch", "--seeds"])
def test_bad_counts(digits_run: Path, run_lenet: RunLenet, option: str) -> None:
    outcome = run_lenet(digits_run, "search", *SPACE, option, "0")
    assert outcome.status == 2
    assert outcome.error.startswith(f"error: Invalid value for '{option}'")


def test_names_that_git_knows(digits_project: Path, run_lenet: RunLenet) -> None:
    sh("git", "tag", "search-trial01", cwd=digits_project)
    words = "--name search: search-trial01 is the name of a revision already; choose another"
    assert_refused(run_lenet(digits_project, "search", *SPACE, "--trials", "2"), words)


def test_without_optuna(digits_run: Path, run_lenet: RunLenet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    words = "a search needs Optuna, which is not installed; run `pip install -e '.[cluster]'`"
    assert_refused(run_lenet(digits_run, "search", *SPACE), words)
