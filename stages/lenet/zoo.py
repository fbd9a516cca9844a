"""All presets with several seeds each: the table that compares them, and its picture."""

from collections.abc import Iterator
from typing import NamedTuple

import pandas
from matplotlib.figure import Figure

from lenet import experiments
from lenet.figures import BLUE, ORANGE
from lenet.params import Params
from lenet.presets import Values, load_preset, names, overlaid


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


def run_all(base: Params, settings: Values, seeds: int) -> Iterator[Entry]:
    """Run every preset with the seeds 0 to seeds - 1, and yield its row when its last one is done.

    A run is a DVC experiment NAME-seedN. One that the current commit has with these parameters and this code is not run
    again; for the others DVC takes from its cache what it has computed before.
    """
    done = experiments.recorded()
    for preset_name in names():
        preset = load_preset(preset_name)
        metrics = []
        for seed in range(seeds):
            name = f"{preset_name}-seed{seed}"
            layers = [(f"presets/{preset_name}.yaml", preset.changes), ("--set", settings)]
            params, changes = overlaid(base, *layers, ("the seed", {"train": {"seed": seed}}))
            if name not in done or not done[name].is_of(params):
                if name in done:
                    print(f"{name}: replaced, for the parameters or the code have changed")
                    experiments.remove(name)
                experiments.run(name, changes)
                done = experiments.recorded()
            accuracy = done[name].metrics["accuracy"]
            print(f"{name}: {accuracy:.2%} on the test set", flush=True)
            metrics.append(done[name].metrics)
        accuracies = pandas.Series([row["accuracy"] for row in metrics])
        yield Entry(
            preset_name,
            int(metrics[0]["parameters"]),
            params.train.epochs,
            seeds,
            accuracies.mean(),
            accuracies.std(),
            accuracies.min(),
            accuracies.max(),
            preset.claimed,
        )


def picture(table: pandas.DataFrame) -> Figure:
    """The test error of each preset, mean and range over the seeds, and what its document claims; rows of `Entry`."""
    table = table.sort_values("accuracy_mean", kind="stable", ignore_index=True)
    error = 100 * (1 - table["accuracy_mean"])
    figure = Figure(figsize=(9, 0.5 * len(table) + 1.6), layout="constrained")
    axes = figure.subplots()
    spread = (error - 100 * (1 - table["accuracy_max"]), 100 * (1 - table["accuracy_min"]) - error)
    axes.errorbar(error, table.index, xerr=spread, fmt="o", color=BLUE, ecolor="grey", capsize=4, label="here")
    axes.plot(100 * (1 - table["claimed"]), table.index, "D", color=ORANGE, fillstyle="none", label="claimed")
    # Logarithmic, because the best are an order of magnitude apart from the first.
    axes.set_xscale("log")
    ticks = [0.2, 0.5, 1, 2, 5, 10, 20, 50]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.7 * error.min(), 1.5 * error.max())
    for row, value in error.items():
        axes.annotate(f"{value:.2f}", (value, row), xytext=(0, 7), textcoords="offset points", ha="center", size=9)
    axes.set_yticks(table.index, [f"{row.preset}\n{row.parameters:,} parameters" for row in table.itertuples()])
    axes.margins(y=0.1)
    axes.set_xlabel("Test error (%, logarithmic)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    axes.set_title(f"Mean, least and greatest of {table['seeds'].min()} seeds")
    return figure
