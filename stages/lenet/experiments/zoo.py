"""All presets, with several seeds each: the table that compares them, and its picture."""

import ast
import csv
import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lenet.data.catalog import find
from lenet.environment import environment
from lenet.errors import InputError
from lenet.experiments import dvc, seeds
from lenet.experiments.presets import (
    Values,
    experiment_name,
    foundation,
    load_preset,
    names,
    output_fits,
    overlaid,
    workspace,
)
from lenet.experiments.seeds import runs_of
from lenet.experiments.sweep import Run, Sweep, all_done
from lenet.params import parse_yaml
from lenet.results.figures import BLUE, ORANGE


class Entry(NamedTuple):
    """A row of metrics/zoo.csv: test accuracies over the seeds, in [0, 1], with their sample standard deviation.

    `claimed` is NaN if there is no claim for this data set, `machine` is where the runs were made, and `made_from` the
    `fingerprint` of what they were made from.
    """

    preset: str
    parameters: int
    epochs: int
    seeds: int
    accuracy_mean: float
    accuracy_std: float
    accuracy_min: float
    accuracy_max: float
    claimed: float
    machine: str
    made_from: str


def plan(count: int, settings: Values) -> dict[str, list[Run]]:
    """The runs of each preset with the seeds 0 to count - 1, all checked before the first is started.

    `settings` replace the presets' values. Left out are presets for another data set than MNIST, except on their own,
    and where the classes are not digits those with the paper's output.

    Raises
    ------
    InputError
        There are no presets, or one of them is invalid.
    """
    seeds.check_settings(settings)
    base = foundation()
    dataset = overlaid(base, ("--set", settings))["data"]["dataset"]
    planned = {}
    for name in names():
        preset = load_preset(name)
        values = overlaid(base, (f"presets/{name}.yaml", preset.changes), ("--set", settings))
        if preset.dataset not in ("mnist", dataset):
            continue
        planned[name] = runs_of(experiment_name(name, values), values, count)
    if not planned:
        raise InputError("presets/ has no presets; run this in the project's root")
    possible = {name: runs for name, runs in planned.items() if output_fits(runs[0].values)}
    if not possible:
        raise InputError("no preset is left: model.head rbf has pictures of the digits 0 to 9, and these are others")
    return possible


def run_all(planned: dict[str, list[Run]], sweep: Sweep) -> list[Entry]:
    """Run what is planned, each as a DVC experiment, and summarise each preset."""
    done = all_done(sweep.run([run for runs in planned.values() for run in runs], replace=True))
    about = environment(torch.device("cpu"), workspace()["train"]["arithmetic"])
    machine = f"{about['processor']}, torch {about['torch']}"
    table = []
    for preset, runs in planned.items():
        metrics = [done[run.name].metrics for run in runs]
        accuracies = pandas.Series([row["accuracy"] for row in metrics])
        claimed = load_preset(preset).claimed if runs[0].values["data"]["dataset"] == "mnist" else None
        entry = Entry(
            preset,
            int(metrics[0]["parameters"]),
            runs[0].values["train"]["epochs"],
            len(runs),
            accuracies.mean(),
            accuracies.std(),
            accuracies.min(),
            accuracies.max(),
            math.nan if claimed is None else claimed,
            machine,
            fingerprint(runs[0].values),
        )
        table.append(entry)
    return table


def stale(table: Path, planned: dict[str, list[Run]]) -> list[str]:
    """The presets whose row in the table was not made from the present parameters and code, or is missing."""
    rows = csv.DictReader(table.read_text().splitlines()) if table.exists() else []
    made_from = {row["preset"]: row.get("made_from") for row in rows}
    now = {name: fingerprint(runs[0].values) for name, runs in planned.items()}
    return [name for name in made_from | now if made_from.get(name) != now.get(name)]


