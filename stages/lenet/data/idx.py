"""The IDX format of MNIST's files, read strictly.

Source: Yann LeCun's MNIST page, "File formats for the MNIST database": a big-endian header of a magic number (two zero
bytes, the type code 0x08 for unsigned bytes, the number of dimensions) and a 32-bit size for each dimension, then the
bytes in row-major order. MNIST publishes the files compressed with gzip.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lenet.errors import InputError

SIDE = 28
MAX_ITEMS = 1_000_000
"""More than any data set of this family has (EMNIST: 814,255 images); a header that claims more is refused."""


def read_labelled_images(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the images and the labels of one part of the data set.

    Parameters
    ----------
    folder : Path
        Where the `*-ubyte.gz` files are.
    part : {"train", "t10k"}
        The first part of the two files' names.

    Returns
    -------
    images : uint8 array of shape (N, 28, 28)
        0 is background, 255 is ink.
    labels : uint8 array of shape (N,)
        0 to 9.

    Raises
    ------
    InputError
        A file is not what its name says, or the two do not belong together.
    """
    images_path, labels_path = folder / f"{part}-images-idx3-ubyte.gz", folder / f"{part}-labels-idx1-ubyte.gz"
    images, labels = _read(images_path, (SIDE, SIDE)), _read(labels_path, ())
    if len(images) != len(labels):
        raise _refused(images_path, f"holds {len(images)} images, but {labels_path} holds {len(labels)} labels")
    if labels.max() > 9:
        position = int(labels.argmax())
        raise _refused(labels_path, f"label {labels[position]} at position {position} is not a digit from 0 to 9")
    return images, labels


def _read(path: Path, item_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        with gzip.open(path) as file:
            return _parse(path, file, item_shape)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _refused(path, f"is not a complete gzip file: {error}") from None


def _parse(path: Path, file: gzip.GzipFile, item_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    dimensions = 1 + len(item_shape)
    header = file.read(4 + 4 * dimensions)
    if header[:4] != bytes([0, 0, 8, dimensions]):
        raise _refused(path, f"begins with 0x{header[:4].hex()}, not with IDX's magic number 0x000008{dimensions:02x}")
    if len(header) < 4 + 4 * dimensions:
        raise _refused(path, "ends within its header")
    count, *shape = struct.unpack(f">{dimensions}I", header[4:])
    if tuple(shape) != item_shape:
        raise _refused(path, f"holds items of {'x'.join(map(str, shape))}, not {'x'.join(map(str, item_shape))}")
    if not 1 <= count <= MAX_ITEMS:
        raise _refused(path, f"claims {count} items; 1 to {MAX_ITEMS} are read")

    # Filled piece by piece: the memory that a false header asks for is reserved, but not used before bytes arrive.
    items = np.empty((count, *item_shape), np.uint8)
    buffer, filled = items.data.cast("B"), 0
    while filled < len(buffer) and (got := file.readinto(buffer[filled : filled + 2**20])):
        filled += got
    if filled < len(buffer):
        raise _refused(path, f"claims {count} items, {len(buffer)} bytes, but holds {filled}")
    if file.read(1):
        raise _refused(path, f"holds more than the {count} items that its header claims")
    return items


def _refused(path: Path, why: str) -> InputError:
    return InputError(f"{path}: {why}; delete it and run `dvc repro download`")


def to_bytes(items: NDArray[np.uint8]) -> bytes:
    """Encode uint8 images (N, 28, 28) or labels (N,) as a gzip-compressed IDX file, always in the same bytes."""
    header = bytes([0, 0, 8, items.ndim]) + struct.pack(f">{items.ndim}I", *items.shape)
    return gzip.compress(header + items.tobytes(), mtime=0)
