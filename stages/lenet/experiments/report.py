"""A page about a run, or one that compares several: one file with all that it shows, which needs no network."""

import base64
import csv
import io
import json
import mimetypes
import re
import tempfile
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import vl_convert

from lenet.data.catalog import CATALOG
from lenet.errors import InputError
from lenet.experiments import dvc
from lenet.experiments.captions import PICTURES, caption, dataset_title, enumerated
from lenet.experiments.comparison import compare
from lenet.experiments.drawing import TEMPLATES, available
from lenet.experiments.git import git
from lenet.experiments.presets import flattened
from lenet.experiments.revisions import WORKSPACE, Result, Revision, load, resolve_all
from lenet.files import parse_csv
from lenet.network.description import describe
from lenet.network.lenet import build
from lenet.params import Model, check
from lenet.results.figures import BLUE, ORANGE, wilson_interval

# It draws DVC's specifications, which are of version 5, as that does, and fits the Vega in the same package.
VEGA_LITE = "6.4"
VEGA_LITE_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"

# Okabe and Ito's, from those that are visible on white and on black to the others.
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

ARCHITECTURES = {"lenet": "LeNet-5", "mlp": "multilayer perceptron"}

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"


class Table(NamedTuple):
    """A table of texts; the first cell of each row names the row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Chart(NamedTuple):
    """A chart, its Vega-Lite specification, and whether it needs the whole width of the page."""

    name: str
    title: str
    specification: dict[str, Any]
    wide: bool


class Image(NamedTuple):
    """A picture of one revision, as a data: URL, and what it shows, in words."""

    revision: str
    source: str
    alt: str


class Picture(NamedTuple):
    """A picture of the pipeline, in each of the revisions that have it."""

    title: str
    about: str
    images: list[Image]


class Provenance(NamedTuple):
    """Where a revision's results come from.

    Attributes
    ----------
    commit : str
        Its hash; empty if the workspace's repository has none.
    subject : str
        The first line of its message.
    changes : list of str or None
        What is changed in the workspace, as `git status --short` says; None if the revision is a commit.
    outputs : Table
        Each output's MD5, from dvc.lock.
    environment : Table or None
        What the outputs were made with, if environment.lock is of these outputs.
    """

    name: str
    commit: str
    subject: str
    changes: list[str] | None
    outputs: Table
    environment: Table | None


def load_all(names: Sequence[str]) -> list[Result]:
    """The results of the revisions of these names; of several names for one commit, the first counts."""
    return [load(revision) for revision in resolve_all(names)]


def page(results: Sequence[Result]) -> bytes:
    """Render the page about these results, of different revisions. The same results give the same bytes."""
    drawn, pictures, missing = _plots(results)
    sections = {name: section for section, names in _SECTIONS.items() for name in names}
    charts: dict[str, list[Chart]] = {}
    for chart in drawn:
        charts.setdefault(sections.get(chart.name, "More charts"), []).append(chart)
    drawing, undrawn = available([result.revision for result in results])
    text = TEMPLATES.get_template("report.html").render(
        heading=_heading(results),
        lead=_lead(results),
        several=len(results) > 1,
        note=_comparison(results),
        changed=_parameters("Parameters that differ", results, only_changed=True) if len(results) > 1 else None,
        metrics=_metrics(results),
        charts=charts,
        tables={"Training curves": _histories(results), "Classes": _class_tables(results)},
        specifications={chart.name: chart.specification for chart in drawn},
        pictures=pictures,
        missing=missing,
        drawing=drawing,
        undrawn=undrawn,
        layers=_layers(results),
        parameters=_parameters("All parameters", results),
        provenance=[_provenance(result) for result in results],
        vega=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE),
    )
    return text.encode()


def show(path: Path) -> None:
    """Open the page in the user's browser.

    Raises
    ------
    InputError
        None could be started.
    """
    try:
        started = webbrowser.open(path.resolve().as_uri())
    except webbrowser.Error:
        started = False
    if not started:
        raise InputError(f"no browser could be started; open {path} yourself")


# What the page says first.


def _interval(result: Result) -> tuple[float, float]:
    """The 95% confidence interval of the accuracy."""
    low, high = wilson_interval(np.array(result.metrics["accuracy"]), np.array(len(result.predictions)))
    return float(low), float(high)


def _heading(results: Sequence[Result]) -> str:
    """The answer in one line."""
    titles, counts = {dataset_title(result) for result in results}, {len(result.predictions) for result in results}
    images = f"{counts.pop():,} test images" if len(counts) == 1 else "the test images"
    if len(results) == 1:
        return f"{titles.pop()}: {results[0].metrics['accuracy']:.2%} of {images} are classified correctly"
    accuracies = [result.metrics["accuracy"] for result in results]
    if len(titles) > 1:
        found = enumerated(
            [f"{result.name} ({dataset_title(result)}) {result.metrics['accuracy']:.2%}" for result in results]
        )
        return f"Test images classified correctly: {found}"
    if len(results) > 3:
        span = f"{min(accuracies):.2%} to {max(accuracies):.2%}"
        return f"{titles.pop()}: {len(results)} runs classify {span} of {images} correctly"
    first, *others = [f"{accuracy:.2%}" for accuracy in accuracies]
    rest = [f"{result.name} {accuracy}" for result, accuracy in zip(results[1:], others, strict=True)]
    found = enumerated([f"{results[0].name} classifies {first}", *rest])
    return f"{titles.pop()}: {found} of {images} correctly"


def _lead(results: Sequence[Result]) -> str:
    """What a reader wants to know next."""
    if len(results) > 1:
        differing = _changed(results)
        names = enumerated([result.name for result in results])
        if not differing:
            return f"{names} have the same parameters."
        shown = differing if len(differing) <= 6 else [*differing[:5], f"{len(differing) - 5} more parameters"]
        return f"{names} differ in {enumerated(shown)}."
    result = results[0]
    low, high = _interval(result)
    train, size = result.params["train"], f"{result.metrics['parameters']:,.0f}"
    architecture = str(result.params["model"].get("architecture", "lenet"))
    epochs = f"{train['epochs']} epoch{'s' if train['epochs'] != 1 else ''}"
    return (
        f"The 95% confidence interval is {low:.2%} to {high:.2%}. A {ARCHITECTURES.get(architecture, architecture)} "
        f"with {size} parameters was trained{_training_images(result)} for {epochs}. "
        f"These are the results of {_whereabouts(result.revision)}."
    )


def _training_images(result: Result) -> str:
    """How many images a network was trained on, where parameters and catalogue tell."""
    entry, held = CATALOG.get(str(result.params["data"]["dataset"])), result.params["preprocess"]
    if not entry or held.get("hold_out") != "images":
        return ""  # One's own, or whole writers, of whom some wrote more than others.
    return f" on {entry.images[0] - held['validation_size']:,} images"


def _whereabouts(revision: Revision) -> str:
    """What the revision is, in words."""
    commit = _commit(revision)
    if revision.commit:
        return f"commit {commit[:7]}" + ("" if revision.commit.startswith(revision.name) else f" ({revision.name})")
    if not commit:
        return "the workspace"
    return f"the workspace: commit {commit[:7]} {'with' if _status() else 'without'} uncommitted changes"


def _commit(revision: Revision) -> str:
    """The hash of the revision's commit, for the workspace of the one that is checked out; empty if there is none."""
    return revision.commit or git("rev-parse", "--verify", "--quiet", "HEAD").stdout.strip()


