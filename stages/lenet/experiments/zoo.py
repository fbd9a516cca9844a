"""All presets with several seeds each: the table that compares them, and its picture.

Each run is an experiment of the pipeline itself, because DVC's run cache then has what `dvc exp run` computed before (a
matrix stage would have a cache of its own), in the foreground, where it shows its progress (that of the queue's workers
is in log files). It trains in one thread, so that several run side by side, a core each, which is quicker than one
after the other in several threads, and so that the table does not depend on how many do.
"""

from typing import NamedTuple

import pandas
from matplotlib.figure import Figure

from lenet.errors import InputError
from lenet.experiments import dvc
from lenet.experiments.presets import Preset, Values, differences, foundation, load_preset, names, overlaid, workspace
from lenet.results.figures import BLUE, ORANGE


class Entry(NamedTuple):
    """A row of metrics/zoo.csv: test accuracies over the seeds, fractions of 1; the deviation is the sample's."""

    preset: str
    parameters: int
    epochs: int
    seeds: int
    accuracy_mean: float
    accuracy_std: float
    accuracy_min: float
    accuracy_max: float
    claimed: float | None


class Run(NamedTuple):
    """A preset with a seed: its experiment's name, all values, those that are not the workspace's, the claim."""

    name: str
    values: Values
    changes: Values
    claimed: float | None


def plan(seeds: int) -> dict[str, list[Run]]:
    """The runs of each preset, with the seeds 0 to seeds - 1, all of them checked before the first begins.

    Raises
    ------
    InputError
        There is no preset, or one of them is not valid.
    """
    base, here = foundation(), workspace()

    def run(name: str, preset: Preset, seed: int) -> Run:
        layers = [(f"presets/{name}.yaml", preset.changes), ("the zoo", {"train": {"seed": seed, "threads": 1}})]
        values = overlaid(base, *layers)
        return Run(f"{name}-seed{seed}", values, differences(values, here), preset.claimed)

    presets = {name: load_preset(name) for name in names()}
    planned = {name: [run(name, preset, seed) for seed in range(seeds)] for name, preset in presets.items()}
    if not planned:
        raise InputError("presets/ has no preset; run this in the project's root")
    return planned


def run_all(planned: dict[str, list[Run]], jobs: int) -> list[Entry]:
    """Run what is planned, each as a DVC experiment, up to `jobs` at once, and compare.

    An experiment that the current commit has with these parameters and this code is not run again; for the others DVC
    takes from its cache what it has computed before.
    """
    all_runs = [run for runs in planned.values() for run in runs]
    done = dvc.recorded()
    # More than once only if a commit is made meanwhile: DVC records a run on the commit that it began on.
    while left := [run for run in all_runs if run.name not in done or not done[run.name].is_of(run.values)]:
        for run in left:
            if run.name in done:
                print(f"{run.name}: replaced, for the parameters or the code have changed", flush=True)
                dvc.remove(run.name)
        dvc.run_all({run.name: run.changes for run in left}, jobs)
        done = dvc.recorded()
    table = []
    for preset, runs in planned.items():
        metrics = [done[run.name].metrics for run in runs]
        accuracies = pandas.Series([row["accuracy"] for row in metrics])
        entry = Entry(
            preset,
            int(metrics[0]["parameters"]),
            runs[0].values["train"]["epochs"],
            len(runs),
            accuracies.mean(),
            accuracies.std(),
            accuracies.min(),
            accuracies.max(),
            runs[0].claimed,
        )
        table.append(entry)
    return table


def picture(table: pandas.DataFrame) -> Figure:
    """The test error of each preset, mean and range over the seeds, and what its document claims; rows of `Entry`."""
    table = table.sort_values("accuracy_mean", kind="stable", ignore_index=True)
    # A logarithmic axis has no zero, and a mean of equal numbers may round to another.
    error, least, most, claimed = (
        (100 * (1 - table[column].astype(float))).clip(lower=0.001)
        for column in ("accuracy_mean", "accuracy_max", "accuracy_min", "claimed")
    )
    figure = Figure(figsize=(9, 0.5 * len(table) + 1.6), layout="constrained")
    axes = figure.subplots()
    spread = [(error - least).clip(lower=0), (most - error).clip(lower=0)]
    axes.errorbar(error, table.index, xerr=spread, fmt="o", color=BLUE, ecolor="grey", capsize=4, label="here")
    axes.plot(claimed, table.index, "D", color=ORANGE, fillstyle="none", label="claimed")
    # Logarithmic, because the best are an order of magnitude apart from the first.
    axes.set_xscale("log")
    ticks = [0.2, 0.5, 1, 2, 5, 10, 20, 50]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.8 * min(least.min(), claimed.min()), 1.25 * max(most.max(), claimed.max()))
    for row, value in error.items():
        axes.annotate(f"{value:.2f}", (value, row), xytext=(0, 7), textcoords="offset points", ha="center", size=9)
    axes.set_yticks(table.index, [f"{row.preset}\n{row.parameters:,} parameters" for row in table.itertuples()])
    axes.margins(y=0.1)
    axes.set_xlabel("Test error (%, logarithmic)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    axes.set_title(f"Test error of the presets: mean, least and greatest of {table['seeds'].min()} seeds")
    return figure
