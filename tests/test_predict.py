"""lenet predict: images of any kind in, classes and doubts out."""

import io
import json
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MNIST, Outcome, RunLenet, assert_refused, commit, needs_mnist, sh
from numpy.typing import NDArray
from PIL import Image

from lenet.data.idx import read_labelled_images
from lenet.data.info import DIGITS
from lenet.data.tensors import load_dataset, write_pt
from lenet.experiments.dvc import md5
from lenet.network.backend import predict
from lenet.network.lenet import build
from lenet.network.saved import load_model, save_model
from lenet.params import Model, load_params
from lenet.results.explanation import integrated_gradients
from lenet.results.prediction import FALSE_ALARMS, answers, familiarity, least_familiarity

Disguise = Callable[[NDArray[np.uint8]], Image.Image]


def enlarged(image: NDArray[np.uint8], resampling: Image.Resampling) -> Image.Image:
    return Image.fromarray(image).resize((280, 280), resampling)


def shifted(image: NDArray[np.uint8]) -> Image.Image:
    """In the lower right corner."""
    rows, columns = (27 - places.max() for places in image.nonzero())
    return Image.fromarray(np.roll(image, (rows, columns), axis=(0, 1)))


DISGUISES: dict[str, tuple[Disguise, float]] = {
    "none": (Image.fromarray, 0.996),
    "inverted": (lambda image: Image.fromarray(255 - image), 0.996),
    "shifted": (shifted, 0.996),
    "large": (lambda image: enlarged(image, Image.Resampling.NEAREST), 0.996),
    "large and smooth": (lambda image: enlarged(image, Image.Resampling.BICUBIC), 0.98),
}


@needs_mnist
@pytest.mark.parametrize("case", DISGUISES)
def test_mnist_in_disguise(mnist_network: torch.nn.Sequential, tmp_path: Path, case: str) -> None:
    """Saved as files, in whatever form, the test images have the predictions that `evaluate` gives them."""
    images = read_labelled_images(MNIST, "t10k", DIGITS)[0][:500]
    disguise, least = DISGUISES[case]
    for number, image in enumerate(images):
        disguise(image).save(tmp_path / f"{number:04}.png")
    found = answers(mnist_network, DIGITS, "mnist", float("-inf"), sorted(tmp_path.iterdir()))
    said = [next(iter(answer.probabilities)) for answer in found]
    expected = [DIGITS[label] for label in predict(mnist_network, torch.from_numpy(images), 250).argmax(dim=1)]
    assert np.mean([one == other for one, other in zip(said, expected, strict=True)]) >= least


def digits(project: Path, count: int) -> list[Image.Image]:
    """The first test images."""
    return [
        Image.fromarray(image.numpy()) for image in load_dataset(project / "data/processed/test.pt", 10).images[:count]
    ]


def parsed(outcome: Outcome) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(outcome.output)
    return found


FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"]


def test_a_folder_with_images_of_many_formats(digits_project: Path, run_lenet: RunLenet) -> None:
    folder = digits_project / "mine"
    (folder / "inside").mkdir(parents=True)
    [digit] = digits(digits_project, 1)
    for name in FORMATS:
        digit.resize((280, 280)).save(folder / "inside" / f"image.{name.lower().replace('jpeg2000', 'jp2')}", name)
    (folder / "notes.txt").write_text("not an image")
    found = parsed(run_lenet(digits_project, "predict", "--json", "mine"))
    assert [Path(row["file"]).name for row in found] == sorted(
        f"image.{suffix}" for suffix in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "jp2")
    )
    assert len({row["class"] for row in found}) == 1
    for row in found:
        assert row.keys() == {"file", "status", "class", "probability", "probabilities"}
        shares = row["probabilities"]
        assert shares.keys() == set(DIGITS)
        assert sum(shares.values()) == pytest.approx(1)
        assert [*shares.values()] == sorted(shares.values(), reverse=True)
        assert (row["class"], row["probability"]) == next(iter(shares.items()))