def _status() -> list[str]:
    """What differs in the workspace from its commit, a line for each file."""
    return git("status", "--porcelain").stdout.splitlines()


def _comparison(results: Sequence[Result]) -> str:
    """Whether two revisions differ by more than chance, or why that cannot be said."""
    if len(results) != 2:
        return ""
    try:
        return compare(*results).sentence
    except InputError as error:
        return f"No test of the difference: {error}."


# Tables.


def _share(value: float) -> str:
    return f"{value:.2%}"


def _plain(value: float) -> str:
    return f"{value:,}"


_METRICS: dict[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("Accuracy, test images", _share),
    "error_rate": ("Error, test images", _share),
    "loss": ("Loss, test images", _plain),
    "calibration_error": ("Expected calibration error, test images", _share),
    "validation_accuracy": ("Accuracy, validation images", _share),
    "validation_loss": ("Loss, validation images", _plain),
    "train_accuracy": ("Accuracy, training images", _share),
    "train_loss": ("Loss, training images", _plain),
    "parameters": ("Parameters of the network", _plain),
}


def _metrics(results: Sequence[Result]) -> Table:
    """A row for each metric, a column for each revision; of two on the same data set, the difference too."""
    subtracted = len(results) == 2 and len({dataset_title(result) for result in results}) == 1
    found = {name for result in results for name in result.metrics}
    rows = []
    for name in [*(name for name in _METRICS if name in found), *sorted(found - _METRICS.keys())]:
        label, form = _METRICS.get(name, (name, _plain))
        values = [result.metrics.get(name) for result in results]
        cells = [NONE if value is None else form(value) for value in values]
        if name == "accuracy":
            spans = [_interval(result) for result in results]
            cells = [f"{cell} ({low:.2%} to {high:.2%})" for cell, (low, high) in zip(cells, spans, strict=True)]
            label += " (95% interval)"
        if subtracted:
            first, second = values
            cells.append(NONE if first is None or second is None else _difference(second - first, form))
        rows.append([label, *cells])
    names = [result.name for result in results]
    columns = ["Metric", *names, *(["Difference"] if subtracted else [])]
    return Table("On the test, validation and training images", columns, rows)


