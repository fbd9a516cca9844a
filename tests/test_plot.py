"""plot: pictures that show what the tables say, drawn without torch, and tables that must be refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from conftest import INFO, ROOT, Outcome, assert_refused, set_params, tree
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from lenet.data.catalog import CATALOG
from lenet.data.info import DatasetInfo
from lenet.results import figures

PICTURES = ["samples", "training_curves", "confusion_matrix", "per_class_accuracy", "mistakes", "reliability"]
PICTURES += ["kernels", "feature_maps", "embedding"]


Run = Callable[..., Outcome]


def table(actual: list[int], predicted: list[int], probability: list[float]) -> pandas.DataFrame:
    return pandas.DataFrame({"actual": actual, "predicted": predicted, "probability": probability})


@pytest.mark.parametrize("name", PICTURES)
def test_picture_of_the_run_on_digits(digits_run: Path, name: str) -> None:
    path = digits_run / f"plots/{name}.png"
    with Image.open(path) as picture:
        assert picture.width >= 400
        assert picture.height >= 120
        assert not picture.info.keys() & {"Software", "Creation Time"}, "nothing that changes with version or time"
        grey = np.asarray(picture.convert("L"))
    assert grey.min() < 60, "ink"
    assert np.median(grey) == 255, "on white"
    assert path.stat().st_size < 300_000, "small enough for Git"


def test_same_bytes_again(digits_project: Path, run_stage: Run) -> None:
    before = tree(digits_project)
    assert run_stage(digits_project, "plot").status == 0
    assert tree(digits_project) == before


def test_no_torch_needed(digits_project: Path) -> None:
    code = (
        "import sys, runpy\n"
        "sys.modules['torch'] = None\n"  # Importing it now raises ImportError.
        f"sys.path.insert(0, {str(ROOT / 'stages')!r})\n"
        "runpy.run_path('stages/plot.py', run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=digits_project, check=True, capture_output=True)


def history(loss: Any, accuracy: Any, validation_loss: Any = np.nan, validation_accuracy: Any = np.nan) -> Any:
    """A table as training.csv is; without the last two, of a training that had no validation set."""
    table = pandas.DataFrame({"train_loss": loss, "train_accuracy": accuracy})
    table = table.assign(validation_loss=validation_loss, validation_accuracy=validation_accuracy, learning_rate=0.1)
    return table.assign(epoch=range(1, len(table) + 1))


def heights(axes: Axes, values: Any) -> NDArray[Any]:
    """Where on the axes these values of y are, from 0 at the bottom to 1 at the top."""
    points = axes.transData.transform([(1, value) for value in values])
    place: NDArray[Any] = axes.transAxes.inverted().transform(points)[:, 1]
    return place


@pytest.mark.parametrize(("info", "noun"), [(INFO, "digit"), (CATALOG["fashion_mnist"].info, "class")])
def test_titles_say_data_set_and_result(info: DatasetInfo, noun: str) -> None:
    predictions = table([1, 2, 3], [1, 2, 9], [0.9, 0.8, 0.7])
    images = np.zeros((3, 28, 28), np.uint8)
    curves = figures.training_curves(history([0.5], [0.8], [0.4], [0.9]), "MNIST")
    assert curves.get_suptitle() == "MNIST: 90.00% validation accuracy after 1 epoch"
    assert [axes.get_xlabel() for axes in curves.axes] == ["Epoch", "Epoch"]
    assert [axes.get_ylabel() for axes in curves.axes] == [
        "Loss (mean over the images, logarithmic)",
        "Error (% of the images, logarithmic)",
    ]
    matrix = figures.confusion_matrix(predictions, info, "title").axes[0]
    accuracies = figures.per_class_accuracy(predictions, info, "title").axes[0]
    for axes, labels in (
        (matrix, (f"Predicted {noun}", f"Actual {noun}")),
        (accuracies, (noun.capitalize(), f"Images of the {noun} classified correctly (%)")),
    ):
        assert axes.get_title().startswith("title\n")
        assert noun in axes.get_title()
        assert (axes.get_xlabel(), axes.get_ylabel()) == labels
    mistakes = figures.mistakes(images, predictions, 5, info, "title").get_suptitle()
    assert mistakes.startswith(f"title\nall 1 mistakes: actual {noun}, predicted {noun}, ")
    samples = figures.samples(np.zeros((10, 28, 28), np.uint8), np.arange(10, dtype=np.uint8), 1, info).axes[0]
    assert samples.get_title() == f"{info.title}: the first 1 training images of each {noun}"
    assert samples.get_ylabel() == noun.capitalize()
    for ticks in (matrix.get_xticklabels(), matrix.get_yticklabels(), accuracies.get_xticklabels()):
        assert [tick.get_text() for tick in ticks] == [*info.classes]
    assert [tick.get_text() for tick in samples.get_yticklabels()] == [*info.classes]


HISTORIES = {
    "one epoch": history([0.5], [0.8]),
    "one epoch, validated": history([0.5], [0.8], [0.5], [0.8]),
    "none right": history([1.0, 0.1, 0.01], [0.0, 0.9, 0.99], [2.5, 0.2, 0.1], [0.0, 0.5, 0.95]),
    "all right": history([0.5, 0.1, 0.0], [0.8, 0.99, 1.0], [0.4, 0.0, 0.0], [1.0, 1.0, 1.0]),
    "nothing but 0": history([0.0, 0.0], [1.0, 1.0]),
    "flat": history([2.305, 2.304, 2.303], [0.1, 0.1, 0.1]),
    "38 decades": history(np.logspace(0, -37, 40), 1 - np.logspace(0, -3, 40)),
    "1,000 epochs": history(1 / np.arange(1, 1001), 1 - 1 / np.arange(1, 1001), 0.1, 0.99),
}


@pytest.mark.parametrize("case", HISTORIES)
def test_training_curves_show_every_number(case: str) -> None:
    rows = HISTORIES[case]
    figure = figures.training_curves(rows, "MNIST")
    assert figures.to_png(figure).startswith(b"\x89PNG")
    kinds = ["train", "validation"] if rows["validation_loss"].notna().any() else ["train"]
    [legend] = figure.legends
    assert [text.get_text().split(",")[0] for text in legend.get_texts()] == ["training", "validation"][: len(kinds)]
    for axes, quantity in zip(figure.axes, ("loss", "accuracy"), strict=True):
        for line, kind in zip(axes.lines, kinds, strict=True):
            x, y = np.asarray(line.get_data(), float)
            values = rows[f"{kind}_{quantity}"]
            assert x.tolist() == rows["epoch"].tolist()
            assert y == pytest.approx(100 * (1 - values) if quantity == "accuracy" else values)
            assert axes.get_xlim()[0] < x.min()
            assert axes.get_xlim()[1] > x.max()
            low, high = axes.get_ylim()
            assert low <= y.min()
            assert high >= y.max()
            assert np.isfinite(heights(axes, y)).all()
            markers = len(rows[:: line.get_markevery()])
            assert markers == len(rows) if len(rows) <= 20 else 10 <= markers <= 20, "more would hide the line"
        ticks = [text.get_text() for text in axes.get_yticklabels()]
        assert 2 <= len(ticks) <= 13, "no more than fit"
        assert (ticks[0] == "0") == (axes.get_ylim()[0] == 0)
        assert all(float(tick) == pytest.approx(at) for tick, at in zip(ticks, axes.get_yticks(), strict=True))
        assert all(tick == int(tick) for tick in axes.get_xticks()), "epochs are whole numbers"


def test_the_first_epoch_does_not_flatten_the_others() -> None:
    """On a linear axis the others of this training would share a fifth of the height."""
    rows = history([0.43, 0.093, 0.063, 0.033, 0.0145], [0.876, 0.972, 0.981, 0.99, 0.9956])
    for axes in figures.training_curves(rows, "MNIST").axes:
        places = heights(axes, axes.lines[0].get_ydata())
        assert places[1] - places[-1] > 0.4


def test_lines_differ_without_colour() -> None:
    for axes in figures.training_curves(history([1, 1], [0.5, 0.5], 1, 0.5), "MNIST").axes:
        training, validation = axes.lines
        assert training.get_marker() != validation.get_marker()
        assert training.get_linestyle() != validation.get_linestyle()


def test_confusion_matrix_counts() -> None:
    figure = figures.confusion_matrix(table([0, 0, 4, 4, 4], [0, 0, 4, 9, 9], [1.0] * 5), INFO, "t")
    cells = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in figure.axes[0].texts}
    assert cells == {(0, 0): "2", (4, 4): "1", (4, 9): "2"}


def test_wilson_interval() -> None:
    """The figures of R. G. Newcombe, Statistics in Medicine 17, 1998, table I, for method 3 (score, Wilson)."""
    low, high = figures.wilson_interval(np.array([81 / 263, 15 / 148, 0]), np.array([263, 148, 20]))
    assert low == pytest.approx([0.2553, 0.0624, 0], abs=5e-5)
    assert high == pytest.approx([0.3662, 0.1605, 0.1611], abs=5e-5)


def test_mistakes_are_the_most_confident_ones() -> None:
    images = np.arange(4, dtype=np.uint8).repeat(28 * 28).reshape(4, 28, 28)
    predictions = table([1, 2, 3, 4], [7, 2, 8, 9], [0.5, 0.9, 0.8, 0.7])
    figure = figures.mistakes(images, predictions, 2, INFO, "t")
    [axes] = figure.axes
    assert [text.get_text() for text in axes.texts] == ["3 taken for 8\n80.0%", "4 taken for 9\n70.0%"]
    sheet = np.asarray(axes.images[0].get_array())
    assert (sheet > 0).sum() == 2 * 28 * 28
    # Each whole picture is right below the middle of its text.
    for text, value in zip(axes.texts, (2, 3), strict=True):
        (x, y), (rows, columns) = text.get_position(), (sheet == value).nonzero()
        assert (rows.min(), columns.min(), columns.max() + 1) == (y + 1, x - 14, x + 14)
    assert "the 2 most confident of 3 mistakes" in figure.get_suptitle()
    assert "no mistake" in figures.mistakes(images, predictions[1:2], 2, INFO, "t").get_suptitle()


def test_reliability_diagram_shows_every_bin() -> None:
    rows = table([1] * 40 + [2] * 60, [1] * 30 + [3] * 10 + [2] * 60, [0.7] * 40 + [1.0] * 60)
    figure = figures.reliability_diagram(rows, INFO, "t")
    upper, lower = figure.axes
    assert upper.get_title() == "t\nexpected calibration error 2.00% (15 bins)"
    points = np.asarray(upper.lines[1].get_data(), float)
    assert points.tolist() == [pytest.approx([0.7, 1.0]), pytest.approx([0.75, 1.0])]
    heights = [bar.get_height() for bar in lower.patches if isinstance(bar, Rectangle)]
    assert [height for height in heights if height] == [40, 60]
    assert [text.get_text() for text in lower.get_yticklabels()][1:3] == ["1", "10"]


@pytest.mark.parametrize(("kinds", "titles"), [("both", 2), ("one", 1)])
def test_flips_are_shown_by_who_is_right(kinds: str, titles: int) -> None:
    actual = pandas.Series(["1", "2", "3", "4"])
    predicted = {
        "both": {"a": ["1", "2", "8", "4"], "b": ["7", "2", "3", "5"]},
        "one": {"a": ["1", "2", "3", "4"], "b": ["7", "2", "3", "5"]},
    }[kinds]
    probability = pandas.DataFrame({"a": [0.9, 0.9, 0.6, 0.9], "b": [0.5, 0.9, 0.9, 0.8]})
    images = np.arange(1, 5, dtype=np.uint8).repeat(28 * 28).reshape(4, 28, 28)
    figure = figures.flips(images, actual, pandas.DataFrame(predicted), probability)
    assert figures.to_png(figure).startswith(b"\x89PNG")
    assert len(figure.axes) == titles
    assert figure.axes[-1].get_title() == "2 images that only a classifies correctly\nb's mistakes"
    # The most confident mistake first: image 4, then image 1.
    assert [text.get_text() for text in figure.axes[-1].texts] == ["4 taken for 5", "1 taken for 7"]
    sheet = np.asarray(figure.axes[-1].images[0].get_array())
    assert {*sheet[:, : sheet.shape[1] // 2].flat} == {0, 4}


@pytest.mark.parametrize("values", [(1, 1), (100, 100)])
def test_least_and_most_of_the_parameters(digits_project: Path, run_stage: Run, values: tuple[int, int]) -> None:
    set_params(digits_project, f"plot.samples={values[0]}", f"plot.mistakes={values[1]}")
    outcome = run_stage(digits_project, "plot")
    assert outcome.status == 0, outcome.error
    for name in PICTURES:
        with Image.open(digits_project / f"plots/{name}.png") as picture:
            picture.verify()


BAD_TABLES = {
    "foreign": ("predictions", b"a,b\n1,2\n", "its columns must be actual,predicted,probability"),
    "binary": ("training", bytes(range(256)), "not a valid table"),
    "empty": ("training", b"", "not a valid table"),
    "no row": ("predictions", b"actual,predicted,probability\n", "has no rows"),
    "text": (
        "predictions",
        b"actual,predicted,probability\n7,7,certain\n",
        "not a valid table",
    ),
    "too few": (
        "predictions",
        b"actual,predicted,probability\n7,7,1\n",
        "does not belong to the test images in data/raw",
    ),
    "ragged": ("predictions", b"actual,predicted,probability\n7,7,1\n7,7,1,1\n", "not a valid table"),
    "one too many": ("predictions", b"actual,predicted,probability\n7,7,1,1\n", "its columns must be"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_table(digits_project: Path, run_stage: Run, case: str) -> None:
    name, content, words = BAD_TABLES[case]
    (digits_project / f"plots/{name}.csv").write_bytes(content)
    before = tree(digits_project)
    assert_refused(run_stage(digits_project, "plot"), f"plots/{name}.csv", words, "dvc repro")
    assert tree(digits_project) == before


@pytest.mark.parametrize("more", [",12,0.9", ",seven,0.9", ",,0.9", ",7,1.5", ",7,"])
def test_predictions_out_of_range(digits_project: Path, run_stage: Run, more: str) -> None:
    path = digits_project / "plots/predictions.csv"
    text = path.read_text()
    line = text.splitlines()[1]
    path.write_text(text.replace(line, line.rsplit(",", 2)[0] + more, 1))
    assert_refused(run_stage(digits_project, "plot"), "plots/predictions.csv", "does not belong to the test images")