def test_standard_input(digits_project: Path, run_lenet: RunLenet, monkeypatch: pytest.MonkeyPatch) -> None:
    [digit] = digits(digits_project, 1)
    digit.save(digits_project / "digit.png")
    from_file = run_lenet(digits_project, "predict", "digit.png")
    with (digits_project / "digit.png").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert run_lenet(digits_project, "predict", "-").output == from_file.output.replace("digit.png", "-")


def test_what_is_no_digit_is_said_not_guessed(digits_project: Path, run_lenet: RunLenet) -> None:
    [digit] = digits(digits_project, 1)
    digit.save(digits_project / "digit.png")
    Image.new("RGB", (300, 200), "white").save(digits_project / "blank.jpg")
    noise = np.random.default_rng(0).integers(0, 256, (100, 100)).astype(np.uint8)
    noise[[0, -1]] = noise[:, [0, -1]] = 255
    Image.fromarray(noise).save(digits_project / "noise.png")
    outcome = run_lenet(digits_project, "predict", "digit.png", "blank.jpg", "noise.png")
    assert (outcome.status, outcome.error) == (0, "")
    first, blank, strange = outcome.output.splitlines()
    assert first.startswith("digit.png: ")
    assert first.endswith("%)")
    assert blank == "blank.jpg: blank: no ink stands out from its border"
    assert strange.startswith("noise.png: strange: unlike what the network was trained on; it would say ")
    rows = parsed(run_lenet(digits_project, "predict", "--json", "digit.png", "blank.jpg", "noise.png"))
    assert [row["status"] for row in rows] == ["ok", "blank", "strange"]
    assert rows[1] == {"file": "blank.jpg", "status": "blank"}


def test_one_in_a_hundred_validation_images_is_strange(digits_run: Path) -> None:
    network, _ = load_model(digits_run / "models/lenet.pt")
    images = load_dataset(digits_run / "data/processed/training.pt", 10).images
    strange = familiarity(predict(network, images, 250)) < least_familiarity(network, images)
    assert int(strange.sum()) == pytest.approx(FALSE_ALARMS * len(images), abs=1)


def test_without_the_validation_images(digits_project: Path, run_lenet: RunLenet) -> None:
    [digit] = digits(digits_project, 1)
    digit.save(digits_project / "digit.png")
    expected = run_lenet(digits_project, "predict", "digit.png")
    (digits_project / "data/processed/validation.pt").unlink()
    outcome = run_lenet(digits_project, "predict", "digit.png")
    assert (outcome.status, outcome.output) == (0, expected.output)
    assert outcome.error == (
        "warning: strange images cannot be flagged: data/processed/validation.pt: no such file; run `dvc repro`\n"
    )


