"""`own`: a folder of images, a subfolder for each class (torchvision's ImageFolder), as MNIST's four files."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lenet.data.catalog import OWN
from lenet.data.idx import to_bytes
from lenet.data.images import as_mnist, read_grey, resized
from lenet.data.info import FILES, MOST_CLASSES, DatasetInfo, are_classes
from lenet.errors import InputError, printable

FORMATS = ("PNG", "JPEG")
_TEST_SHARE = 5
"""One image in so many of each class is a test image."""


def read_folder(folder: Path, prepare: str) -> tuple[DatasetInfo, dict[str, bytes]]:
    """Make a data set of the images in the subfolders of a folder: what there is to know of it, and its IDX files.

    The classes are the names of the subfolders, in alphabetical order. A fifth of each class, at least one image, is
    for the test: those whose names have the lowest SHA-256, so that another file more or less hardly changes the
    choice. Names that begin with a dot are ignored.

    Parameters
    ----------
    prepare : {"mnist", "resize"}
        Whether each image is made as MNIST's were (`lenet.data.images.as_mnist`) or plainly resized.

    Raises
    ------
    InputError
        There are fewer than 2 or more than 100 classes, a class has fewer than two images, or a file cannot be used.
    """
    if folder == Path() or not folder.is_dir():
        raise InputError(f"{folder}: no such folder; set data.folder to one with a folder of images for each class")
    classes = [path.name for path in class_folders(folder)]
    if len(classes) < 2:
        found = f"only the folder {classes[0]!r}" if classes else "no folder"
        # There, a relative folder has only what Git or DVC tracks.
        where = "" if folder.is_absolute() else " (with --temp or the queue, data.folder has to be an absolute path)"
        raise InputError(f"{folder}: has {found} in it; it needs one for each class, two or more{where}")
    if len(classes) > MOST_CLASSES:
        raise InputError(f"{folder}: has {len(classes)} classes; at most {MOST_CLASSES} are possible")
    if not are_classes(classes):
        bad = next(name for name in classes if not name.isprintable())
        raise InputError(f"{folder}: the name {bad!r} cannot be printed; rename the folder")

    training: list[tuple[NDArray[np.uint8], int]] = []
    test: list[tuple[NDArray[np.uint8], int]] = []
    for label, name in enumerate(classes):
        paths = sorted(_files(folder / name))
        if len(paths) < 2:
            raise InputError(
                f"{folder / name}: holds {len(paths)} image(s); a class needs two, one of them for the test"
            )
        images = [(_read(path, prepare), label) for path in paths]
        order = sorted(range(len(paths)), key=lambda position: _sha256(paths[position].relative_to(folder)))
        share = max(1, len(images) // _TEST_SHARE)
        test += [images[position] for position in sorted(order[:share])]
        training += [images[position] for position in sorted(order[share:])]

    files = {}
    for (images_file, labels_file), part in ((FILES[:2], training), (FILES[2:], test)):
        files[images_file] = to_bytes(np.stack([image for image, _ in part]))
        files[labels_file] = to_bytes(np.array([label for _, label in part], np.uint8))
    pixels = np.stack([image for image, _ in training]) / 255
    # The least that params.yaml allows, if all images are the same shade.
    mean, std = round(float(pixels.mean()), 4), max(0.001, round(float(pixels.std()), 4))
    return DatasetInfo(OWN, printable(folder.resolve().name), tuple(classes), mean, std), files


def class_folders(folder: Path) -> list[Path]:
    """The subfolders of a folder, in alphabetical order, without those whose names begin with a dot."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders, without those whose name, or whose folder's, begins with a dot."""
    found = [path for path in folder.rglob("*") if not path.is_dir()]
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.as_posix().encode()).hexdigest()


def _read(path: Path, prepare: str) -> NDArray[np.uint8]:
    shades = read_grey(path, str(path), FORMATS)
    pixels = as_mnist(shades) if prepare == "mnist" else resized(shades)
    if pixels is None:
        raise InputError(f"{path}: is blank: nothing differs from its border; remove it")
    return pixels
