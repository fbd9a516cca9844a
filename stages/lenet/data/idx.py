"""The IDX format of MNIST's files, read strictly.

Source: Yann LeCun's MNIST page, "File formats for the MNIST database": a big-endian header of a magic number (two zero
bytes, the type code, 0x08 for unsigned bytes and 0x0c for 32-bit integers, the number of dimensions) and a 32-bit size
for each dimension, then the items in row-major order. The files are compressed with gzip.
"""

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenet.errors import InputError

SIDE = 28
MAX_ITEMS = 1_000_000
"""More than any data set of this family has (EMNIST: 814,255 images); a header that claims more is refused."""


def read_labelled_images(
    folder: Path, part: str, classes: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the images and the labels of one part of the data set.

    Parameters
    ----------
    folder : Path
        Where the `*-ubyte.gz` files are.
    part : {"train", "t10k"}
        The first part of the two files' names.
    classes : sequence of str
        The names of the classes, each of which must have an image.

    Returns
    -------
    images : uint8 array of shape (N, 28, 28)
        0 is background, 255 is ink.
    labels : uint8 array of shape (N,)
        Positions in `classes`.

    Raises
    ------
    InputError
        A file is not what its name says, or the two do not belong together or to these classes.
    """
    images_path, labels_path = folder / f"{part}-images-idx3-ubyte.gz", folder / f"{part}-labels-idx1-ubyte.gz"
    images, labels = read_idx(images_path, (SIDE, SIDE)), read_idx(labels_path, ())
    if len(images) != len(labels):
        raise refused(images_path, f"holds {len(images)} images, but {labels_path} holds {len(labels)} labels")
    counts = np.bincount(labels, minlength=len(classes))
    if len(counts) > len(classes):
        position, last = int(labels.argmax()), len(classes) - 1
        raise refused(labels_path, f"label {labels[position]} at position {position} is not a class from 0 to {last}")
    if missing := [name for name, count in zip(classes, counts, strict=True) if not count]:
        known = len(classes) - len(missing)
        raise refused(
            labels_path,
            f"has images of {known} of the {len(classes)} classes that dataset.json names, and none of {missing[0]!r}",
        )
    return images, labels


_TYPE_CODES = {"u1": 0x08, ">i4": 0x0C}


def read_idx(path: Path, item_shape: tuple[int, ...], dtype: str = "u1") -> NDArray[Any]:
    """Read a gzip-compressed IDX file of items of a shape: an array (N, *item_shape) of uint8 or of `>i4`, int32.

    Raises
    ------
    InputError
        It is not such a file.
    """
    try:
        with gzip.open(path) as file:
            return _parse(path, file, item_shape, dtype)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise refused(path, f"is not a complete gzip file: {error}") from None


def _parse(path: Path, file: gzip.GzipFile, item_shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    dimensions = 1 + len(item_shape)
    header, magic = file.read(4 + 4 * dimensions), bytes([0, 0, _TYPE_CODES[dtype], dimensions])
    if header[:4] != magic:
        raise refused(path, f"begins with 0x{header[:4].hex()}, not with IDX's magic number 0x{magic.hex()}")
    if len(header) < 4 + 4 * dimensions:
        raise refused(path, "ends within its header")
    count, *shape = struct.unpack(f">{dimensions}I", header[4:])
    if tuple(shape) != item_shape:
        raise refused(path, f"holds items of {'x'.join(map(str, shape))}, not {'x'.join(map(str, item_shape))}")
    if not 1 <= count <= MAX_ITEMS:
        raise refused(path, f"claims {count} items; 1 to {MAX_ITEMS} are read")

    # Filled piece by piece: the memory that a false header asks for is reserved, but not used before bytes arrive.
    items = np.empty((count, *item_shape), dtype)
    buffer, filled = items.view(np.uint8).data.cast("B"), 0
    while filled < len(buffer) and (got := file.readinto(buffer[filled : filled + 2**20])):
        filled += got
    if filled < len(buffer):
        raise refused(path, f"claims {count} items, {len(buffer)} bytes, but holds {filled}")
    if file.read(1):
        raise refused(path, f"holds more than the {count} items that its header claims")
    return items


def refused(path: Path, why: str) -> InputError:
    """The error for a raw file that cannot be used."""
    return InputError(f"{path}: {why}; delete it and run `dvc repro download`")


def to_bytes(items: NDArray[np.uint8]) -> bytes:
    """Encode uint8 images (N, 28, 28) or labels (N,) as a gzip-compressed IDX file, always in the same bytes."""
    header = bytes([0, 0, 8, items.ndim]) + struct.pack(f">{items.ndim}I", *items.shape)
    return gzip.compress(header + items.tobytes(), mtime=0)