def png(width: int, height: int) -> bytes:
    """A PNG file of that size with hardly any content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_files_that_cannot_be_read(digits_project: Path, run_lenet: RunLenet) -> None:
    """A line for each; the others are classified."""
    [digit] = digits(digits_project, 1)
    stream = io.BytesIO()
    digit.save(stream, "PNG")
    (digits_project / "digit.png").write_bytes(stream.getvalue())
    (digits_project / "half.png").write_bytes(stream.getvalue()[:150])
    (digits_project / "bomb.png").write_bytes(png(60_000, 60_000))
    (digits_project / "text.png").write_text("Hello")
    names = ["half.png", "bomb.png", "digit.png", "text.png", "nothing.png"]
    outcome = run_lenet(digits_project, "predict", *names)
    assert outcome.status == 1
    assert [line.split(":")[0] for line in outcome.output.splitlines()] == ["digit.png"]
    assert outcome.error.splitlines() == [
        "error: half.png: cannot be read (image file is truncated); repair it or leave it out",
        "error: bomb.png: has more than 89,478,485 pixels; make it smaller or leave it out",
        "error: text.png: is not an image of a format that Pillow reads; convert it or leave it out",
        "error: nothing.png: no such file or folder",
    ]
    outcome = run_lenet(digits_project, "predict", "--json", *names, "--explain", "picture.png")
    assert_refused(outcome, "--explain draws one image")
    outcome = run_lenet(digits_project, "predict", "--json", *names)
    assert outcome.status == 1
    assert [row["status"] for row in parsed(outcome)] == ["error", "error", "ok", "error", "error"]
    outcome = run_lenet(digits_project, "predict", "half.png", "--explain", "picture.png")
    assert outcome.status == 1
    assert not (digits_project / "picture.png").exists()


def test_what_only_looks_like_an_image(digits_project: Path, run_lenet: RunLenet) -> None:
    """A PostScript file is a program, which is not run; decoders fail in ways of their own."""
    program = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (digits_project / "program.png").write_text(program)
    stream = io.BytesIO()
    digits(digits_project, 1)[0].convert("RGB").resize((99, 99)).save(stream, "AVIF")
    content = bytearray(stream.getvalue())
    content[250:300] = bytes(50)
    (digits_project / "damaged.avif").write_bytes(content)
    outcome = run_lenet(digits_project, "predict", "program.png", "damaged.avif")
    assert (outcome.status, outcome.output) == (1, "")
    refused, damaged = outcome.error.splitlines()
    assert refused == "error: program.png: is not an image of a format that Pillow reads; convert it or leave it out"
    assert damaged.startswith("error: damaged.avif: ")
    assert damaged.endswith("or leave it out")


def test_a_hostile_name(digits_project: Path, run_lenet: RunLenet) -> None:
    """Neither another line nor an escape sequence comes from it."""
    name = "x\x1b[31mred\nnext: 7 (99.9%).png"
    digits(digits_project, 1)[0].save(digits_project / name)
    outcome = run_lenet(digits_project, "predict", name)
    assert outcome.status == 0
    assert len(outcome.output.splitlines()) == 1
    assert outcome.output.startswith(r"x\x1b[31mred next: 7 (99.9%).png: ")
    assert parsed(run_lenet(digits_project, "predict", "--json", name))[0]["file"] == name


BAD_ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "no such file": (["nothing.png"], "nothing.png: no such file or folder"),
    "a folder without images": (["tests"], "tests: has no images in it"),
    "its own image": (["blank.png", "--explain", "blank.png"], "blank.png: is the image itself; name another file"),
    "no such revision": (["blank.png", "--rev", "nobody"], "nobody is neither a revision of Git's nor"),
    "a blank image to explain": (["blank.png", "--explain", "x.png"], "x.png: not written: blank.png is blank"),
    "a folder to explain": (["tests", "--explain", "x.png"], "--explain draws one image; name one file"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(digits_project: Path, run_lenet: RunLenet, case: str) -> None:
    arguments, words = BAD_ARGUMENTS[case]
    Image.new("L", (50, 50), 255).save(digits_project / "blank.png")
    outcome = run_lenet(digits_project, "predict", *arguments)
    assert_refused(outcome, words)
    assert not (digits_project / "x.png").exists()


def of_another_architecture(path: Path) -> None:
    """The weights of a perceptron, called those of LeNet."""
    options = load_params(path.parents[1] / "params.yaml").model.normalised(0.1, 0.3)
    perceptron = build(options.model_copy(update={"architecture": "mlp"}))
    save_model(path, options, DIGITS, perceptron)


def with_nan(path: Path) -> None:
    """One weight that is not a number, as a flipped bit can make it."""
    content = torch.load(path)
    content["state_dict"]["C1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(content, path)


BAD_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a text": (lambda path: path.write_text("Hello"), "models/lenet.pt: is not a .pt file that is safe to load"),
    "truncated": (lambda path: os.truncate(path, 100_000), "models/lenet.pt: is not a .pt file that is safe to load"),
    "weights alone": (lambda path: write_pt(path, {"fc.weight": torch.zeros(2, 2)}), "does not hold a model section"),
    "another architecture": (of_another_architecture, "its weights do not fit its model section"),
    "not a number": (with_nan, "workspace: models/lenet.pt: has weights that are not finite numbers; train it again"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(digits_project: Path, run_lenet: RunLenet, case: str) -> None:
    damage, words = BAD_MODELS[case]
    digits(digits_project, 1)[0].save(digits_project / "digit.png")
    model, lock = digits_project / "models/lenet.pt", digits_project / "dvc.lock"
    os.chmod(model, 0o644)
    before = str(md5(model))
    damage(model)
    for command in (["predict", "digit.png"], ["draw"], ["export", "model.pt2"]):
        assert_refused(run_lenet(digits_project, *command), "models/lenet.pt: ", "; run `dvc repro`")
    # As after `dvc commit`.
    lock.write_text(lock.read_text().replace(before, str(md5(model))))
    for command in (["predict", "digit.png"], ["draw"], ["export", "model.pt2"]):
        assert_refused(run_lenet(digits_project, *command), words)
    assert not (digits_project / "dvc_plots").exists()
    assert not (digits_project / "model.pt2").exists()


def test_a_missing_model(digits_project: Path, run_lenet: RunLenet) -> None:
    digits(digits_project, 1)[0].save(digits_project / "digit.png")
    (digits_project / "models/lenet.pt").unlink()
    assert_refused(run_lenet(digits_project, "predict", "digit.png"), "models/lenet.pt: no such file; run `dvc repro`")


def test_the_network_of_a_revision(digits_project: Path, run_lenet: RunLenet) -> None:
    for number, digit in enumerate(digits(digits_project, 20)):
        digit.save(digits_project / f"{number:02}.png")
    names = [f"{number:02}.png" for number in range(20)]
    first = run_lenet(digits_project, "predict", *names)
    sh("git", "tag", "first", cwd=digits_project)
    # Another network, recorded as if it had been trained.
    model = digits_project / "models/lenet.pt"
    network, classes = load_model(model)
    options = Model(**torch.load(model)["model"])
    for parameter in network.parameters():
        parameter.data.neg_()
    os.chmod(model, 0o644)
    save_model(model, options, classes, network)
    sh("dvc", "commit", "--force", "train", cwd=digits_project)
    commit(digits_project, "another network")
    other = run_lenet(digits_project, "predict", *names)
    assert other.output != first.output
    assert run_lenet(digits_project, "predict", "--rev", "first", *names) == first
    assert run_lenet(digits_project, "predict", "--rev", "HEAD", *names) == other
    for path in (digits_project / ".dvc/cache/files/md5").glob("*/*"):
        os.chmod(path, 0o644)
        path.unlink()
    refused = run_lenet(digits_project, "predict", "--rev", "first", *names)
    assert_refused(refused, "first: DVC has its models/lenet.pt neither in its cache nor in a remote; check")


def test_the_picture_of_an_explanation(digits_project: Path, run_lenet: RunLenet) -> None:
    digits(digits_project, 1)[0].save(digits_project / "digit.png")
    plain = run_lenet(digits_project, "predict", "digit.png")
    outcome = run_lenet(digits_project, "predict", "digit.png", "--explain", "pictures/digit.png")
    assert (outcome.status, outcome.output) == (0, plain.output)
    assert outcome.error == "pictures/digit.png: what the network saw\n"
    with Image.open(digits_project / "pictures/digit.png") as picture:
        assert min(picture.size) > 500
        assert len(set(np.asarray(picture.convert("L")).flatten().tolist())) > 100
    (digits_project / "file").touch()
    outcome = run_lenet(digits_project, "predict", "digit.png", "--explain", "file/digit.png")
    assert_refused(outcome, "file: File exists; a folder belongs there: move the file away")


@pytest.mark.parametrize("pooling", ["max", "trainable"])
def test_the_pixels_account_for_the_margin(digits_run: Path, pooling: str) -> None:
    """The axiom of completeness: their sum is what the image adds to the margin of a blank one."""
    torch.manual_seed(0)
    options = load_params(digits_run / "params.yaml").model.normalised(0.1, 0.3)
    network = build(options.model_copy(update={"pooling": pooling, "activation": "tanh"})).eval()
    images = load_dataset(digits_run / "data/processed/test.pt", 10).images
    for image in images[:5]:
        counts = integrated_gradients(network, image.numpy(), 3, 5)
        logits = predict(network, torch.stack([image, torch.zeros_like(image)]), 2)
        margin, blank = (logits[:, 3] - logits[:, 5]).tolist()
        assert counts.sum() == pytest.approx(margin - blank, rel=0.02, abs=1e-3)
        assert not counts[image.numpy() == 0].any()
