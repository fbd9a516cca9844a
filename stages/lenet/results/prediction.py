"""What a network says about image files, and when it had better not be believed."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lenet.data.images import as_mnist, read_grey, readable, resized
from lenet.errors import InputError, printable
from lenet.network.backend import predict

STANDARD_INPUT = "-"
FALSE_ALARMS = 0.01
"""The share of validation images that are taken for strange."""
_BATCH = 250


class Answer(NamedTuple):
    """What the network says about an image.

    Attributes
    ----------
    file : str
    image : uint8 (28, 28) or None
        What the network was shown; None if the file is blank or cannot be read.
    probabilities : dict
        class -> softmax probability, from the most probable one to the least; empty if there is no image.
    strange : bool
        Whether the image is less familiar to the network than almost all that it should know.
    problem : str
        Why the file cannot be read; empty if it can.
    """

    file: str
    image: NDArray[np.uint8] | None
    probabilities: dict[str, float]
    strange: bool = False
    problem: str = ""


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The paths, with the images in a folder, by the suffixes that Pillow can read, in place of the folder.

    What does not exist and folders without images stay in the list: `answers` says what is wrong with them.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in readable()}
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in known and each.is_file())
            found += inside or [path]
        else:
            found.append(path)
    return found


def read_image(path: Path, prepare: str) -> NDArray[np.uint8] | None:
    """An image file as uint8 (28, 28), prepared as `data.prepare` says; None if it is blank.

    Raises
    ------
    InputError
        It is not an image, damaged or too large.
    """
    if str(path) == STANDARD_INPUT:
        shades = read_grey(sys.stdin.buffer, "standard input")
    elif path.is_dir():
        raise InputError(f"{path}: has no images in it, such as PNG or JPEG files; name a folder that has")
    elif not path.exists():
        raise InputError(f"{path}: no such file or folder")
    else:
        shades = read_grey(path, str(path))
    return as_mnist(shades) if prepare == "mnist" else resized(shades)


def familiarity(logits: Tensor) -> Tensor:
    """How familiar images are to a network, float32 [N], by its logits, float32 [N, classes]: their log-sum-exp.

    It is minus the free energy at temperature 1, by which Liu, Wang, Owens and Li tell out-of-distribution images from
    others ("Energy-based out-of-distribution detection", NeurIPS 2020, equation 4).
    """
    return logits.logsumexp(dim=1)


def least_familiarity(network: nn.Sequential, images: Tensor) -> float:
    """The familiarity that all but `FALSE_ALARMS` of these images, uint8 [N, 28, 28], reach, to four decimals."""
    ordered = familiarity(predict(network, images, _BATCH)).sort().values
    return round(ordered[int(FALSE_ALARMS * (len(ordered) - 1))].item(), 4)


def answers(
    network: nn.Sequential, classes: Sequence[str], prepare: str, threshold: float, files: Sequence[Path]
) -> Iterator[Answer]:
    """Classify image files, in their order. Images that are less familiar than the threshold are strange."""
    for start in range(0, len(files), _BATCH):
        batch = [_read(path, prepare) for path in files[start : start + _BATCH]]
        images = [answer.image for answer in batch if answer.image is not None]
        if images:
            logits = predict(network, torch.from_numpy(np.stack(images)), _BATCH)
            rows = zip(logits.double().softmax(dim=1).tolist(), familiarity(logits).tolist(), strict=True)
        for answer in batch:
            if answer.image is None:
                yield answer
            else:
                shares, familiar = next(rows)
                ranked = sorted(zip(classes, shares, strict=True), key=lambda pair: -pair[1])
                yield answer._replace(probabilities=dict(ranked), strange=not familiar >= threshold)


def _read(path: Path, prepare: str) -> Answer:
    """The file as an answer without probabilities."""
    try:
        return Answer(str(path), read_image(path, prepare), {})
    except InputError as error:
        return Answer(str(path), None, {}, problem=str(error))


def as_text(answer: Answer) -> str:
    """The answer in a line, of a file that could be read."""
    name = printable(answer.file)
    if answer.image is None:
        return f"{name}: blank: no ink stands out from its border"
    label, probability = next(iter(answer.probabilities.items()))
    unlike = "strange: unlike what the network was trained on; it would say " if answer.strange else ""
    return f"{name}: {unlike}{label} ({probability:.1%})"


def as_json(answer: Answer) -> dict[str, Any]:
    """The answer as JSON's types.

    `file`; `status`: `ok`, `strange`, `blank` or `error`; and, where there are some, `class`, `probability`, all
    `probabilities`, `error`.
    """
    if answer.problem:
        return {"file": answer.file, "status": "error", "error": answer.problem}
    if answer.image is None:
        return {"file": answer.file, "status": "blank"}
    label, probability = next(iter(answer.probabilities.items()))
    return {
        "file": answer.file,
        "status": "strange" if answer.strange else "ok",
        "class": label,
        "probability": probability,
        "probabilities": answer.probabilities,
    }
