"""The pictures of a result, as matplotlib figures.

Colours are from Okabe and Ito's palette, which colour-blind people can tell apart, and never carry a meaning alone:
lines differ in marker and dash too, and shades grow in one direction, so that each picture can be read in grey.
"""

import io
import math
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

BLUE, ORANGE = "#0072B2", "#D55E00"
DIGITS = range(10)


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


def confusion_matrix(predictions: pandas.DataFrame, title: str) -> Figure:
    """How many images of each actual digit (row) were predicted as each digit (column); rows as in predictions.csv."""
    counts = np.zeros((len(DIGITS), len(DIGITS)), np.int64)
    np.add.at(counts, (predictions["actual"], predictions["predicted"]), 1)
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    axes = figure.subplots()
    # Logarithmic, because the mistakes, which matter most, are a hundredth of the diagonal. Zero stays white.
    axes.imshow(np.where(counts, counts, np.nan), cmap="Blues", norm=LogNorm(0.5, 2 * counts.max()))
    for row, column in zip(*counts.nonzero(), strict=True):
        colour = "white" if counts[row, column] > 0.1 * counts.max() else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour)
    axes.set_xticks(DIGITS)
    axes.set_yticks(DIGITS)
    axes.set_xlabel("Predicted digit")
    axes.set_ylabel("Actual digit")
    axes.set_title(f"{title}\nimages by actual and predicted digit (shade: logarithmic)")
    return figure


def per_class_accuracy(predictions: pandas.DataFrame, title: str) -> Figure:
    """The accuracy of each digit with its 95% confidence interval; rows as in predictions.csv."""
    correct = (predictions["actual"] == predictions["predicted"]).groupby(predictions["actual"])
    accuracy = correct.mean().reindex(DIGITS, fill_value=0.0).to_numpy()
    support = correct.size().reindex(DIGITS, fill_value=0).to_numpy()
    low, high = wilson_interval(accuracy, support)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(
        DIGITS,
        accuracy,
        yerr=(np.maximum(accuracy - low, 0), np.maximum(high - accuracy, 0)),
        fmt="o",
        color=BLUE,
        ecolor="grey",
        capsize=4,
    )
    for digit, value in zip(DIGITS, accuracy, strict=True):
        axes.annotate(f"{value:.1%}", (digit, value), xytext=(7, 0), textcoords="offset points", va="center", size=9)
    axes.set_xlim(-0.5, 9.9)
    axes.set_xticks(DIGITS)
    axes.set_xlabel("Digit")
    axes.set_ylabel("Images of the digit classified correctly (%)")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=None))
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(f"{title}\naccuracy by digit, with its 95% confidence interval (Wilson)")
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


def mistakes(images: NDArray[np.uint8], predictions: pandas.DataFrame, most: int, title: str) -> Figure:
    """The misclassified ones of the images (N, 28, 28), the most confident mistakes first, at most `most` of them."""
    wrong = predictions[predictions["actual"] != predictions["predicted"]]
    shown = wrong.sort_values("probability", ascending=False, kind="stable").head(most)
    if shown.empty:
        figure = Figure(figsize=(6, 1.5), layout="constrained")
        figure.suptitle(f"{title}\nno mistake to show")
        return figure
    columns = min(8, len(shown))
    rows = math.ceil(len(shown) / columns)
    # One sheet with text on it: axes and a title for each image would take three times as long to draw.
    side, height, width = images.shape[1], round(1.6 * images.shape[1]), round(1.3 * images.shape[1])
    sheet = np.zeros((rows * height, columns * width), np.uint8)
    figure = Figure(figsize=(max(7, 1.25 * columns), 1.5 * rows + 0.7), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    for place, (position, actual, predicted, probability) in enumerate(shown.itertuples()):
        top, left = place // columns * height + height - side, place % columns * width + (width - side) // 2
        sheet[top : top + side, left : left + side] = images[position]
        label = f"{actual} taken for {predicted}\n{probability:.1%}"
        axes.text(left + side / 2, top - 1, label, ha="center", va="bottom", size=9)
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=255)
    how_many = "all" if len(shown) == len(wrong) else f"the {len(shown)} most confident of"
    figure.suptitle(
        f"{title}\n{how_many} {len(wrong)} mistakes: actual digit, predicted digit, the prediction's probability"
    )
    return figure


def samples(images: NDArray[np.uint8], labels: NDArray[np.uint8], each: int, dataset: str) -> Figure:
    """The first `each` of the images (N, 28, 28) of each digit, one row per digit."""
    rows = []
    for digit in DIGITS:
        first = images[labels == digit][:each]
        blank = np.zeros((each - len(first), *images.shape[1:]), np.uint8)
        rows.append(np.hstack([*first, *blank]))
    sheet = np.vstack(rows)
    side = images.shape[1]
    figure = Figure(figsize=(max(4.5, 0.55 * each + 0.5), 0.55 * len(DIGITS) + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=255)
    axes.set_yticks([side * digit + side / 2 for digit in DIGITS], [str(digit) for digit in DIGITS])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_ylabel("Digit")
    axes.set_title(f"{dataset}: the first {each} training images of each digit")
    return figure
