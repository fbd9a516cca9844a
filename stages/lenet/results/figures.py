"""The pictures of a result, as matplotlib figures.

Colours are from Okabe and Ito's palette, which colour-blind people can tell apart, and never carry a meaning alone:
lines differ in marker and dash too, and shades grow in one direction, so that each picture can be read in grey.
"""

import io
import math
import textwrap
from typing import Any

import matplotlib
import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from lenet.data.info import DatasetInfo

BLUE, ORANGE = "#0072B2", "#D55E00"

matplotlib.rcParams["text.parse_math"] = False  # A class may have a name with dollar signs.


def to_png(figure: Figure) -> bytes:
    """Render a figure as PNG, without matplotlib's version, which would change the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def training_curves(history: pandas.DataFrame, dataset: str) -> Figure:
    """Loss and error by epoch, of training and, if there was any, of validation; rows as in training.csv."""
    curves = {"train": ("training, mean over the epoch", BLUE, "o", "-")}
    if history["validation_accuracy"].notna().any():
        curves["validation"] = ("validation, at the end of the epoch", ORANGE, "s", "--")
    accuracy, epochs = history[f"{[*curves][-1]}_accuracy"].iloc[-1], history["epoch"].iloc[-1]
    measured = f"{accuracy:.2%} {'validation' if 'validation' in curves else 'training'} accuracy"
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    figure.suptitle(f"{dataset}: {measured} after {epochs} epoch{'s' if epochs > 1 else ''}")
    # Logarithmic, because the first epoch is far from the others, and the error because accuracies crowd below 100%.
    panels = {
        "Loss (mean over the images, logarithmic)": {kind: history[f"{kind}_loss"] for kind in curves},
        "Error (% of the images, logarithmic)": {kind: 100 * (1 - history[f"{kind}_accuracy"]) for kind in curves},
    }
    for axes, (label, values) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for kind, (name, color, marker, dashes) in curves.items():
            axes.plot(
                history["epoch"],
                values[kind],
                color=color,
                marker=marker,
                markevery=math.ceil(len(history) / 20),  # A marker at each of many epochs would hide the line.
                linestyle=dashes,
                label=name,
                clip_on=False,  # The axis may end at a point, whose marker would be cut in half.
            )
        logarithmic(axes, pandas.concat(values.values()))
        axes.set_xlabel("Epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(curves))
    return figure


def logarithmic(axes: Axes, values: pandas.Series) -> None:
    """Make the y axis logarithmic, from one tick to another; if a value is 0, the lowest piece is linear, down to 0."""
    positive = values[values > 0]
    least, most = (positive.min(), positive.max()) if len(positive) else (1.0, 1.0)
    powers = range(math.floor(math.log10(least)) - 1, math.ceil(math.log10(most)) + 2)
    steps = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    low, high = max(step for step in steps if step < least), min(step for step in steps if step >= most)
    ticks = [step for step in steps if low <= step <= high]
    if len(ticks) > 12:
        decades = [step for step in steps[::3] if low <= step <= high]
        ticks = decades[:: math.ceil(len(decades) / 12)]
    if (values == 0).any():
        axes.set_yscale("symlog", linthresh=low, linscale=0.3)
        axes.set_ylim(0, high)
        ticks = [0, *ticks]
    else:
        axes.set_yscale("log")
        axes.set_ylim(low, high)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def confusion_matrix(predictions: pandas.DataFrame, info: DatasetInfo, title: str) -> Figure:
    """How many images of each actual class (row) were predicted as each class (column).

    Rows are as in predictions.csv, but with labels in place of names.
    """
    size = len(info.classes)
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (predictions["actual"], predictions["predicted"]), 1)
    side = max(7, min(0.45 * size, 20))
    figure = Figure(figsize=(side, side - 0.8), layout="constrained")
    axes = figure.subplots()
    # Logarithmic, because the mistakes, which matter most, are a hundredth of the diagonal. Zero stays white.
    shade = LogNorm(0.5, 2 * counts.max())
    axes.imshow(np.where(counts, counts, np.nan), cmap="Blues", norm=shade)
    for row, column in zip(*counts.nonzero(), strict=True):
        colour = "white" if shade(counts[row, column]) > 0.6 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, size=_size(size))
    _name_classes(axes, info)
    axes.set_yticks(range(size), _shortened(info), size=_size(size))
    axes.set_xlabel(f"Predicted {info.noun}")
    axes.set_ylabel(f"Actual {info.noun}")
    axes.set_title(f"{title}\nimages by actual and predicted {info.noun} (shade: logarithmic)")
    return figure


def _name_classes(axes: Axes, info: DatasetInfo) -> None:
    """Put the names of the classes along the x axis: slanted, if they would not fit beside each other."""
    size = len(info.classes)
    axes.set_xticks(range(size), _shortened(info), size=_size(size))
    if max(map(len, info.classes)) > 2:
        for text in axes.get_xticklabels():
            text.set(rotation=45, ha="right", rotation_mode="anchor")


def _shortened(info: DatasetInfo) -> list[str]:
    """The names of the classes, none so long that it leaves no room for the picture."""
    return [name if len(name) <= 24 else f"{name[:23]}…" for name in info.classes]


def _size(classes: int) -> float:
    """The size of text, in points, of which each of so many classes has its own."""
    return 10 if classes <= 20 else max(4, 12 - 0.1 * classes)


def per_class_accuracy(predictions: pandas.DataFrame, info: DatasetInfo, title: str) -> Figure:
    """The accuracy of each class with its 95% confidence interval; rows as for `confusion_matrix`."""
    labels = range(len(info.classes))
    correct = (predictions["actual"] == predictions["predicted"]).groupby(predictions["actual"])
    accuracy = correct.mean().reindex(labels, fill_value=0.0).to_numpy()
    support = correct.size().reindex(labels, fill_value=0).to_numpy()
    low, high = wilson_interval(accuracy, support)
    figure = Figure(figsize=(max(8, min(0.5 * len(labels), 30)), 4.5), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(
        labels,
        accuracy,
        yerr=(np.maximum(accuracy - low, 0), np.maximum(high - accuracy, 0)),
        fmt="o",
        color=BLUE,
        ecolor="grey",
        capsize=4,
    )
    # Where there is no room for them, the grid has to do.
    for label, value in zip(labels, accuracy, strict=True) if len(labels) <= 20 else ():
        axes.annotate(f"{value:.1%}", (label, value), xytext=(7, 0), textcoords="offset points", va="center", size=9)
    axes.set_xlim(-0.5, len(labels) - 0.1)
    _name_classes(axes, info)
    axes.set_xlabel(info.noun.capitalize())
    axes.set_ylabel(f"Images of the {info.noun} classified correctly (%)")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=None))
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(f"{title}\naccuracy by {info.noun}, with its 95% confidence interval (Wilson)")
    return figure


def wilson_interval(share: NDArray[Any], count: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The 95% score interval of a proportion observed in `count` trials.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927. With
    no trials it is 0 to 1.
    """
    z, count = 1.959964, np.maximum(count, 1e-9)
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


