"""What the later stages have to know of a data set: `dataset.json`, which `download` writes beside the four files."""

import json
from pathlib import Path
from typing import NamedTuple

from lenet.errors import InputError
from lenet.files import write_json

FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
"""The names of a data set's four files: images and labels for training, images and labels for the test."""
DIGITS = tuple("0123456789")
MOST_CLASSES = 100


class DatasetInfo(NamedTuple):
    """A data set's name, its title in pictures, its classes' names in the order of their labels, its normalisation.

    `mean` and `std` are those of all pixels of the training images, scaled to [0, 1].
    """

    name: str
    title: str
    classes: tuple[str, ...]
    mean: float
    std: float

    @property
    def noun(self) -> str:
        """What one of its classes is called in pictures."""
        return "digit" if self.classes == DIGITS else "class"


def write_info(path: Path, info: DatasetInfo) -> None:
    """Write dataset.json."""
    write_json(path, info._asdict())


def read_info(path: Path) -> DatasetInfo:
    """Read what `write_info` wrote.

    Raises
    ------
    InputError
        The file is damaged or foreign.
    """
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        values = None
    match values:
        case {"name": str(name), "title": str(title), "classes": list(classes), "mean": float(mean), "std": float(std)}:
            if are_classes(classes) and 0 <= mean <= 1 and 0.001 <= std <= 1:
                return DatasetInfo(name, title, tuple(classes), mean, std)
    raise InputError(f"{path}: was not written by the stage download; delete it and run `dvc repro download`")


def are_classes(names: object) -> bool:
    """Whether these are the names of 2 to 100 classes: a list of different strings that can be printed."""
    return (
        isinstance(names, list)
        and 2 <= len(names) <= MOST_CLASSES
        and all(isinstance(name, str) and name and name.isprintable() for name in names)
        and len(set(names)) == len(names)
    )
