"""The same experiment with several seeds, through DVC: run, resumed, summarised.

Each run is an experiment of the pipeline itself, so that it shares DVC's run cache with `dvc exp run` (a matrix stage
would not). Runs are started in the foreground, where their progress is visible (the queue's workers write theirs to log
files). Each trains in one thread: one run on each core is quicker than one after the other in several threads, and the
results do not depend on the number of cores.
"""

import re
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from lenet.errors import InputError
from lenet.experiments import dvc
from lenet.experiments.dvc import Experiment
from lenet.experiments.git import git
from lenet.experiments.presets import Values, differences, overlaid, workspace
from lenet.experiments.revisions import WORKSPACE
from lenet.results.statistics import accuracy_interval


class Run(NamedTuple):
    """An experiment with a seed: its name, all values, and those that differ from the workspace's."""

    name: str
    values: Values
    changes: Values


def runs_of(name: str, values: Values, seeds: int) -> list[Run]:
    """The runs `NAME-seed0`, `NAME-seed1`, ... of an experiment with these values, each in one thread."""
    here = workspace()
    each = [overlaid(values, ("the seeds", {"train": {"seed": seed, "threads": 1}})) for seed in range(seeds)]
    return [Run(f"{name}-seed{seed}", run, differences(run, here)) for seed, run in enumerate(each)]


def run_all(runs: Iterable[Run], jobs: int, replace: bool) -> dict[str, Experiment]:
    """Run those that DVC has not recorded for the current commit, up to `jobs` at once: name -> experiment.

    What they share with earlier runs comes from DVC's cache. Experiments that have one of these names, but other
    parameters or code, are removed first if `replace` is true.

    Raises
    ------
    InputError
        A run failed, or there are such experiments and they are not to be replaced.
    """
    done = dvc.recorded()
    # Repeated only if a commit is made meanwhile: DVC records a run for the commit that it was started on.
    while left := [run for run in runs if run.name not in done or not done[run.name].is_of(run.values)]:
        others = [run.name for run in left if run.name in done]
        if others and not replace:
            raise InputError(
                f"the experiment {others[0]} exists already, with other parameters or code; "
                f"choose another --name, or remove it, `dvc exp remove {others[0]}`, and run this again"
            )
        for name in others:
            print(f"{name}: replaced, because parameters or code have changed", flush=True)
            dvc.remove(name)
        dvc.run_all({run.name: run.changes for run in left}, jobs)
        done = dvc.recorded()
    return done


def check_settings(settings: Values) -> None:
    """Refuse settings of what differs among the runs, or is the same for all of them."""
    for key in settings.get("train", {}).keys() & {"seed", "threads"}:
        raise InputError(f"--set train.{key}: the runs have the seeds 0, 1, ... and train in one thread; leave it out")


def group_name(settings: list[str]) -> str:
    """What runs with these settings, `section.key=value` each, are called: `activation-tanh`; without any `params`."""
    parts = [re.sub("[^A-Za-z0-9_.]+|[.]{2,}", "-", text.partition(".")[2]).strip("-.") for text in settings]
    return "-".join(parts) or "params"


def check_name(name: str) -> None:
    """Refuse a name that cannot be that of experiments, or that Git already knows."""
    if not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or ".." in name:
        raise InputError(
            f"--name {name}: a name consists of letters, digits, -, _ and ., and does not begin with - or ."
        )
    for taken in (name, f"{name}-seed0"):
        known = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{taken}^{{commit}}").returncode == 0
        if known or taken == WORKSPACE:
            raise InputError(f"--name {name}: {taken} is the name of a revision already; choose another")


def summary(name: str, runs: list[Run], done: dict[str, Experiment]) -> str:
    """The test accuracies of what `run_all` has done: of each run, their mean, its interval, and their deviation."""
    accuracies = [done[run.name].metrics["accuracy"] for run in runs]
    low, high = accuracy_interval(accuracies)
    lines = [f"{run.name}  {accuracy:.2%}" for run, accuracy in zip(runs, accuracies, strict=True)]
    lines.append(
        f"{name}: {len(runs)} seeds, test accuracy {statistics.fmean(accuracies):.2%} ± "
        f"{100 * statistics.stdev(accuracies):.2f} (the deviation), from {min(accuracies):.2%} to "
        f"{max(accuracies):.2%}, 95% interval of the mean {low:.2%} to {high:.2%}"
    )
    return "\n".join(lines)