def mistakes(
    images: NDArray[np.uint8], predictions: pandas.DataFrame, most: int, info: DatasetInfo, title: str
) -> Figure:
    """The misclassified ones of the images (N, 28, 28), the most confident mistakes first, at most `most` of them.

    Predictions are as for `confusion_matrix`.
    """
    wrong = predictions[predictions["actual"] != predictions["predicted"]]
    shown = wrong.sort_values("probability", ascending=False, kind="stable").head(most)
    if shown.empty:
        figure = Figure(figsize=(6, 1.5), layout="constrained")
        figure.suptitle(f"{title}\nno mistake to show")
        return figure
    names = _shortened(info)
    labels = [
        textwrap.fill(f"{names[actual]} taken for {names[predicted]}", 16) + f"\n{probability:.1%}"
        for _, actual, predicted, probability in shown.itertuples()
    ]
    lines = max(label.count("\n") for label in labels) + 1
    columns = min(8, len(shown))
    rows = math.ceil(len(shown) / columns)
    # One sheet with text on it: axes and a title for each image would take three times as long to draw.
    side = images.shape[1]
    height, width = round((1 + 0.3 * lines) * side), round(1.3 * side)
    sheet = np.zeros((rows * height, columns * width), np.uint8)
    figure = Figure(figsize=(max(7, 1.25 * columns), 0.9375 * (1 + 0.3 * lines) * rows + 0.7), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    for place, (position, label) in enumerate(zip(shown.index, labels, strict=True)):
        top, left = place // columns * height + height - side, place % columns * width + (width - side) // 2
        sheet[top : top + side, left : left + side] = images[position]
        axes.text(left + side / 2, top - 1, label, ha="center", va="bottom", size=9)
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=255)
    how_many = "all" if len(shown) == len(wrong) else f"the {len(shown)} most confident of"
    figure.suptitle(
        f"{title}\n{how_many} {len(wrong)} mistakes: actual {info.noun}, predicted {info.noun}, "
        "the prediction's probability"
    )
    return figure


def samples(images: NDArray[np.uint8], labels: NDArray[np.uint8], each: int, info: DatasetInfo) -> Figure:
    """The first `each` of the images (N, 28, 28) of each class, one row per class."""
    rows = []
    for label in range(len(info.classes)):
        first = images[labels == label][:each]
        blank = np.zeros((each - len(first), *images.shape[1:]), np.uint8)
        rows.append(np.hstack([*first, *blank]))
    sheet = np.vstack(rows)
    side, inches = images.shape[1], 0.55 if len(rows) <= 20 else 0.3
    figure = Figure(figsize=(max(4.5, inches * each + 0.5), inches * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=255)
    axes.set_yticks([side * label + side / 2 for label in range(len(rows))], _shortened(info))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_ylabel(info.noun.capitalize())
    fewer = np.bincount(labels, minlength=len(rows)).min() < each
    axes.set_title(f"{info.title}: the first {each} training images of each {info.noun}{', or all' if fewer else ''}")
    return figure
