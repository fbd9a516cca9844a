"""plot: pictures that show what the tables say, drawn without torch, and tables that must be refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from conftest import ROOT, assert_refused, set_params, tree
from PIL import Image

from lenet.results import figures

PICTURES = ["samples", "training_curves", "confusion_matrix", "per_class_accuracy", "mistakes"]


def table(actual: list[int], predicted: list[int], probability: list[float]) -> pandas.DataFrame:
    return pandas.DataFrame({"actual": actual, "predicted": predicted, "probability": probability})


@pytest.mark.parametrize("name", PICTURES)
def test_picture_of_the_run_on_digits(digits_run: Path, name: str) -> None:
    path = digits_run / f"plots/{name}.png"
    with Image.open(path) as picture:
        assert picture.width >= 400
        assert picture.height >= 150
        assert not picture.info.keys() & {"Software", "Creation Time"}, "nothing that changes with version or time"
        grey = np.asarray(picture.convert("L"))
    assert grey.min() < 60, "ink"
    assert np.median(grey) == 255, "on white"
    assert path.stat().st_size < 300_000, "small enough for Git"


def test_same_bytes_again(digits_project: Path, run_stage) -> None:
    before = tree(digits_project)
    assert run_stage(digits_project, "plot").status == 0
    assert tree(digits_project) == before


def test_no_torch_needed(digits_run: Path) -> None:
    code = (
        "import sys, runpy\n"
        "sys.modules['torch'] = None\n"  # Importing it now raises ImportError.
        f"sys.path.insert(0, {str(ROOT / 'stages')!r})\n"
        "runpy.run_path('stages/plot.py', run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=digits_run, check=True, capture_output=True)


def test_titles_say_data_set_and_result() -> None:
    predictions = table([1, 2, 3], [1, 2, 9], [0.9, 0.8, 0.7])
    history = pandas.DataFrame(
        {"epoch": [1], "train_loss": [0.5], "train_accuracy": [0.8], "validation_loss": [0.4]}
        | {"validation_accuracy": [0.9], "learning_rate": [0.1]}
    )
    images = np.zeros((3, 28, 28), np.uint8)
    curves = figures.training_curves(history, "MNIST")
    assert curves.get_suptitle() == "MNIST: 90.00% validation accuracy after 1 epoch"
    assert [axes.get_xlabel() for axes in curves.axes] == ["Epoch", "Epoch"]
    assert [axes.get_ylabel() for axes in curves.axes] == ["Loss (mean over the images)", "Accuracy (%)"]
    for figure in (
        figures.confusion_matrix(predictions, "title"),
        figures.per_class_accuracy(predictions, "title"),
    ):
        assert figure.axes[0].get_title().startswith("title\n")
        assert figure.axes[0].get_xlabel()
        assert figure.axes[0].get_ylabel()
    assert figures.mistakes(images, predictions, 5, "title").get_suptitle().startswith("title\nall 1 mistakes")


def test_lines_differ_without_colour() -> None:
    history = pandas.DataFrame({"epoch": [1, 2], "learning_rate": [0.1, 0.1]}).assign(
        train_loss=1, train_accuracy=0.5, validation_loss=1, validation_accuracy=0.5
    )
    for axes in figures.training_curves(history, "MNIST").axes:
        training, validation = axes.lines
        assert training.get_marker() != validation.get_marker()
        assert training.get_linestyle() != validation.get_linestyle()


def test_confusion_matrix_counts() -> None:
    figure = figures.confusion_matrix(table([0, 0, 4, 4, 4], [0, 0, 4, 9, 9], [1.0] * 5), "t")
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
    figure = figures.mistakes(images, predictions, 2, "t")
    [axes] = figure.axes
    assert [text.get_text() for text in axes.texts] == ["3 taken for 8\n80.0%", "4 taken for 9\n70.0%"]
    sheet = np.asarray(axes.images[0].get_array())
    assert (sheet > 0).sum() == 2 * 28 * 28
    # Each whole picture is right below the middle of its text.
    for text, value in zip(axes.texts, (2, 3), strict=True):
        (x, y), (rows, columns) = text.get_position(), (sheet == value).nonzero()
        assert (rows.min(), columns.min(), columns.max() + 1) == (y + 1, x - 14, x + 14)
    assert "the 2 most confident of 3 mistakes" in figure.get_suptitle()
    assert "no mistake" in figures.mistakes(images, predictions[1:2], 2, "t").get_suptitle()


@pytest.mark.parametrize("values", [(1, 1), (100, 100)])
def test_least_and_most_of_the_parameters(digits_project: Path, run_stage, values: tuple[int, int]) -> None:
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
    "no row": ("predictions", b"actual,predicted,probability\n", "holds no row"),
    "text": (
        "predictions",
        b"actual,predicted,probability\n7,seven,1\n",
        "not a valid table of numbers",
    ),
    "too few": ("predictions", b"actual,predicted,probability\n7,7,1\n", "is not about the test images in data/raw"),
    "ragged": ("predictions", b"actual,predicted,probability\n7,7,1\n7,7,1,1\n", "not a valid table"),
    "one too many": ("predictions", b"actual,predicted,probability\n7,7,1,1\n", "its columns must be"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_table(digits_project: Path, run_stage, case: str) -> None:
    name, content, words = BAD_TABLES[case]
    (digits_project / f"plots/{name}.csv").write_bytes(content)
    before = tree(digits_project)
    assert_refused(run_stage(digits_project, "plot"), f"plots/{name}.csv", words, "dvc repro")
    assert tree(digits_project) == before


@pytest.mark.parametrize("more", [",12,0.9", ",7,1.5", ",7,"])
def test_predictions_out_of_range(digits_project: Path, run_stage, more: str) -> None:
    path = digits_project / "plots/predictions.csv"
    text = path.read_text()
    line = text.splitlines()[1]
    path.write_text(text.replace(line, line.rsplit(",", 2)[0] + more, 1))
    assert_refused(run_stage(digits_project, "plot"), "plots/predictions.csv", "is not about the test images")
