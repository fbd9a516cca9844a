"""The same experiment with several seeds: a sweep, with names of its own, summarised.

Each run is an experiment of the pipeline itself, so that it shares DVC's run cache with `dvc exp run` (a matrix stage
would not). Each trains in one thread: one run on each core is quicker than one after the other in several threads, and
the results do not depend on the number of cores.
"""

import re
import statistics
from collections.abc import Mapping

from lenet.errors import InputError
from lenet.experiments.origin import Finished
from lenet.experiments.presets import Values, overlaid
from lenet.experiments.sweep import Run, check_free, plain_name
from lenet.results.statistics import accuracy_interval


def runs_of(name: str, values: Values, seeds: int) -> list[Run]:
    """The runs `NAME-seed0`, `NAME-seed1`, ... of an experiment with these values, each in one thread."""
    each = [overlaid(values, ("the seeds", {"train": {"seed": seed, "threads": 1}})) for seed in range(seeds)]
    return [Run(f"{name}-seed{seed}", run) for seed, run in enumerate(each)]


def check_settings(settings: Values) -> None:
    """Refuse settings of what differs among the runs, or is the same for all of them."""
    for key in settings.get("train", {}).keys() & {"seed", "threads"}:
        raise InputError(f"--set train.{key}: the runs have the seeds 0, 1, ... and train in one thread; leave it out")


def group_name(settings: list[str]) -> str:
    """What runs with these settings, `section.key=value` each, are called: `activation-tanh`; without any `params`."""
    parts = [plain_name(text.partition(".")[2]) for text in settings]
    return "-".join(parts) or "params"


def check_name(name: str) -> None:
    """Refuse a name that cannot be that of experiments, or that Git already knows."""
    if not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or ".." in name:
        raise InputError(
            f"--name {name}: a name consists of letters, digits, -, _ and ., and does not begin with - or ."
        )
    check_free([name, f"{name}-seed0"], f"--name {name}: ")


def summary(name: str, runs: list[Run], done: Mapping[str, Finished]) -> str:
    """The test accuracies of these runs: of each run, their mean, its interval, and their deviation."""
    accuracies = [done[run.name].metrics["accuracy"] for run in runs]
    low, high = accuracy_interval(accuracies)
    lines = [f"{run.name}  {accuracy:.2%}" for run, accuracy in zip(runs, accuracies, strict=True)]
    lines.append(
        f"{name}: {len(runs)} seeds, test accuracy {statistics.fmean(accuracies):.2%} ± "
        f"{100 * statistics.stdev(accuracies):.2f} (the deviation), from {min(accuracies):.2%} to "
        f"{max(accuracies):.2%}, 95% interval of the mean {low:.2%} to {high:.2%}"
    )
    return "\n".join(lines)
