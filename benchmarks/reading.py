"""What does `lenet predict` make of digits in disguise, and of what is no digit? `python benchmarks/reading.py`.

Saves MNIST's test images in several forms, and pictures of other things, as files, classifies them with the network of
the workspace as the command does, and writes to benchmarks/reading.csv how many are read right, have another prediction
than in `evaluate`, or are called strange or blank. Needs `dvc repro`; Fashion-MNIST's images are left out where they
are not in FASHION_MNIST_MIRROR or data/downloads. Takes about three minutes on two cores.

What is strange, `lenet.results.prediction`'s measure and its share of 1% of the validation images, had been chosen by
such pictures before.
"""

import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

from lenet.data.idx import read_labelled_images
from lenet.data.info import DIGITS
from lenet.environment import environment
from lenet.experiments import models
from lenet.files import write_csv
from lenet.network.backend import predict
from lenet.processor import set_arithmetic
from lenet.results.prediction import Answer, answers, least_familiarity

Pixels = NDArray[np.uint8]
SIDE = 280


def enlarged(image: Pixels, resampling: Image.Resampling) -> Pixels:
    """Ten times as large."""
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), resampling))


def as_jpeg(image: Pixels) -> Pixels:
    """What JPEG of Pillow's usual quality, 75, makes of an image."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG")
    return np.asarray(Image.open(stream))


def shifted(image: Pixels, random: np.random.Generator) -> Pixels:
    """Anywhere in its 28x28 pixels."""
    ink = np.argwhere(image)
    by = [int(random.integers(-least, 28 - most)) for least, most in zip(ink.min(axis=0), ink.max(axis=0), strict=True)]
    return np.roll(image, by, axis=(0, 1))


def photographed(image: Pixels, random: np.random.Generator) -> Pixels:
    """On paper, somewhere in a photograph in uneven light, with a camera's noise."""
    size, side = 800, int(random.integers(250, 450))
    ink = np.zeros((size, size))
    top, left = random.integers(0, size - side, 2)
    ink[top : top + side, left : left + side] = np.asarray(
        Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    )
    x, y = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    angle = random.uniform(0, 2 * np.pi)
    light = 1 + 0.2 * (np.cos(angle) * x + np.sin(angle) * y) - 0.1 * (x**2 + y**2)
    shades = (200 - 110 / 255 * ink) * light + random.normal(0, 4, ink.shape)
    return as_jpeg(shades.clip(0, 255).astype(np.uint8))


DISGUISES: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "as they are": lambda image, _: image,
    "inverted": lambda image, _: 255 - image,
    "shifted": shifted,
    "280x280, each pixel repeated": lambda image, _: enlarged(image, Image.Resampling.NEAREST),
    "280x280, bilinear": lambda image, _: enlarged(image, Image.Resampling.BILINEAR),
    "280x280, bicubic": lambda image, _: enlarged(image, Image.Resampling.BICUBIC),
    "280x280, Lanczos": lambda image, _: enlarged(image, Image.Resampling.LANCZOS),
    "JPEG": lambda image, _: as_jpeg(image),
    "280x280, bicubic, inverted, JPEG": lambda image, _: as_jpeg(255 - enlarged(image, Image.Resampling.BICUBIC)),
    "in a photograph, uneven light": photographed,
}
COUNTS = {"in a photograph, uneven light": 1000}
"""Of how many images, if not of all."""


def fashion(_: np.random.Generator) -> Iterator[Pixels]:
    """Fashion-MNIST's test images."""
    for folder in (Path(os.environ.get("FASHION_MNIST_MIRROR", "nowhere")), Path("data/downloads/fashion_mnist")):
        if folder.is_dir():
            yield from read_labelled_images(folder, "t10k", DIGITS)[0]
            return


def photographs(random: np.random.Generator) -> Iterator[Pixels]:
    """Parts of scikit-learn's two photographs, of a temple and of a flower."""
    whole = [np.asarray(Image.fromarray(image).convert("L")) for image in load_sample_images().images]
    for _ in range(1000):
        image, side = whole[random.integers(2)], random.integers(60, 300)
        top, left = (random.integers(0, length - side) for length in image.shape)
        yield image[top : top + side, left : left + side]


