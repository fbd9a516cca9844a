"""Whether one result is better than another: two runs on the same images, or two groups of runs with several seeds."""

import statistics as plain
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lenet.data.idx import read_labelled_images
from lenet.data.info import FILES
from lenet.errors import InputError
from lenet.experiments.presets import Values, flattened
from lenet.experiments.revisions import Result
from lenet.results.figures import flips, wilson_interval
from lenet.results.statistics import Difference, accuracy_interval, difference_of_means, holm, paired_difference


class Row(NamedTuple):
    """All images, or those of a class, which two runs have classified.

    Attributes
    ----------
    accuracy : (float, float)
        Of A and of B, in [0, 1], and `interval`, for each its 95% score interval (Wilson).
    only : (int, int)
        How many images only A classifies correctly, and how many only B.
    difference : Difference
        The accuracy of B minus that of A. In the rows of classes its p-value is corrected for their number (Holm).
    """

    name: str
    images: int
    accuracy: tuple[float, float]
    interval: tuple[tuple[float, float], tuple[float, float]]
    only: tuple[int, int]
    difference: Difference


class Pair(NamedTuple):
    """Two runs, compared on the same test images."""

    sentence: str
    names: tuple[str, str]
    parameters: dict[str, tuple[Any, Any]]
    overall: Row
    per_class: list[Row]


class GroupRow(NamedTuple):
    """The accuracies of the runs of two groups, on all images or on those of a class.

    Attributes
    ----------
    mean, deviation : (float, float)
        Of A and of B; the deviation is the sample's standard deviation over the runs.
    interval : ((float, float), (float, float))
        The 95% intervals of the means (Student's t).
    difference : Difference
        The mean of B minus that of A (Welch's t). In the rows of classes its p-value is corrected (Holm).
    """

    name: str
    mean: tuple[float, float]
    deviation: tuple[float, float]
    interval: tuple[tuple[float, float], tuple[float, float]]
    difference: Difference


class Groups(NamedTuple):
    """Two groups of runs; the runs of each differ in train.seed alone. `accuracies` has those of each run."""

    sentence: str
    names: tuple[str, str]
    runs: tuple[int, int]
    parameters: dict[str, tuple[Any, Any]]
    accuracies: tuple[dict[str, float], dict[str, float]]
    overall: GroupRow
    per_class: list[GroupRow]


def compare(a: Result, b: Result) -> Pair:
    """Compare two runs by their predictions for the same test images.

    Raises
    ------
    InputError
        Their test images are not the same.
    """
    _check_same_test_set(a, b)
    actual = a.predictions["actual"]
    right = [(each.predictions["predicted"] == actual).to_numpy() for each in (a, b)]
    overall = _row("all", right[0], right[1])
    members = [(name, (actual == name).to_numpy()) for name in a.per_class]
    rows = [_row(name, right[0][chosen], right[1][chosen]) for name, chosen in members if chosen.any()]
    corrected = holm([row.difference.p for row in rows])
    per_class = [row._replace(difference=row.difference._replace(p=p)) for row, p in zip(rows, corrected, strict=True)]
    names = (a.name, b.name)
    differ = int((a.predictions["predicted"] != b.predictions["predicted"]).sum())
    return Pair(_sentence(names, overall, differ), names, _differences(a.params, b.params), overall, per_class)