def fingerprint(values: Values) -> str:
    """Identify what a preset's runs are made from, in 12 hexadecimal digits.

    That is the parameters, apart from the seed, and the source files of the stages that lead to the test accuracy,
    without their comments, docstrings, layout and messages of errors. The files of a published data set are identified
    by their checksums, so that the code that fetches them does not count.
    """
    parameters = {section: values[section] for section in ("data", "preprocess", "model", "evaluate")}
    parameters["train"] = {key: value for key, value in values["train"].items() if key != "seed"}
    entry, counted = find(values["data"]["dataset"]), ["download", "preprocess", "train", "evaluate"]
    if not entry:
        parameters["data"] = values["data"] | {"images": dvc.md5(Path(values["data"]["folder"]))}
    elif entry.source:
        parameters["data"] = {"info": entry.info, "files": [file.sha256 for file in entry.source.files]}
        counted.remove("download")
    graph: Any = parse_yaml(Path("dvc.yaml").read_bytes(), "dvc.yaml")
    sources = sorted({path for name in counted for path in graph["stages"][name]["deps"] if path.endswith(".py")})
    facts = [parameters, *([path, _code(ast.parse(Path(path).read_bytes()))] for path in sources)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()[:12]


def _code(node: Any) -> Any:
    """A syntax tree without docstrings and the arguments of what is raised, as nested lists.

    It is equal in all versions of Python, unlike `ast.dump`.
    """
    if isinstance(node, list):
        return [_code(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        node = ast.Raise(node.exc.func)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
        fields["body"] = fields["body"][1:]
    return [type(node).__name__, *([name, _code(value)] for name, value in fields.items() if value not in (None, []))]


def picture(table: pandas.DataFrame, dataset: str) -> Figure:
    """The test error of each preset, mean and range over the seeds, and what is claimed for it; rows of `Entry`.

    Errors above four times the median have a panel of their own: on one axis they would squeeze the others.
    """
    table = table.sort_values("accuracy_mean", kind="stable", ignore_index=True)
    mean, least, most, claimed = (
        100 * (1 - table[column].astype(float))
        for column in ("accuracy_mean", "accuracy_max", "accuracy_min", "claimed")
    )
    values = pandas.concat([mean, least, most, claimed]).dropna()
    bound = 4 * mean.quantile(interpolation="lower") or values.max()
    near, far = values[values <= bound], values[values > bound]

    figure = Figure(figsize=(9, 0.5 * len(table) + 1.8), layout="constrained")
    entry = find(dataset)
    where = "" if dataset == "mnist" else f" on {entry.info.title if entry else 'your own images'}"
    figure.suptitle(f"Test error of each preset{where}")
    panels = figure.subplots(1, 2, sharey=True, width_ratios=[5, 1]) if len(far) else [figure.subplots()]
    for axes in panels:
        # The mean of equal numbers may round to another.
        spread = [(mean - least).clip(lower=0), (most - mean).clip(lower=0)]
        seeds = f"here: mean, minimum and maximum of {table['seeds'].min()} seeds"
        axes.errorbar(mean, table.index, xerr=spread, fmt="o", color=BLUE, ecolor="grey", capsize=4, label=seeds)
        if claimed.notna().any():
            axes.plot(claimed, table.index, "D", color=ORANGE, fillstyle="none", label="claimed")
        for row, value in mean.items():
            # Matplotlib leaves it out where the point is beyond the panel's limits.
            axes.annotate(f"{value:.2f}", (value, row), xytext=(0, 7), textcoords="offset points", ha="center", size=9)
        axes.grid(axis="x", alpha=0.3)
    end = float(near.max()) or 1.0
    panels[0].set_xlim(-0.03 * end, 1.05 * end)
    panels[0].set_yticks(table.index, [f"{row.preset}\n{row.parameters:,} parameters" for row in table.itertuples()])
    panels[0].set_ylim(-0.6, len(table) - 0.4)
    panels[0].set_xlabel("Test error (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2)
    if len(far):
        first, last = float(far.min()), float(far.max())
        margin = max(0.2 * (last - first), 0.05 * last)
        panels[1].set_xlim(first - margin, last + margin)
        panels[1].set_xlabel("(%, different scale)")
        panels[1].xaxis.set_major_locator(MaxNLocator(3))
        panels[1].tick_params(left=False)
        for axes, side in zip(panels, ("right", "left"), strict=True):
            axes.spines[side].set_linestyle("--")  # A break.
    return figure