def paper(random: np.random.Generator) -> Iterator[Pixels]:
    """Photographs of paper with nothing on it."""
    for _ in range(200):
        yield photographed(np.zeros((28, 28), np.uint8), random)


def scribbles(random: np.random.Generator) -> Iterator[Pixels]:
    """Lines between random points; some of them look like digits."""
    for _ in range(1000):
        image = Image.new("L", (SIDE, SIDE), 255)
        points = random.integers(30, 250, (int(random.integers(4, 12)), 2))
        width = int(random.integers(10, 26))
        ImageDraw.Draw(image).line([tuple(map(int, point)) for point in points], 0, width, joint="curve")
        yield np.asarray(image)


FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSansMono.ttf",
    "STIXGeneral.ttf",
    "cmr10.ttf",
)


def printed(texts: str, size: int) -> Callable[[np.random.Generator], Iterator[Pixels]]:
    """Texts in the fonts that Matplotlib has."""

    def draw(_: np.random.Generator) -> Iterator[Pixels]:
        for name in FONTS:
            font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf", name)), size)
            for text in texts.split():
                image = Image.new("L", (SIDE, SIDE), 255)
                ImageDraw.Draw(image).text((SIDE // 2, SIDE // 2), text, 0, font, anchor="mm")
                yield np.asarray(image)

    return draw


OTHERS: dict[str, Callable[[np.random.Generator], Iterator[Pixels]]] = {
    "photographs of other things": photographs,
    "photographs of paper": paper,
    "Fashion-MNIST": fashion,
    "words": printed("hello word paper digit none sum pen ink", 60),
    "scribbles": scribbles,
    "letters": printed("A B C D E F G H J K L M N P Q R T U V W X Y a c d e f h i j k m n p r s t u v w x y", 180),
}


def main() -> None:
    """Classify all, print and write the table."""
    set_arithmetic("portable")
    trained = models.trained(models.one("workspace"))
    familiar = least_familiarity(trained.network, models.validation_images(trained.revision))
    images, labels = read_labelled_images(Path("data/raw"), "t10k", tuple(trained.classes))
    expected = predict(trained.network, torch.from_numpy(images), 250).argmax(dim=1).tolist()
    about = environment(torch.device("cpu"), "portable")
    machine = f"{about['processor']}, torch {about['torch']}"
    rows: list[list[object]] = []

    def classified(pictures: Iterable[Pixels]) -> list[Answer]:
        with tempfile.TemporaryDirectory(prefix="lenet-reading-") as folder:
            files = []
            for number, picture in enumerate(pictures):
                files.append(Path(folder, f"{number:05}.png"))
                Image.fromarray(picture).save(files[-1], compress_level=1)
            return [*answers(trained.network, trained.classes, trained.prepare, familiar, files)]

    def add(name: str, found: list[Answer], *counts: object) -> None:
        strange, blank = sum(answer.strange for answer in found), sum(answer.image is None for answer in found)
        rows.append([name, len(found), *counts, strange, blank, machine])
        print(*rows[-1][:-1], sep=", ", flush=True)

    for name, disguise in DISGUISES.items():
        random = np.random.default_rng(0)
        found = classified(disguise(image, random) for image in images[: COUNTS.get(name)])
        said = [next(iter(answer.probabilities), "") for answer in found]
        right = sum(word == trained.classes[label] for word, label in zip(said, labels, strict=False))
        other = sum(word != trained.classes[label] for word, label in zip(said, expected, strict=False))
        add(name, found, right, other)
    for name, draw in OTHERS.items():
        if found := classified(draw(np.random.default_rng(0))):
            add(name, found, "", "")
    columns = ["what", "images", "right", "other_prediction", "strange", "blank", "machine"]
    write_csv(Path(__file__).parent / "reading.csv", columns, rows)


if __name__ == "__main__":
    main()
