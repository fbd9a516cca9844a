"""Data sets: the table of published ones, a folder of one's own, writers; all through the stages, as users run them."""

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from conftest import MNIST, ROOT, RunLenet, RunStage, assert_refused, needs_mnist, set_params, sh, slow_except, tree
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lenet.data import catalog
from lenet.data.catalog import CATALOG, Entry, Resource, Source
from lenet.data.idx import read_idx, read_labelled_images, to_bytes
from lenet.data.images import _paper, as_mnist, grey, read_grey, resized
from lenet.data.info import DIGITS, FILES, DatasetInfo, read_info, write_info
from lenet.data.tensors import load_dataset
from lenet.data.writers import FILE as WRITERS
from lenet.experiments import dvc, zoo
from lenet.results import figures

SHARED = ROOT.parent / "shared"
PLACES = {"mnist": MNIST, "fashion_mnist": SHARED / "fashion-mnist", "kmnist": SHARED / "kmnist"}


def place(name: str) -> Path:
    """A folder with a published data set's four files; without one the test is skipped."""
    found = [PLACES[name], ROOT / "data/downloads" / name]
    for folder in found:
        if all((folder / file).is_file() for file in FILES):
            return folder
    pytest.skip(f"needs {CATALOG[name].info.title}'s four files in ../shared/{PLACES[name].name} or data/downloads")


def writers_place() -> Path:
    for folder in (SHARED / "qmnist", ROOT / "data/downloads/mnist"):
        if (folder / WRITERS).is_file():
            return folder
    pytest.skip("needs QMNIST's file of training labels in ../shared/qmnist or data/downloads/mnist")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with params.yaml, for stages that run outside of DVC."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


# The table.