def _row(name: str, right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> Row:
    count = len(right_a)
    only = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    shares = right_a.mean(), right_b.mean()
    a, b = ((float(low), float(high)) for low, high in (wilson_interval(share, np.array(count)) for share in shares))
    return Row(name, count, (float(shares[0]), float(shares[1])), (a, b), only, paired_difference(*only, count))


def _sentence(names: tuple[str, str], row: Row, differ: int) -> str:
    """The result in plain words."""
    if not differ:
        return f"{names[0]} and {names[1]} predict the same class for each of the {row.images:,} test images."
    if not row.difference.value:
        return (
            f"{names[0]} and {names[1]} classify equally many of the {row.images:,} test images correctly; "
            f"their predictions differ for {differ:,} of them."
        )
    lead, chance = _verdict(names, row.difference)
    return f"{lead} with these {row.images:,} images {chance}"


def _verdict(names: tuple[str, str], difference: Difference) -> tuple[str, str]:
    """The first and the last part of a sentence: which of two is better, and how easily chance makes it look so."""
    better, other = names[::-1] if difference.value > 0 else names
    points = f"{100 * abs(difference.value):.2f} points"
    chance = f"a difference as large would arise by chance in {_cases(difference.p)}."
    if difference.p < 0.05:
        return f"{better} is better than {other} by {points};", chance
    return f"{better} is ahead of {other} by {points}, but", chance


def _cases(p: float) -> str:
    """A probability in words: in 4 of 1,000 cases."""
    for cases in (100, 1_000, 10_000, 100_000, 1_000_000):
        if p * cases >= 2:
            return f"{p * cases:.0f} of {cases:,} cases"
    return "fewer than 2 of 1,000,000 cases"


def compare_groups(a: tuple[str, Sequence[Result]], b: tuple[str, Sequence[Result]]) -> Groups:
    """Compare two groups of runs, each with its name, by the means of their accuracies.

    Raises
    ------
    InputError
        A group has fewer than two runs, its runs differ in more than train.seed, or the test images are not the same.
    """
    for name, runs in (a, b):
        _check_group(name, runs)
    _check_same_test_set(a[1][0], b[1][0])
    names, groups = (a[0], b[0]), (a[1], b[1])
    overall = _group_row("all", *([run.metrics["accuracy"] for run in runs] for runs in groups))
    tested = {*a[1][0].predictions["actual"]}
    rows = [
        _group_row(name, *([run.per_class[name] for run in runs] for runs in groups))
        for name in a[1][0].per_class
        if name in tested
    ]
    corrected = holm([row.difference.p for row in rows])
    counts = len(a[1]), len(b[1])
    if overall.difference.value:
        lead, chance = _verdict(names, overall.difference)
        seeds = f"{counts[0]} seeds each" if counts[0] == counts[1] else f"{counts[0]} and {counts[1]} seeds"
        sentence = f"On average {lead} with {seeds} {chance}"
    else:
        sentence = f"{names[0]} and {names[1]} have the same mean accuracy."
    return Groups(
        sentence,
        names,
        counts,
        _differences(a[1][0].params, b[1][0].params, "train.seed"),
        ({run.name: run.metrics["accuracy"] for run in a[1]}, {run.name: run.metrics["accuracy"] for run in b[1]}),
        overall,
        [row._replace(difference=row.difference._replace(p=p)) for row, p in zip(rows, corrected, strict=True)],
    )


def _group_row(name: str, a: Sequence[float], b: Sequence[float]) -> GroupRow:
    return GroupRow(
        name,
        (plain.fmean(a), plain.fmean(b)),
        (plain.stdev(a), plain.stdev(b)),
        (accuracy_interval(a), accuracy_interval(b)),
        difference_of_means(a, b),
    )


def _check_group(name: str, runs: Sequence[Result]) -> None:
    """Check that these are at least two runs, on the same test images, whose parameters differ in train.seed alone."""
    if len(runs) < 2:
        raise InputError(
            f"{name} is one run, which cannot be compared with a group; name one run of that group, or a group here too"
            " ('NAME-seed*' is one, even where a single run is called NAME)"
        )
    seeds: dict[Any, str] = {}
    for run in runs:
        _check_same_test_set(runs[0], run)
        if others := _differences(runs[0].params, run.params, "train.seed"):
            raise InputError(
                f"{runs[0].name} and {run.name} differ in {', '.join(others)}; "
                "the runs of a group may differ in train.seed alone"
            )
        first = seeds.setdefault(seed := run.params["train"]["seed"], run.name)
        if first != run.name:
            raise InputError(f"{first} and {run.name} have the same train.seed, {seed}; leave one of them out")


def _check_same_test_set(a: Result, b: Result) -> None:
    names = f"{a.name} and {b.name} cannot be compared"
    datasets = a.params["data"]["dataset"], b.params["data"]["dataset"]
    if datasets[0] != datasets[1]:
        raise InputError(f"{names}: data.dataset is {datasets[0]} in one and {datasets[1]} in the other")
    if a.test_set != b.test_set or not a.predictions["actual"].equals(b.predictions["actual"]):
        raise InputError(f"{names}: their test images are not the same")


def _differences(a: Values, b: Values, *but: str) -> dict[str, tuple[Any, Any]]:
    """The parameters that differ, by their full names: their two values, None where there is no such parameter."""
    flat = flattened(a), flattened(b)
    pairs = {name: (flat[0].get(name), flat[1].get(name)) for name in flat[0] | flat[1] if name not in but}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def flipped(a: Result, b: Result) -> Figure:
    """The picture of the test images that only one of two runs classifies correctly.

    The images are those of the workspace's test set or, if that is another, those in DVC's cache.

    Raises
    ------
    InputError
        Neither has them.
    """
    tables = {run.name if run is a or a.name != b.name else f"{run.name} again": run.predictions for run in (a, b)}
    predicted, probability = (
        pandas.DataFrame({name: table[column] for name, table in tables.items()})
        for column in ("predicted", "probability")
    )
    return flips(_test_images(a), a.predictions["actual"], predicted, probability)


def _test_images(run: Result) -> NDArray[np.uint8]:
    """The test images, uint8 [N, 28, 28], that a run was evaluated on; their labels tell whether it is they."""
    from dvc.api import read
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexError

    names = [*run.per_class]
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in FILES[2:]:
                Path(folder, name).write_bytes(read(f"data/raw/{name}", rev=run.revision.commit, mode="rb"))
            images, labels = read_labelled_images(Path(folder), "t10k", tuple(names))
    except (DvcException, DataIndexError, OSError, InputError):
        images = labels = np.empty(0, np.uint8)
    if [names[label] for label in labels] != run.predictions["actual"].tolist():
        raise InputError(
            f"the test images of {run.name} are neither in the workspace nor in DVC's cache; "
            "`dvc repro` with its data.dataset brings them"
        )
    return images


def as_text(result: Pair | Groups) -> str:
    """What `lenet compare` prints."""
    a, b = result.names
    columns = ["class", a, b, "difference", "95% interval", "p"]
    corrected = f"of the classes corrected for {len(result.per_class)} tests (Holm)"
    match result:
        case Pair(overall=row):
            columns += ["images", f"only {a}", f"only {b}"]
            about = [
                f"Accuracies in per cent, their difference ({b} minus {a}) in points, with its 95% interval",
                f"(Tango) and p (McNemar's exact test; {corrected}).",
            ]
            about += [
                f"{name}: {share:.2%} of {row.images:,}, 95% interval {low:.2%} to {high:.2%} (Wilson)"
                for name, share, (low, high) in zip(result.names, row.accuracy, row.interval, strict=True)
            ]
        case Groups(overall=group):
            about = [
                f"Mean accuracies in per cent ± the deviation over the runs, their difference ({b} minus {a})",
                f"in points, with its 95% interval and p (Welch's t-test; {corrected}).",
            ]
            about += [
                f"{name}: {count} runs, {mean:.2%} ± {100 * spread:.2f}, "
                f"95% interval of the mean {low:.2%} to {high:.2%}"
                for name, count, mean, spread, (low, high) in zip(result.names, result.runs, *group[1:4], strict=True)
            ]
    rows = [result.overall, *result.per_class]
    table = pandas.DataFrame([_cells(row) for row in rows]).to_string(index=False, header=columns)
    changes = ", ".join(f"{name} {values[0]} and {values[1]}" for name, values in result.parameters.items())
    about.append("The intervals of the classes are not corrected for their number.")
    if any(row.difference.interval is None for row in rows):
        about.append("No interval (-): the runs of each group agree, and p is that of a permutation test.")
    return "\n".join([result.sentence, "", table, "", *about, f"Parameters that differ: {changes or 'none'}"])


def _cells(row: Row | GroupRow) -> list[str]:
    """A row of the printed table."""
    difference = row.difference
    shares, more = [], []
    match row:
        case Row():
            shares = [f"{100 * share:.2f}" for share in row.accuracy]
            more = [f"{row.images:,}", *map(str, row.only)]
        case GroupRow():
            shares = [
                f"{100 * mean:.2f} ± {100 * spread:.2f}" for mean, spread in zip(row.mean, row.deviation, strict=True)
            ]
    ends = [] if difference.interval is None else [_points(end) for end in difference.interval]
    p = f"{difference.p:.2g}" if difference.p >= 1e-4 else "< 0.0001"
    return [row.name, *shares, _points(difference.value), " to ".join(ends) or "-", p, *more]


def _points(difference: float) -> str:
    """A difference of fractions in percentage points."""
    return f"{round(100 * difference, 2) + 0:+.2f}"  # With 0, because -0.0 + 0 has no minus.


def as_json(value: Any) -> Any:
    """The same as objects of JSON, named tuples as objects with their fields."""
    if hasattr(value, "_asdict"):
        return {name: as_json(each) for name, each in value._asdict().items()}
    if isinstance(value, dict):
        return {name: as_json(each) for name, each in value.items()}
    return [as_json(each) for each in value] if isinstance(value, list | tuple) else value