def _difference(value: float, form: Callable[[float], str]) -> str:
    text = f"{100 * value:+.2f} points" if form is _share else f"{value:+,.6g}"
    return "0" if value == 0 else text.replace("-", MINUS)


def _flat(result: Result) -> dict[str, str]:
    """The parameters as texts: section.key -> value."""
    return {name: dvc.text(value) for name, value in flattened(result.params).items()}


def _changed(results: Sequence[Result]) -> list[str]:
    """The parameters that are not the same in all results."""
    values = [_flat(result) for result in results]
    return [
        key for key in dict.fromkeys(key for each in values for key in each) if len({v.get(key) for v in values}) > 1
    ]


def _parameters(caption: str, results: Sequence[Result], only_changed: bool = False) -> Table:
    values, changed = [_flat(result) for result in results], _changed(results)
    keys = changed if only_changed else dict.fromkeys(key for each in values for key in each)
    names = [result.name for result in results]
    return Table(caption, ["Parameter", *names], [[key, *(v.get(key, NONE) for v in values)] for key in keys])


def _read(result: Result, path: str, columns: dict[str, str]) -> Any:
    """A table of the revision, as pandas.DataFrame; None if it has none with these columns."""
    try:
        return parse_csv(result.revision.read(path) or b"", columns)
    except InputError:
        return None


def _in(result: Result, results: Sequence[Result]) -> str:
    """Which revision a caption is about, if there are several."""
    return f", {result.name}" if len(results) > 1 else ""


_HISTORY = {
    "train_loss": ("Training loss", "{:.4g}"),
    "validation_loss": ("Validation loss", "{:.4g}"),
    "train_accuracy": ("Training accuracy", "{:.2%}"),
    "validation_accuracy": ("Validation accuracy", "{:.2%}"),
    "learning_rate": ("Learning rate", "{:.3g}"),
}


