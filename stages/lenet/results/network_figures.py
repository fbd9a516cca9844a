"""Pictures of what a network sees: its first kernels, the outputs of its layers, the embedding of its last hidden one.

Shades of grey, dark for large values, as ink is; each layer has its own scale.
"""

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lenet.data.info import DatasetInfo
from lenet.results.features import Features
from lenet.results.figures import class_names

GAP = 2  # Between maps, in pixels of the network's input, which is the unit of lengths in these pictures.


def kernels(features: Features, info: DatasetInfo) -> Figure:
    """The weights of the first layer that has some, all on one scale around zero."""
    pictures = features.kernels
    count, height, width = pictures.shape
    columns = min(8, count)
    rows, apart = math.ceil(count / columns), math.ceil(width / 10)
    sheet = np.full((rows * (height + apart), columns * (width + apart)), np.nan, pictures.dtype)
    for place, picture in enumerate(pictures):
        top, left = place // columns * (height + apart), place % columns * (width + apart)
        sheet[top : top + height, left : left + width] = picture
    figure = Figure(figsize=(max(6, 1.1 * columns), 1.1 * rows + 0.7), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    most = float(np.abs(pictures).max()) or 1.0
    axes.imshow(sheet[:-apart, :-apart], cmap="gray_r", vmin=-most, vmax=most)
    layer = [*features.layers][1]
    which = "" if len(features.layers[layer]) == count else "first "
    figure.suptitle(
        f"{info.title}: the weights of {layer}'s {which}{count} outputs\n"
        "dark where ink raises the output, light where it lowers it",
        size=11,
    )
    return figure


def feature_maps(features: Features, info: DatasetInfo, actual: int, predicted: int) -> Figure:
    """The outputs of all layers for the first test image, from left to right and to scale, as in the paper's figure 2.

    The maps of a layer are one below the other. Dense layers have a bar of units, the output layer the classes.
    """
    figure = Figure(figsize=(9.5, 6.2), layout="constrained")
    names = class_names(info)
    draw_layers(figure.subplots(), features, names, predicted)
    figure.suptitle(
        f"{info.title}: the first test image on its way through the network: {info.noun} {names[actual]}, "
        f"classified as {names[predicted]}\ndark: large outputs, each layer on its own scale",
        size=11,
    )
    return figure


def draw_layers(axes: Axes, features: Features, names: Sequence[str], predicted: int) -> None:
    """Draw the outputs of all layers, as `feature_maps` does; the predicted one of the classes is in bold type."""
    blocks = {name: _block(values, 150 if name == "output" else 180) for name, values in features.layers.items()}
    apart, tallest = 30, max(block.height for block in blocks.values())
    axes.set_axis_off()
    left = 0.0
    for (name, block), operation in zip(blocks.items(), features.operations.values(), strict=True):
        top, middle = -block.height / 2, left + block.width / 2
        axes.imshow(block.values, cmap="gray_r", extent=(left, left + block.width, -top, top), interpolation="nearest")
        frames = [(left, top + place, block.width, block.frame) for place in block.places]
        axes.add_collection(
            PatchCollection([Rectangle((x, y), w, h) for x, y, w, h in frames], facecolor="none", edgecolor="silver")
        )
        shape = features.layers[name].shape
        size = f"{shape[0]}@{shape[1]}x{shape[2]}" if len(shape) == 3 else str(shape[0])
        axes.text(middle, -tallest / 2 - 4, f"{name}\n{size}", ha="center", va="bottom", size=9, weight="bold")
        axes.text(middle, tallest / 2 + 4, textwrap.fill(operation, 12), ha="center", va="top", size=8)
        if left:
            axes.annotate("", (left - 4, 0), (left - apart + 4, 0), arrowprops={"arrowstyle": "->", "color": "grey"})
        left += block.width + apart
    for label, name in enumerate(names):
        place = blocks["output"].height * ((label + 0.5) / len(names) - 0.5)
        weight = "bold" if label == predicted else "normal"
        axes.text(left - apart + 3, place, name, va="center", size=min(9, 120 / len(names)), weight=weight)
    axes.set_xlim(-12, left - apart + 6 + 5 * max(map(len, names)))
    axes.set_ylim(tallest / 2 + 24, -tallest / 2 - 22)
    axes.set_aspect("equal")


class Block(NamedTuple):
    """A layer's outputs as one picture, with NaN between maps, and where its frames are, from the top."""

    values: NDArray[Any]
    width: float
    height: float
    places: list[float]
    frame: float


def _block(values: NDArray[Any], height: float) -> Block:
    """Lay out the maps [maps, rows, columns], one below the other, or the units [N], as a bar of this height."""
    if values.ndim == 3:
        maps, rows, columns = values.shape
        picture = np.full((maps, rows + GAP, columns), np.nan, values.dtype)
        picture[:, :rows] = values
        picture = picture.reshape(-1, columns)[:-GAP]
        return Block(picture, columns, len(picture), [number * (rows + GAP) for number in range(maps)], rows)
    columns = math.ceil(len(values) / 128)
    rows = math.ceil(len(values) / columns)
    units = np.full(rows * columns, np.nan, values.dtype)
    units[: len(values)] = values
    return Block(units.reshape(columns, rows).T, 8 * columns, height, [0], height)


def embedding(features: Features, predictions: pandas.DataFrame, info: DatasetInfo, title: str) -> Figure:
    """The last hidden layer's outputs for all test images in two dimensions, with the mistakes marked.

    Rows of the predictions are as for `lenet.results.figures.confusion_matrix`.
    """
    layer = [*features.layers][-2]
    places, actual = features.embedding, predictions["actual"].to_numpy()
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab10" if len(info.classes) <= 10 else "turbo"]
    shades = actual if len(info.classes) <= 10 else actual / len(info.classes)
    size = min(20, max(3, 7_000 / len(places)))  # In points squared: few dots have to be larger to be seen.
    axes.scatter(places[:, 0], places[:, 1], s=size, c=colours(shades), alpha=0.5, linewidths=0)
    wrong = actual != predictions["predicted"].to_numpy()
    x, y = places[wrong].T
    counted = "1 mistake" if len(x) == 1 else f"{len(x):,} mistakes"
    axes.scatter(x, y, s=22, c="black", marker="x", linewidths=1, label=counted)
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "grey", "alpha": 0.8}
    for label, name in enumerate(class_names(info)):
        if (actual == label).any():
            x, y = np.median(places[actual == label], axis=0)
            axes.text(x, y, name, ha="center", va="center", size=11, weight="bold", bbox=box)
    first, second = (f"{share:.0%} of the variance" for share in features.variance)
    axes.set_xlabel(f"First principal component ({first})")
    axes.set_ylabel(f"Second principal component ({second})")
    axes.legend(loc="best")
    axes.set_title(f"{title}\nthe outputs of {layer} for each test image, in two dimensions", size=11)
    return figure