@pytest.mark.parametrize(
    ("name", "reference"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_the_table_agrees_with_torchvision(name: str, reference: str) -> None:
    from torchvision import datasets

    theirs, ours = getattr(datasets, reference), CATALOG[name]
    assert ours.source
    assert list(ours.source.mirrors)[-len(theirs.mirrors) :] == theirs.mirrors
    assert ours.source.mirrors[0].startswith("https:") or len(ours.source.mirrors) == 1
    assert [file.name for file in ours.source.files] == [name for name, _ in theirs.resources]
    assert list(ours.info.classes) == [label.split(" - ")[0] for label in theirs.classes]
    assert ours.source.variable == f"{name.upper()}_MIRROR"


@pytest.mark.parametrize("name", PLACES)
def test_the_table_describes_the_published_files(name: str) -> None:
    """Size and checksum, by the MD5 of torchvision too; how many images of which classes; mean and deviation."""
    from torchvision import datasets

    folder, entry = place(name), CATALOG[name]
    assert entry.source
    theirs = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[name]
    for file, (_, md5) in zip(entry.source.files, theirs.resources, strict=True):
        content = (folder / file.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == md5
    parts = [read_labelled_images(folder, part, entry.info.classes) for part in ("train", "t10k")]
    assert tuple(len(labels) for _, labels in parts) == entry.images
    images, _ = parts[0]
    assert (round(images.mean() / 255, 4), round(images.std() / 255, 4)) == (entry.info.mean, entry.info.std)


def test_the_table_describes_digits(digits_run: Path) -> None:
    entry = CATALOG["digits"]
    parts = [read_labelled_images(digits_run / "data/raw", part, DIGITS) for part in ("train", "t10k")]
    assert tuple(len(labels) for _, labels in parts) == entry.images
    images, _ = parts[0]
    assert (round(images.mean() / 255, 4), round(images.std() / 255, 4)) == (entry.info.mean, entry.info.std)
    assert read_info(digits_run / "data/raw/dataset.json") == entry.info


def test_the_writers_file_is_qmnists() -> None:
    from torchvision.datasets import QMNIST

    writers = CATALOG["mnist"].writers
    assert writers
    [file] = writers.files
    url, md5 = QMNIST.resources["train"][1]
    assert url == writers.mirrors[0] + file.name
    content = (writers_place() / file.name).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
    assert hashlib.md5(content, usedforsecurity=False).hexdigest() == md5


# A row more, and nothing else, is a data set more.

NAMES = (
    "crossed $x^2$",
    "None",
    "円, round",
)  # Each name is hard on one of the formats that it passes through.


def letters(folder: Path, each: int = 40) -> Entry:
    """Three classes of simple shapes in published form: the four files in a folder, and their row for the table."""
    random = np.random.RandomState(0)
    folder.mkdir()
    resources = []
    for images_file, labels_file in (FILES[:2], FILES[2:]):
        images, labels = np.zeros((3 * each, 28, 28), np.uint8), np.arange(3 * each, dtype=np.uint8) % 3
        for image, label in zip(images, labels, strict=True):
            row, column = random.randint(4, 10, 2)
            if label != 1:
                image[row : row + 14, column + 6 : column + 8] = 255
            if label != 2:
                image[row + 6 : row + 8, column : column + 14] = 255
        for name, items in ((images_file, images), (labels_file, labels)):
            content = to_bytes(items)
            (folder / name).write_bytes(content)
            resources.append(Resource(name, len(content), hashlib.sha256(content).hexdigest()))
    source = Source("Letters", "LETTERS_MIRROR", (folder.as_uri(),), tuple(resources))
    return Entry(DatasetInfo("letters", "Letters", NAMES, 0.1, 0.3), (120, 120), "none", "nobody", source)


SHORT = ["preprocess.validation_size=10", "train.batch_size=8", "train.epochs=8", "train.device=cpu"]


def test_a_row_more_is_a_data_set_more(project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages, with the classes' names in metrics and tables, and its own normalisation in the model."""
    monkeypatch.setitem(catalog.CATALOG, "letters", letters(project / "mirror"))
    set_params(project, "data.dataset=letters", *SHORT)
    for stage in ("download", "preprocess", "train", "evaluate", "plot"):
        outcome = run_stage(project, stage)
        assert outcome.status == 0, outcome.error
        glyphs = "warning: plots: the pictures' font lacks characters of the classes' names\n"
        assert outcome.error == (glyphs if stage == "plot" else "")
    assert json.loads((project / "metrics/test.json").read_text())["accuracy"] > 0.9
    assert list(json.loads((project / "metrics/per_class.json").read_text())) == list(NAMES)
    table = pandas.read_csv(project / "plots/per_class.csv", keep_default_na=False)
    assert list(table["class"]) == list(NAMES)
    predictions = pandas.read_csv(project / "plots/predictions.csv", keep_default_na=False)
    assert list(predictions["actual"]) == [NAMES[i % 3] for i in range(120)]
    assert set(predictions["predicted"]) <= set(NAMES)
    model = torch.load(project / "models/lenet.pt")
    assert model["classes"] == list(NAMES)
    assert (model["model"]["mean"], model["model"]["std"]) == (0.1, 0.3)
    assert model["state_dict"]["output.weight"].shape == (3, 84)

    # A number replaces the data set's.
    set_params(project, "model.mean=0.5", "train.epochs=1")
    assert run_stage(project, "train").status == 0
    model = torch.load(project / "models/lenet.pt")
    assert (model["model"]["mean"], model["model"]["std"]) == (0.5, 0.3)


def test_the_files_of_another_data_set(project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have the same names, are as well formed, and may be longer or shorter."""
    for name in ("letters", "longer"):
        entry = letters(project / f"{name}-files", each=40 if name == "letters" else 50)
        assert entry.source
        source = entry.source._replace(title=name.capitalize(), variable=f"{name.upper()}_MIRROR", mirrors=())
        monkeypatch.setitem(catalog.CATALOG, name, entry._replace(info=entry.info._replace(name=name), source=source))
    for name, other in (("letters", "longer"), ("longer", "letters")):
        set_params(project, f"data.dataset={name}")
        monkeypatch.setenv(f"{name.upper()}_MIRROR", str(project / f"{other}-files"))
        outcome = run_stage(project, "download")
        assert outcome.status == 1
        words = f"{project}/{other}-files: the file of another data set, {other.capitalize()}"
        assert outcome.error.splitlines()[-1].startswith(f"error: no mirror delivered {FILES[0]}: {words}. Set")
        assert f"Set {name.upper()}_MIRROR to a folder or URL with {name.capitalize()}'s .gz files" in outcome.error
        assert tree(project) == {}


def test_an_unknown_data_set(project: Path, run_stage: RunStage) -> None:
    set_params(project, "data.dataset=fashion")
    words = "data.dataset is 'fashion'; it must be mnist, fashion_mnist, kmnist, digits or own"
    assert_refused(run_stage(project, "download"), "params.yaml: ", words)
    assert tree(project) == {}


def test_the_downloads_of_two_data_sets_are_kept_apart(
    project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = {name: place(name) for name in ("mnist", "fashion_mnist")}
    for name, folder in mirrors.items():
        monkeypatch.setenv(f"{name.upper()}_MIRROR", str(folder))
        set_params(project, f"data.dataset={name}")
        assert run_stage(project, "download").status == 0
    # Back to the first, without its mirror.
    monkeypatch.delenv("MNIST_MIRROR")
    set_params(project, "data.dataset=mnist")
    assert run_stage(project, "download").status == 0
    for name in FILES:
        assert (project / "data/raw" / name).read_bytes() == (mirrors["mnist"] / name).read_bytes()
    assert read_info(project / "data/raw/dataset.json").title == "MNIST"


def test_a_download_that_fails_leaves_the_files_of_one_data_set(
    project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage is run by itself: DVC would have removed the files of the other data set before."""
    set_params(project, "data.dataset=digits")
    assert run_stage(project, "download").status == 0
    before = tree(project)
    monkeypatch.setitem(catalog.CATALOG, "letters", letters(project / "mirror"))
    (project / "mirror" / FILES[3]).unlink()
    set_params(project, "data.dataset=letters")
    assert run_stage(project, "download").status == 1
    assert {name: content for name, content in tree(project).items() if "downloads" not in name} == before


@pytest.mark.slow
def test_fashion_mnist_as_an_experiment(digits_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_MNIST_MIRROR", str(place("fashion_mnist")))
    settings = ["-S", "data.dataset=fashion_mnist", "-S", "train.epochs=1", "-S", "train.batch_size=128"]
    sh("dvc", "exp", "run", *settings, cwd=digits_project)
    per_class = json.loads((digits_project / "metrics/per_class.json").read_text())
    assert list(per_class) == list(CATALOG["fashion_mnist"].info.classes)
    assert json.loads((digits_project / "metrics/test.json").read_text())["accuracy"] > 0.85
    assert "Ankle boot" in sh("dvc", "metrics", "diff", cwd=digits_project)
    text = sh("dvc", "plots", "diff", cwd=digits_project)
    page = Path(text.strip().removeprefix("file://")).read_text()
    assert "T-shirt/top" in page


# Files that do not belong together.


def change_labels(project: Path, part: str, old: int, new: int) -> None:
    path = project / f"data/raw/{part}-labels-idx1-ubyte.gz"
    labels = read_idx(path, ())
    labels[labels == old] = new
    path.write_bytes(to_bytes(labels))


@pytest.mark.parametrize(
    ("part", "old", "new", "words"),
    [
        ("t10k", 9, 8, "has images of 9 of the 10 classes that dataset.json names, and none of '9'"),
        ("train", 0, 8, "has images of 9 of the 10 classes that dataset.json names, and none of '0'"),
        ("train", 9, 10, "is not a class from 0 to 9"),
    ],
)
@pytest.mark.parametrize("stage", ["preprocess", "plot"])
def test_labels_that_do_not_fit_the_classes(
    digits_project: Path, run_stage: RunStage, stage: str, part: str, old: int, new: int, words: str
) -> None:
    change_labels(digits_project, part, old, new)
    before = tree(digits_project)
    outcome = run_stage(digits_project, stage)
    assert_refused(outcome, f"data/raw/{part}-labels-idx1-ubyte.gz: ", words, "dvc repro download")
    assert tree(digits_project) == before


BAD_INFOS: dict[str, bytes | dict[str, Any]] = {
    "empty": b"",
    "binary": bytes(range(256)),
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "one class": {"classes": ["a"]},
    "101 classes": {"classes": [str(number) for number in range(101)]},
    "twice the same": {"classes": ["a", "a"]},
    "a number": {"classes": ["a", 1]},
    "unprintable": {"classes": ["a", "\x1b[2J"]},
    "no deviation": {"std": 0.0},
    "a text for a number": {"mean": "0.1"},
    "a mean above 1": {"mean": 1.5},
}


@pytest.mark.parametrize("case", BAD_INFOS)
@pytest.mark.parametrize("stage", slow_except(["preprocess", "train", "evaluate", "plot"], ["preprocess"]))
def test_a_bad_description(digits_project: Path, run_stage: RunStage, stage: str, case: str) -> None:
    path, change = digits_project / "data/raw/dataset.json", BAD_INFOS[case]
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_bytes()) | change).encode()
    path.write_bytes(change)
    before = tree(digits_project)
    assert_refused(run_stage(digits_project, stage), "data/raw/dataset.json: was not written by the stage download")
    assert tree(digits_project) == before


def test_a_model_of_other_classes(digits_project: Path, run_stage: RunStage) -> None:
    write_info(digits_project / "data/raw/dataset.json", CATALOG["fashion_mnist"].info)
    before = tree(digits_project)
    words = "models/lenet.pt: was trained on other classes than those of data/raw/dataset.json; run `dvc repro`"
    assert_refused(run_stage(digits_project, "evaluate"), words)
    assert tree(digits_project) == before


def test_only_digits_have_the_papers_output(digits_project: Path, run_stage: RunStage) -> None:
    write_info(digits_project / "data/raw/dataset.json", CATALOG["fashion_mnist"].info)
    set_params(digits_project, "model.head=rbf", "model.activation=tanh", "train.loss=rbf")
    before = tree(digits_project)
    outcome = run_stage(digits_project, "train")
    assert_refused(outcome, "model.head is rbf, whose codes are pictures of the digits 0 to 9", "use head linear")
    lock = {"models/checkpoints/lock": b""}
    assert tree(digits_project) | lock == before | lock


# Your own images.


def draw(label: int, random: np.random.RandomState, side: int = 96) -> Image.Image:
    """A photograph, so to speak, of a circle, a cross, a square or a triangle on paper, somewhere and of some size."""
    width, height = (int(n) for n in random.randint(side, 2 * side, 2))
    paper, ink, radius = random.randint(180, 250), random.randint(0, 80), random.uniform(0.22, 0.35) * side
    x, y = random.uniform(radius + 5, width - radius - 5), random.uniform(radius + 5, height - radius - 5)
    image = Image.new("RGB", (width, height), (paper, paper, paper - 20))
    pen = ImageDraw.Draw(image)
    stroke: dict[str, Any] = {"fill": (ink, ink, ink), "width": int(radius / 4)}
    turn = random.uniform(-0.2, 0.2)

    def corner(number: int, of: int) -> tuple[float, float]:
        angle = turn + 2 * np.pi * number / of
        return x + radius * np.cos(angle), y + radius * np.sin(angle)

    match label:
        case 0:
            pen.ellipse(
                (x - radius, y - radius, x + radius, y + radius), outline=(ink, ink, ink), width=stroke["width"]
            )
        case 1:
            pen.line([corner(0, 4), corner(2, 4)], **stroke)
            pen.line([corner(1, 4), corner(3, 4)], **stroke)
        case _:
            corners = 6 - label
            pen.line([corner(number, corners) for number in range(corners + 2)], joint="curve", **stroke)
    noise = random.normal(0, 5, (height, width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def photographs(folder: Path, each: int, classes: int = 4) -> Path:
    """A folder of class folders, PNG and JPEG in turn."""
    random = np.random.RandomState(0)
    for label, name in enumerate(("circle", "cross", "square", "triangle")[:classes]):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            draw(label, random).save(folder / name / f"{number:03}.{('png', 'jpg')[number % 2]}")
    return folder


@pytest.mark.parametrize("each", slow_except([12, 250], [12]))
def test_your_own_photographs(digits_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: int) -> None:
    """The whole pipeline, as an experiment in another folder, on up to 1,000 images outside of the project."""
    folder = photographs(tmp_path / "shapes", each)
    (folder / "circle").rename(folder / "accuracy")  # A class may have the name of a metric.
    settings = ["data.dataset=own", f"data.folder={folder}", f"preprocess.validation_size={each // 4}"]
    settings += [f"train.epochs={10 if each == 250 else 2}", "train.batch_size=16"]
    sh("dvc", "exp", "run", "--temp", "--name", "own", *(x for s in settings for x in ("-S", s)), cwd=digits_project)
    monkeypatch.chdir(digits_project)
    experiment = dvc.recorded()["own"]
    sh("dvc", "exp", "apply", "own", cwd=digits_project)
    names = ["accuracy", "cross", "square", "triangle"]
    info = read_info(digits_project / "data/raw/dataset.json")
    assert (info.name, info.title, list(info.classes)) == ("own", "shapes", names)
    per_class = json.loads((digits_project / "metrics/per_class.json").read_text())
    assert list(per_class) == names
    accuracy = json.loads((digits_project / "metrics/test.json").read_text())["accuracy"]
    assert experiment.metrics["accuracy"] == accuracy
    assert accuracy > 0.95 or each < 250
    # A fifth of each class is for the test.
    _, labels = read_labelled_images(digits_project / "data/raw", "t10k", names)
    assert np.bincount(labels).tolist() == 4 * [each // 5]
    images, labels = read_labelled_images(digits_project / "data/raw", "train", names)
    assert np.bincount(labels).tolist() == 4 * [each - each // 5]
    assert (info.mean, info.std) == (round(images.mean() / 255, 4), round(images.std() / 255, 4))

    # It is known what the results were made of.
    assert "download" not in sh("dvc", "status", cwd=digits_project)
    assert experiment.is_of(experiment.values)
    made_from = zoo.fingerprint(experiment.values)
    assert list(experiment.values["data"]) == ["dataset", "folder", "prepare"]
    draw(0, np.random.RandomState(1)).save(folder / "accuracy/new.png")
    assert "download" in sh("dvc", "status", cwd=digits_project)
    assert not experiment.is_of(experiment.values)
    assert zoo.fingerprint(experiment.values) != made_from


def run_own(project: Path, run_stage: RunStage, folder: Path, *overrides: str) -> Any:
    set_params(project, "data.dataset=own", f"data.folder={folder}", *overrides)
    return run_stage(project, "download")


def test_the_split_is_fixed(project: Path, run_stage: RunStage) -> None:
    """By the files' names: not by their order in the folder, nor by what is beside the images."""
    folder = photographs(project / "first", 10, classes=2)
    assert run_own(project, run_stage, folder).status == 0
    first = {name: (project / "data/raw" / name).read_bytes() for name in FILES}

    other = project / "second"
    for path in sorted(folder.rglob("*.*"), reverse=True):
        (other / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, other / path.parent.name)
    (other / ".cache").mkdir()
    (other / ".cache/x.png").write_bytes(b"x")
    (other / "circle/.DS_Store").write_bytes(b"x")
    (other / "README.md").write_text("What these are.")
    assert run_own(project, run_stage, other).status == 0
    assert {name: (project / "data/raw" / name).read_bytes() for name in FILES} == first


def test_an_image_more_changes_the_split_by_one(project: Path, run_stage: RunStage) -> None:
    folder = photographs(project / "own", 20, classes=2)

    def test_images() -> set[bytes]:
        assert run_own(project, run_stage, folder).status == 0
        images, _ = read_labelled_images(project / "data/raw", "t10k", ["circle", "cross"])
        return {image.tobytes() for image in images}

    before = test_images()
    draw(0, np.random.RandomState(1)).save(folder / "circle/000 before the others.png")
    assert len(before) == 8
    assert len(before & test_images()) >= 7


def test_an_empty_folder_in_another_place(project: Path, run_stage: RunStage) -> None:
    """DVC copies to the place of a run only what Git or DVC tracks."""
    (project / "data/own").mkdir(parents=True)
    words = (
        "data/own: has no folder in it; it needs one for each class, two or more (with --temp or the queue, data.folder"
    )
    assert_refused(run_own(project, run_stage, Path("data/own")), words)
    assert_refused(run_own(project, run_stage, Path()), ".: no such folder")


@pytest.mark.parametrize("classes", slow_except([2, 100], [100]))
def test_the_least_and_the_most_classes(project: Path, run_stage: RunStage, classes: int) -> None:
    """The output follows, and so do the pictures."""
    random, names = np.random.RandomState(0), [f"class number {number}" for number in range(classes)]
    for name in names:
        (project / "own" / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(random.randint(0, 256, (9, 7)).astype(np.uint8)).save(project / f"own/{name}/{number}.png")
    settings = ["data.prepare=resize", *SHORT, "train.epochs=1", "preprocess.validation_size=1", "plot.samples=2"]
    assert run_own(project, run_stage, project / "own", *settings).status == 0
    for stage in ("preprocess", "train", "evaluate", "plot"):
        outcome = run_stage(project, stage)
        assert outcome.status == 0, outcome.error
    assert torch.load(project / "models/lenet.pt")["state_dict"]["output.bias"].shape == (classes,)
    assert len(json.loads((project / "metrics/per_class.json").read_text())) == classes
    for path in (project / "plots").glob("*.png"):
        with Image.open(path) as picture:
            assert max(picture.size) < 5000
        assert path.stat().st_size < 900_000


def png(width: int, height: int) -> bytes:
    """A PNG file that claims to be of this size and has no pixels."""
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(b"")
    chunks = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, pixels)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def specks() -> Image.Image:
    """Ink so small beside its extent that nothing is left of it at 20x20 pixels."""
    image = Image.new("L", (2000, 2000), "white")
    image.putpixel((1, 1), 0)
    image.putpixel((1998, 1998), 0)
    return image


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def replace(folder: Path, content: bytes | None) -> None:
    """A file, or an empty folder, in place of a folder."""
    shutil.rmtree(folder)
    if content is None:
        folder.mkdir()
    else:
        folder.write_bytes(content)


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, "own: no such folder; set data.folder to one with a folder of images for each class"),
    "a file": (lambda own: replace(own, b""), "own: no such folder"),
    "empty": (lambda own: replace(own, None), "own: has no folder in it; it needs one for each class, two or more"),
    "one class": (lambda own: shutil.rmtree(own / "cross"), "own: has only the folder 'circle' in it"),
    "an empty class": (lambda own: (own / "empty").mkdir(), "own/empty: holds 0 image(s); a class needs two"),
    "a class of one": (lambda own: (own / "circle/000.png").rename(own / "x"), "own/circle: holds 1 image(s)"),
    "101 classes": (lambda own: [shutil.copytree(own / "circle", own / f"{n}") for n in range(99)], "has 101 classes"),
    "an unprintable name": (lambda own: (own / "a\nb").mkdir(), r"own: the name 'a\nb' cannot be printed"),
    "a text": (lambda own: write(own / "circle/x.png", b"Hello"), "own/circle/x.png: is not a PNG or JPEG image"),
    "a GIF": (
        lambda own: Image.new("L", (9, 9)).save(own / "circle/x.gif"),
        "own/circle/x.gif: is not a PNG or JPEG image; convert it or leave it out",
    ),
    "truncated": (
        lambda own: write(own / "circle/x.png", (own / "circle/000.png").read_bytes()[:200]),
        "own/circle/x.png: cannot be read (",
    ),
    "truncated JPEG": (
        lambda own: write(own / "circle/x.jpg", (own / "circle/001.jpg").read_bytes()[:1000]),
        "own/circle/x.jpg: cannot be read (",
    ),
    "no pixels": (lambda own: write(own / "circle/x.png", png(9, 9)), "own/circle/x.png: cannot be read ("),
    "a bomb": (
        lambda own: write(own / "circle/x.png", png(60_000, 60_000)),
        "own/circle/x.png: has more than 89,478,485",
    ),
    "a large image": (lambda own: write(own / "circle/x.png", png(10_000, 10_000)), "has more than 89,478,485 pixels"),
    "a broken link": (
        lambda own: (own / "circle/x.png").symlink_to("nowhere"),
        "own/circle/x.png: cannot be read (No such file or directory)",
    ),
    "two specks": (lambda own: specks().save(own / "circle/x.png"), "own/circle/x.png: is blank"),
    "blank": (
        lambda own: Image.new("RGB", (50, 50), "white").save(own / "circle/x.png"),
        "own/circle/x.png: is blank: nothing differs from its border",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder(project: Path, run_stage: RunStage, case: str) -> None:
    own, (spoil, words) = photographs(project / "own", 2, classes=2), BAD_FOLDERS[case][:2]
    spoil(own)
    assert_refused(run_own(project, run_stage, own), words)
    assert tree(project) == {}


def digit(project: Path) -> NDArray[np.uint8]:
    """One of the digits, whose ink is 20 pixels high and without faint edges."""
    images, _ = read_labelled_images(project / "data/raw", "t10k", DIGITS)

    def box(ink: NDArray[np.bool_]) -> tuple[int, ...]:
        rows, columns = ink.nonzero()
        return tuple(int(f(places)) for places in (rows, columns) for f in (np.ptp, np.min))

    tall = next(image for image in images if box(image > 15) == box(image > 0) and box(image > 0)[0] == 19)
    found: NDArray[np.uint8] = tall
    return found


DISGUISES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "dark on light": lambda image: Image.eval(image, lambda value: 255 - value),
    "shifted": lambda image: Image.fromarray(np.roll(np.asarray(image), (2, -2), axis=(0, 1))),
    "in a large image": lambda image: expanded(image, 0),
    "on grey paper": lambda image: Image.eval(expanded(image, 0), lambda value: 200 - value // 2),
    "in colour": lambda image: Image.merge("RGB", 3 * [image]),
    "transparent, dark": lambda image: Image.merge("LA", (Image.new("L", image.size, 0), image)).convert("RGBA"),
    "transparent, light": lambda image: Image.merge("LA", (Image.new("L", image.size, 255), image)),
    "a palette": lambda image: image.convert("P"),
    "16 bits": lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 257),
    "twice the size": lambda image: image.resize((56, 56), Image.Resampling.NEAREST),
}


def expanded(image: Image.Image, shade: int) -> Image.Image:
    large = Image.new("L", (100, 70), shade)
    large.paste(image, (60, 9))
    return large


@pytest.mark.parametrize("case", DISGUISES)
def test_a_digit_in_disguise(digits_run: Path, case: str) -> None:
    """An image that was made as MNIST's were comes out as it was, whatever has been done to it."""
    image = digit(digits_run)
    disguised = as_mnist(grey(DISGUISES[case](Image.fromarray(image))))
    assert disguised is not None
    # Half the contrast loses the last bit of each shade.
    tolerance = 2 if case == "on grey paper" else 1
    assert np.abs(disguised.astype(int) - image).max() <= tolerance


def test_a_digit_cropped_to_its_ink(digits_run: Path) -> None:
    """Much of the border is ink then, which is not to be taken for the paper's noise."""
    images, _ = read_labelled_images(digits_run / "data/raw", "t10k", DIGITS)
    differences = []
    for image in images:
        rows, columns = image.any(axis=1).nonzero()[0], image.any(axis=0).nonzero()[0]
        cropped = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        whole, again = (as_mnist(Image.fromarray(each)) for each in (image, cropped))
        assert whole is not None
        assert again is not None
        differences.append(np.abs(whole.astype(int) - again).mean())
    # The paper's shade is not to be had where ink covers most of the border, as in a thick 1.
    assert np.median(differences) < 1.5
    assert np.mean(differences) < 3


def test_an_image_is_turned_as_its_camera_says(digits_run: Path) -> None:
    image = Image.fromarray(digit(digits_run))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # Orientation: to be turned by 90 degrees clockwise.
    path = digits_run.parent / f"turned-{os.getpid()}.png"
    turned.save(path, exif=exif)
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(grey(opened)), np.asarray(image))
    path.unlink()


def test_resized_keeps_everything(digits_run: Path) -> None:
    image = Image.fromarray(digit(digits_run))
    assert np.array_equal(resized(image), np.asarray(image))
    halves = np.zeros((100, 300), np.uint8)
    halves[:, 150:] = 200
    small = resized(Image.fromarray(halves))
    assert small.shape == (28, 28)
    assert (small[:, :11] == 0).all()
    assert (small[:, 17:] == 200).all()


@needs_mnist
def test_mnist_is_a_fixed_point() -> None:
    """Made once more in the same way, its images are the same, but for edges that are fainter than a sixteenth."""
    images, _ = read_labelled_images(MNIST, "t10k", DIGITS)
    again = [as_mnist(Image.fromarray(image)) for image in images[:2000]]
    assert all(image is not None for image in again)
    differences = np.abs(np.stack(again).astype(int) - images[:2000]).max(axis=(1, 2))  # type: ignore[arg-type]
    assert (differences <= 15).mean() > 0.998
    assert (differences <= 2).mean() > 0.9


PHOTOS: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]] = {
    "even light": lambda x, y: 0 * x * y,
    "light from the left": lambda x, y: -0.3 * x + 0 * y,
    "light from a corner": lambda x, y: 0.2 * x - 0.2 * y,
    "dark corners": lambda x, y: -0.15 * (x**2 + y**2),
    "both": lambda x, y: 0.2 * x + 0.1 * y - 0.1 * (x**2 + y**2),
}


@pytest.mark.parametrize("light", PHOTOS)
def test_a_photograph_of_a_digit(digits_run: Path, light: str) -> None:
    """On paper, in uneven light, with a camera's noise, as a JPEG file: the digit is what it was, nearly."""
    images, _ = read_labelled_images(digits_run / "data/raw", "t10k", DIGITS)
    random = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:600j, -1:1:600j]
    differences = []
    for image in images[:20]:
        ink = np.zeros((600, 600))
        ink[70:350, 250:530] = np.asarray(Image.fromarray(image).resize((280, 280), Image.Resampling.BICUBIC)) / 255
        shades = (200 - 110 * ink) * (1 + PHOTOS[light](x, y)) + random.normal(0, 4, ink.shape)
        stream = io.BytesIO()
        Image.fromarray(shades.clip(0, 255).astype(np.uint8)).save(stream, "JPEG")
        whole, photographed = as_mnist(Image.fromarray(image)), as_mnist(read_grey(stream, "a photograph"))
        assert whole is not None
        assert photographed is not None
        differences.append(np.abs(whole.astype(int) - photographed).mean())
    assert np.mean(differences) < 15


def test_the_shade_of_paper_in_uneven_light() -> None:
    """A surface like those that are fitted is found, to a few shades: light changes within a third, too."""
    y, x = np.mgrid[-1:1:301j, -1:1:401j]
    shades = np.rint(180 + 20 * x - 15 * y - 30 * (x**2 + y**2)).astype(np.int32)
    assert np.abs(_paper(shades) - shades).max() <= 4
    assert np.ptp(shades) > 90


@pytest.mark.parametrize(("dtype", "factor"), [(np.float32, 1 / 255), (np.int32, 1), (np.int32, 100_000)])
def test_images_of_other_numbers(digits_run: Path, dtype: type, factor: float) -> None:
    """TIFF's 32 bits: where black and white are is not known, so the darkest and the lightest shade are taken."""
    image = digit(digits_run)
    stream = io.BytesIO()
    Image.fromarray((image.astype(np.float64) * factor).astype(dtype)).save(stream, "TIFF")
    found = np.asarray(read_grey(stream, "an image")).astype(int)
    assert np.abs(found - np.rint((image - image.min()) * (255 / np.ptp(image)))).max() <= 1


def test_paper_without_ink() -> None:
    """Neither a camera's noise nor uneven light is ink."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:600j, -1:1:600j]
    for light in PHOTOS.values():
        shades = 200 * (1 + light(x, y)) + random.normal(0, 4, x.shape)
        assert as_mnist(Image.fromarray(shades.clip(0, 255).astype(np.uint8))) is None


# Writers.


def write_writers(project: Path, labels: NDArray[np.uint8], writers: NDArray[np.int64]) -> None:
    rows = np.zeros((len(labels), 8), ">i4")
    rows[:, 0], rows[:, 2] = labels, writers
    header = bytes([0, 0, 0x0C, 2]) + struct.pack(">2I", *rows.shape)
    (project / "data/raw" / WRITERS).write_bytes(gzip.compress(header + rows.tobytes()))


def test_whole_writers_are_held_out(digits_project: Path, run_stage: RunStage) -> None:
    images, labels = read_labelled_images(digits_project / "data/raw", "train", DIGITS)
    writers = np.arange(len(labels)) * 7 % 43
    write_writers(digits_project, labels, writers)
    writer_of = {image.tobytes(): writer for image, writer in zip(images, writers, strict=True)}
    splits = []
    for seed in (0, 0, 1):
        set_params(digits_project, "preprocess.hold_out=writers", f"preprocess.seed={seed}")
        assert run_stage(digits_project, "preprocess").status == 0
        parts = [load_dataset(digits_project / f"data/processed/{name}.pt", 10) for name in ("training", "validation")]
        kept, held_out = ([writer_of[image.numpy().tobytes()] for image in part.images] for part in parts)
        assert not set(kept) & set(held_out)
        assert len(kept) + len(held_out) == len(labels)
        # At least as many as asked for, and fewer with one writer less.
        assert 143 <= len(held_out) < 143 + 34
        # Each in the order of the file, with its own label.
        position = {image.tobytes(): place for place, image in enumerate(images)}
        for part in parts:
            places = [position[image.numpy().tobytes()] for image in part.images]
            assert places == sorted(places)
            assert part.labels.tolist() == labels[places].tolist()
        splits.append(set(held_out))
    assert splits[0] == splits[1] != splits[2]


BAD_WRITERS = {
    "missing": (None, "no such file; `dvc repro`"),
    "of other images": (lambda labels: (labels[::-1].copy(), np.arange(len(labels))), "belongs to other images"),
    "of fewer images": (lambda labels: (labels[:-1], np.arange(len(labels) - 1)), "belongs to other images"),
    "a single writer": (lambda labels: (labels, np.zeros(len(labels), int)), "which leaves no writer to train on"),
}


@pytest.mark.parametrize("case", BAD_WRITERS)
def test_bad_writers(digits_project: Path, run_stage: RunStage, case: str) -> None:
    make, words = BAD_WRITERS[case]
    if make:
        _, labels = read_labelled_images(digits_project / "data/raw", "train", DIGITS)
        write_writers(digits_project, *make(labels))
    set_params(digits_project, "preprocess.hold_out=writers")
    before = tree(digits_project)
    assert_refused(run_stage(digits_project, "preprocess"), words)
    assert tree(digits_project) == before


@pytest.mark.parametrize("dataset", ["fashion_mnist", "digits", "own"])
def test_writers_of_other_data_sets_are_not_known(project: Path, run_stage: RunStage, dataset: str) -> None:
    set_params(project, "preprocess.hold_out=writers", f"data.dataset={dataset}")
    words = f"preprocess.hold_out is writers, but those of {dataset} are not known; use images"
    assert_refused(run_stage(project, "download"), words)
    assert tree(project) == {}


@needs_mnist
def test_mnists_writers(project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published file, fetched and checked like the others; a test set's writer is none of the training set's."""
    monkeypatch.setenv("QMNIST_MIRROR", str(writers_place()))
    monkeypatch.setenv("MNIST_MIRROR", str(MNIST))
    set_params(project, "preprocess.hold_out=writers")
    assert run_stage(project, "download").status == 0
    assert run_stage(project, "preprocess").status == 0
    writers = read_idx(project / "data/raw" / WRITERS, (8,), ">i4")[:, 2]
    assert len(set(writers.tolist())) == 539
    images, _ = read_labelled_images(project / "data/raw", "train", DIGITS)
    writer_of: dict[bytes, set[int]] = {}
    for image, writer in zip(images, writers.tolist(), strict=True):
        writer_of.setdefault(image.tobytes(), set()).add(writer)
    held_out = load_dataset(project / "data/processed/validation.pt", 10)
    kept = load_dataset(project / "data/processed/training.pt", 10)
    assert 5000 <= len(held_out.labels) < 5300
    assert len(held_out.labels) + len(kept.labels) == 60_000
    found = [set.union(*(writer_of[i.numpy().tobytes()] for i in part.images)) for part in (kept, held_out)]
    assert not found[0] & found[1]
    assert 30 <= len(found[1]) <= 60

    # Without them, the file is not among the raw ones.
    shutil.rmtree(project / "data/raw")
    set_params(project, "preprocess.hold_out=images")
    assert run_stage(project, "download").status == 0
    assert not (project / "data/raw" / WRITERS).exists()


# The command lenet.


def test_lenet_data(digits_run: Path, run_lenet: RunLenet) -> None:
    text = run_lenet(digits_run, "data").output
    for entry in CATALOG.values():
        assert f"{entry.info.name}: {entry.info.title}, {entry.images[0]:,} training and" in text
        assert f"licence: {entry.licence}" in text
        assert f"citation: {entry.citation}" in text
    assert "here: no; 30.9 MB to download, or set FASHION_MNIST_MIRROR" in text
    assert "own: your own images\n  classes: none (the folders in data.folder)" in text
    rows = {row["name"]: row for row in json.loads(run_lenet(digits_run, "data", "--json").output)}
    assert list(rows) == [*CATALOG, "own"]
    assert rows["mnist"]["here"] == [], "data/raw holds digits"
    assert rows["digits"]["here"] == ["scikit-learn's package"]
    assert rows["kmnist"]["classes"] == list(CATALOG["kmnist"].info.classes)


def test_lenet_data_says_what_is_here(project: Path, run_lenet: RunLenet, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place("fashion_mnist")
    monkeypatch.setenv("FASHION_MNIST_MIRROR", str(folder))
    set_params(project, f"data.folder={photographs(project / 'shapes', 1)}")
    rows = {row["name"]: row for row in json.loads(run_lenet(project, "data", "--json").output)}
    assert rows["fashion_mnist"]["here"] == [str(folder)]
    assert rows["own"]["classes"] == ["circle", "cross", "square", "triangle"]
    shutil.copytree(folder, project / "data/downloads/fashion_mnist")
    [row] = [row for row in json.loads(run_lenet(project, "data", "--json").output) if row["name"] == "fashion_mnist"]
    assert row["here"] == ["data/downloads/fashion_mnist", str(folder)]
    path = project / "data/downloads/fashion_mnist" / FILES[3]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    [row] = [row for row in json.loads(run_lenet(project, "data", "--json").output) if row["name"] == "fashion_mnist"]
    assert row["here"] == [str(folder)], "a damaged file is not there"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            ["preset", "mlp", "-S", "data.dataset=fashion"],
            "presets/mlp.yaml and --set: data.dataset is 'fashion'; it must",
        ),
        (["zoo", "-S", "data.dataset=fashion"], "data.dataset is 'fashion'; it must be mnist, fashion_mnist,"),
        (
            ["preset", "lenet5-1998", "-S", "data.dataset=kmnist"],
            "lenet5-1998 has the paper's output layer, which consists of pictures of the digits 0 to 9; it",
        ),
    ],
)
def test_unknown_data_sets_in_experiments(
    digits_run: Path, run_lenet: RunLenet, command: list[str], words: str
) -> None:
    assert_refused(run_lenet(digits_run, *command), words)


def test_describe_follows_the_classes(digits_project: Path, run_lenet: RunLenet) -> None:
    set_params(digits_project, "data.dataset=own")
    words = "data/raw/dataset.json: is not of data set own, whose classes it names; run `dvc repro download`"
    assert_refused(run_lenet(digits_project, "describe"), words)
    write_info(digits_project / "data/raw/dataset.json", DatasetInfo("own", "x", ("a", "b", "c"), 0.1, 0.2))
    [output] = [line for line in run_lenet(digits_project, "describe").output.splitlines() if "output" in line][1:]
    assert output.split()[-3:] == ["3", "255", "255"]


# The pictures.


def long_names(classes: int) -> DatasetInfo:
    return DatasetInfo("long", "Long", tuple(f"a rather long name {number}" for number in range(classes)), 0.1, 0.3)


def test_a_mistake_names_its_classes() -> None:
    info = CATALOG["fashion_mnist"].info
    predictions = pandas.DataFrame({"actual": [9, 5], "predicted": [7, 5], "probability": [0.9, 0.8]})
    images = np.zeros((2, 28, 28), np.uint8)
    figure = figures.mistakes(images, predictions, 5, info, "t")
    assert [text.get_text() for text in figure.axes[0].texts] == ["Ankle boot taken\nfor Sneaker\n90.0%"]
    assert "actual class, predicted class" in figure.get_suptitle()


def test_digits_are_digits_and_others_classes() -> None:
    predictions = pandas.DataFrame({"actual": [1, 0], "predicted": [1, 1], "probability": [0.9, 0.8]})
    for name, noun in (("mnist", "digit"), ("fashion_mnist", "class")):
        info = CATALOG[name].info
        axes = figures.confusion_matrix(predictions, info, "t").axes[0]
        assert (axes.get_xlabel(), axes.get_ylabel()) == (f"Predicted {noun}", f"Actual {noun}")
        assert [text.get_text() for text in axes.get_xticklabels()] == list(info.classes)
        axes = figures.per_class_accuracy(predictions, info, "t").axes[0]
        assert axes.get_xlabel() == noun.capitalize()
        assert [text.get_text() for text in axes.get_xticklabels()] == list(info.classes)


@pytest.mark.parametrize("classes", [2, 10, 30])
def test_names_do_not_overlap(classes: int) -> None:
    """However long the classes' names are, no two of them cover the same pixels, and none is cut off."""
    info = long_names(classes)
    predictions = pandas.DataFrame({"actual": range(classes), "predicted": range(classes), "probability": 0.5})
    for figure in (
        figures.confusion_matrix(predictions, info, "t"),
        figures.per_class_accuracy(predictions, info, "t"),
    ):
        figures.to_png(figure)
        axes = figure.axes[0]
        labels = axes.get_xticklabels()
        # Parallel and slanted by 45 degrees, they keep apart if their anchors are further apart than they are high.
        anchors = [axes.transData.transform((label.get_position()[0], 0))[0] for label in labels]
        height = float(labels[0].get_fontsize()) / 72 * figure.dpi
        assert min(np.diff(anchors)) * np.sqrt(0.5) > height
        box = figure.bbox
        for label in [*labels, *axes.get_yticklabels()]:
            extent = label.get_window_extent()
            # The corner of a slanted text's box is empty.
            assert extent.x0 >= box.x0 - height
            assert extent.y0 >= box.y0 - height
