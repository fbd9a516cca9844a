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
from lenet.results.calibration import reliability

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
    axes.set_yticks(range(size), class_names(info), size=_size(size))
    axes.set_xlabel(f"Predicted {info.noun}")
    axes.set_ylabel(f"Actual {info.noun}")
    axes.set_title(f"{title}\nimages by actual and predicted {info.noun} (shade: logarithmic)")
    return figure


def _name_classes(axes: Axes, info: DatasetInfo) -> None:
    """Put the names of the classes along the x axis: slanted, if they would not fit beside each other."""
    size = len(info.classes)
    axes.set_xticks(range(size), class_names(info), size=_size(size))
    if max(map(len, info.classes)) > 2:
        for text in axes.get_xticklabels():
            text.set(rotation=45, ha="right", rotation_mode="anchor")


def class_names(info: DatasetInfo) -> list[str]:
    """The names of the classes, none so long that it leaves no room for the picture."""
    return [shortened(name) for name in info.classes]


def shortened(name: str) -> str:
    """The name of a class, cut to 24 characters."""
    return name if len(name) <= 24 else f"{name[:23]}…"


def _size(classes: int) -> float:
    """The size of text, in points, of which each of so many classes has its own."""
    return 10 if classes <= 20 else max(4, 12 - 0.1 * classes)


def per_class_accuracy(predictions: pandas.DataFrame, info: DatasetInfo, title: str) -> Figure:
    """The accuracy of each class with its 95% confidence interval; rows as for `confusion_matrix`."""
    labels = range(len(info.classes))
    actual, predicted = (predictions[column].to_numpy() for column in ("actual", "predicted"))
    support = np.bincount(actual, minlength=len(labels))
    accuracy = np.bincount(actual[actual == predicted], minlength=len(labels)) / np.maximum(support, 1)
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


def reliability_diagram(predictions: pandas.DataFrame, info: DatasetInfo, title: str) -> Figure:
    """The accuracy of predictions by their confidence, and how many there are; rows as for `confusion_matrix`."""
    correct = (predictions["actual"] == predictions["predicted"]).to_numpy()
    bins = reliability(predictions["probability"].to_numpy(), correct)
    some = bins.counts > 0
    figure = Figure(figsize=(6.5, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", label="accuracy = confidence")
    low, high = wilson_interval(bins.accuracy[some], bins.counts[some])
    spread = [np.maximum(bins.accuracy[some] - low, 0), np.maximum(high - bins.accuracy[some], 0)]
    label = "predictions by confidence, 95% interval (Wilson)"
    upper.errorbar(
        bins.confidence[some], bins.accuracy[some], spread, fmt="o", color=BLUE, ecolor="grey", capsize=3, label=label
    )
    upper.set_ylabel("Accuracy (%)")
    edges = np.linspace(0, 1, len(bins.counts) + 1)
    lower.bar(edges[:-1], bins.counts, width=np.diff(edges), align="edge", color=BLUE, edgecolor="white")
    lower.set_yscale("log")
    lower.set_ylim(0.5, 2 * bins.counts.max())
    lower.yaxis.set_major_formatter("{x:,.0f}")
    lower.set_ylabel("Test images")
    lower.set_xlabel(f"Confidence: the probability of the predicted {info.noun} (%)")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    upper.set_xlim(-0.02, 1.02)
    for axis in (upper.yaxis, lower.xaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=None))
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    upper.set_title(f"{title}\nexpected calibration error {bins.calibration_error:.2%} (15 bins)", size=11)
    return figure


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
    names = class_names(info)
    labels = [
        textwrap.fill(f"{names[actual]} taken for {names[predicted]}", 16) + f"\n{probability:.1%}"
        for _, actual, predicted, probability in shown.itertuples()
    ]
    figure = Figure(figsize=(7, 1), layout="constrained")
    _sheet(figure, [figure.subplots()], [(images[shown.index], labels)])
    how_many = "all" if len(shown) == len(wrong) else f"the {len(shown)} most confident of"
    figure.suptitle(
        f"{title}\n{how_many} {len(wrong)} mistakes: actual {info.noun}, predicted {info.noun}, "
        "the prediction's probability"
    )
    return figure


def flips(
    images: NDArray[np.uint8], actual: pandas.Series, predicted: pandas.DataFrame, probability: pandas.DataFrame
) -> Figure:
    """The test images, at least one, that only one of two networks classifies correctly, at most 32 of each kind.

    `predicted` and `probability` have a column for each network, under its name; rows are as in predictions.csv. The
    most confident mistakes come first.
    """
    panels, titles = [], []
    first, second = predicted.columns
    for right, wrong in ((second, first), (first, second)):
        flipped = (predicted[right] == actual) & (predicted[wrong] != actual)
        shown = probability[wrong][flipped].sort_values(ascending=False, kind="stable").head(32).index
        if len(shown):
            labels = [
                textwrap.fill(f"{shortened(actual[at])} taken for {shortened(predicted[wrong][at])}", 16)
                for at in shown
            ]
            panels.append((images[shown], labels))
            which = "" if len(shown) == flipped.sum() else f", the {len(shown)} most confident ones"
            images_that = "1 image that" if len(shown) == 1 else f"{flipped.sum():,} images that"
            titles.append(f"{images_that} only {right} classifies correctly\n{wrong}'s mistakes{which}")
    figure = Figure(figsize=(7, 1), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=_heights(panels))[:, 0]
    for each, title in zip(axes, titles, strict=True):
        each.set_title(title)
    _sheet(figure, list(axes), panels)
    return figure


Labelled = tuple[NDArray[np.uint8], list[str]]


def _heights(panels: list[Labelled]) -> list[float]:
    """The heights, in images, of sheets of eight images in a row, each with a label above it."""
    return [
        (1 + 0.3 * (max(label.count("\n") for label in labels) + 1)) * math.ceil(len(labels) / 8)
        for _, labels in panels
    ]


def _sheet(figure: Figure, axes: list[Axes], panels: list[Labelled]) -> None:
    """Draw images (N, side, side) and a label above each, eight in a row, on the axes, and fit the figure's size.

    One picture with text on it: axes and a title for each image would take three times as long to draw.
    """
    heights = _heights(panels)
    most = max(min(8, len(labels)) for _, labels in panels)
    figure.set_size_inches(max(7, 1.25 * most), 0.9375 * sum(heights) + 0.7 * len(panels))
    for each, (images, labels), inches in zip(axes, panels, heights, strict=True):
        columns, side = min(8, len(labels)), images.shape[1]
        rows = math.ceil(len(labels) / columns)
        height, width = round(inches / rows * side), round(1.3 * side)
        sheet = np.zeros((rows * height, columns * width), np.uint8)
        for place, (image, label) in enumerate(zip(images, labels, strict=True)):
            top, left = place // columns * height + height - side, place % columns * width + (width - side) // 2
            sheet[top : top + side, left : left + side] = image
            each.text(left + side / 2, top - 1, label, ha="center", va="bottom", size=9)
        each.imshow(sheet, cmap="gray_r", vmin=0, vmax=255)
        each.set_axis_off()


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
    axes.set_yticks([side * label + side / 2 for label in range(len(rows))], class_names(info))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_ylabel(info.noun.capitalize())
    fewer = np.bincount(labels, minlength=len(rows)).min() < each
    axes.set_title(f"{info.title}: the first {each} training images of each {info.noun}{', or all' if fewer else ''}")
    return figure