def _histories(results: Sequence[Result]) -> list[Table]:
    """What the curves show, of each revision, as numbers."""
    columns = {"epoch": "int64"} | dict.fromkeys(
        ["train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "learning_rate"], "float64"
    )
    tables = []
    for result in results:
        history = _read(result, "plots/training.csv", columns)
        if history is not None:
            rows = [
                [
                    f"{row['epoch']:.0f}",
                    *(form.format(row[key]) if row[key] == row[key] else NONE for key, (_, form) in _HISTORY.items()),
                ]
                for row in history.to_dict("records")
            ]
            labels = [label for label, _ in _HISTORY.values()]
            tables.append(Table(f"Training, by epoch{_in(result, results)}", ["Epoch", *labels], rows))
    return tables


def _class_tables(results: Sequence[Result]) -> list[Table]:
    """Precision, recall and so on of each class, of each revision."""
    columns = {"class": "str", "precision": "float64", "recall": "float64", "f1": "float64", "support": "int64"}
    tables = []
    for result in results:
        found = _read(result, "plots/per_class.csv", columns)
        if found is not None:
            rows = [
                [name, *(f"{value:.2%}" for value in shares), f"{support:,}"]
                for name, *shares, support in found.itertuples(index=False)
            ]
            labels = ["Class", "Precision", "Recall", "F1", "Test images"]
            tables.append(Table(f"Precision, recall and F1 of each class{_in(result, results)}", labels, rows))
    return tables


def _layers(results: Sequence[Result]) -> list[Table]:
    """The layers of each network; of equal ones only once."""
    found: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for result in results:
        found.setdefault(_rows_of_layers(result), []).append(result.name)
    labels = ["Layer", "Operation", "Kernel", "Stride", "Padding", "Output", "Parameters", "Connections"]
    several = len(found) > 1
    return [
        Table(f"Layers of the network{f' of {enumerated(names)}' if several else ''}", labels, rows)
        for rows, names in found.items()
        if rows
    ]


def _rows_of_layers(result: Result) -> tuple[tuple[str, ...], ...]:
    """The rows of a network's table; none if its parameters are not those of this version."""
    try:
        model = check(Model, result.params["model"], result.name)
        # The normalisation has no influence on the table.
        network = build(model.normalised(0.0, 1.0), tuple(result.per_class))
    except InputError:
        return ()
    layers = describe(network)
    total = ("total", *[""] * 5, *(f"{sum(counts):,}" for counts in zip(*(row[-2:] for row in layers), strict=True)))
    return (*((*row[:-2], *(f"{count:,}" for count in row[-2:])) for row in layers), total)


def _provenance(result: Result) -> Provenance:
    commit = _commit(result.revision)
    subject = git("log", "-1", "--format=%s", commit).stdout.strip() if commit else ""
    of = f"Outputs of {result.name}, from dvc.lock"
    outputs = Table(of, ["Output", "MD5"], [[path, md5] for path, md5 in sorted(result.outputs.items())])
    known = recorded_environment(result)
    rows = [[str(key), str(value)] for key, value in known.items()]
    environment = Table(f"Environment of {result.name}, from environment.lock", ["What", "Name or version"], rows)
    changes = _status() if result.name == WORKSPACE else None
    return Provenance(result.name, commit, subject, changes, outputs, environment if known else None)


def recorded_environment(result: Result) -> dict[str, str]:
    """What a result was made with, of environment.lock; empty if that is of other outputs."""
    try:
        recorded = json.loads(result.revision.read("environment.lock") or b"{}")
        return dict(recorded["environment"]) if recorded["outputs"] == result.outputs else {}
    except (ValueError, KeyError, TypeError):
        return {}


# DVC's plots.

_SECTIONS = {
    "Training curves": ["Loss", "Error", "Accuracy", "plots/training.csv"],
    "Classes": ["plots/predictions.csv", "plots/per_class.csv"],
}
_COLUMNS = {
    f"{part}_{kind}": name
    for part, name in {"train": "training", "validation": "validation"}.items()
    for kind in ("loss", "accuracy")
}


def _plots(results: Sequence[Result]) -> tuple[list[Chart], list[Picture], list[str]]:
    """The charts and pictures that DVC has for these revisions, and which it could not read."""
    # Hashes, because DVC might know another revision by an experiment's name. A single one would be compared with the
    # workspace; the same one twice is not.
    revisions = [result.revision.commit or WORKSPACE for result in results]
    asked = revisions if len(revisions) > 1 else 2 * revisions
    with tempfile.TemporaryDirectory(prefix="lenet-report-") as folder:
        found = json.loads(dvc.command("plots", "diff", "--json", "-o", folder, *asked, capture=True))

        def name(label: str) -> str:
            """The user's name of a revision that DVC calls by its hash, or the start of it."""
            return next(
                result.name for result, hashed in zip(results, revisions, strict=True) if hashed.startswith(label)
            )

        charts: list[Chart] = []
        images: dict[str, dict[str, bytes]] = {}
        for path, entries in found.get("data", {}).items():
            for entry in entries:
                if entry["type"] == "vega":
                    charts.append(_chart(path, entry["content"], name, results))
                elif entry["type"] == "image":
                    for label in entry["revisions"]:
                        images.setdefault(path, {})[name(label)] = Path(entry["url"]).read_bytes()
    order = [name for names in _SECTIONS.values() for name in names]
    charts.sort(key=lambda chart: order.index(chart.name) if chart.name in order else len(order))
    known = [*PICTURES, *sorted(images.keys() - PICTURES.keys())]
    pictures = [_picture(path, images[path], results) for path in known if path in images]
    missing = {f"{error['name']} of {name(error['rev'])}" for error in found.get("errors", []) if "name" in error}
    return charts, pictures, sorted(missing)


def _chart(path: str, spec: dict[str, Any], name: Callable[[str], str], results: Sequence[Result]) -> Chart:
    """DVC's specification as this page uses it: under the user's names, in its colours, as wide as the page."""
    title = spec.pop("title", {}).get("text") or path
    rows = spec.pop("data")["values"]
    names = [result.name for result in results]
    for part in list(_parts(spec)):
        if isinstance(part.get("params"), list):
            # No zooming, which would take the wheel from the page, and no sliders and boxes, which have no purpose.
            kept = [param for param in part["params"] if param.get("bind") != "scales"]
            part["params"] = [
                {"name": param["name"], "value": param.get("value", True)} if "bind" in param else param
                for param in kept
            ]
        for group in part.keys() & {"encoding", "facet"}:
            part[group] = {channel: encoding for channel, encoding in part[group].items() if encoding != {}}
        for channel in part.get("encoding", {}).keys() & {"color", "shape", "strokeDash"}:
            match encoding := part["encoding"][channel]:
                case {"field": "rev"}:
                    encoding["title"] = "Revision"
                    if len(results) == 1:
                        encoding["legend"] = None
                    if "scale" in encoding:
                        colours = [COLOURS[place % len(COLOURS)] for place in range(len(names))]
                        encoding["scale"] = {"domain": names, "range": colours}
                case {"field": "field", "scale": {"domain": domain}}:
                    encoding["title"] = None
                    encoding["scale"]["domain"] = [_COLUMNS.get(column, column) for column in domain]
    text = json.dumps(spec)
    # A tooltip may show all of the data; otherwise a column that nothing mentions only takes space.
    everything = '"content": "data"' in text
    shown = [key for key in rows[0] if everything or re.search(rf"\b{re.escape(key)}\b", text)]
    values = [
        {key: row[key] for key in shown if key in row}
        | {"rev": name(row["rev"])}
        | ({"field": _COLUMNS.get(row["field"], row["field"])} if "field" in row else {})
        for row in rows
        if row.get("dvc_inferred_y_value") != ""  # DVC's own templates draw an empty field as 0.
    ]
    values.sort(key=lambda row: names.index(row["rev"]))
    faceted = "facet" in spec
    if not faceted:
        spec["width"] = "container"
    spec |= {"$schema": VEGA_LITE_SCHEMA, "data": _as_csv(values), "description": spec.get("description", title)}
    return Chart(path, title, spec, faceted and len(results) > 1)


def _as_csv(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Vega-Lite's data of these rows of texts, a third as long as JSON, which repeats the names of the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(key for row in rows for key in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return {"values": text.getvalue(), "format": {"type": "csv", "parse": None}}


def _parts(spec: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a specification, from the whole to the smallest."""
    if isinstance(spec, dict):
        yield spec
    for value in spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ():
        yield from _parts(value)


def _picture(path: str, found: dict[str, bytes], results: Sequence[Result]) -> Picture:
    kind = mimetypes.guess_type(path)[0]
    images = [
        Image(
            result.name,
            f"data:{kind};base64,{base64.b64encode(found[result.name]).decode()}",
            caption(path, result)[-1],
        )
        for result in results
        if result.name in found
    ]
    title, about, _ = caption(path, results[0])
    return Picture(title, about, images)
