"""Any image as one of 28x28 pixels, as MNIST's were made or plainly resized.

Pillow resamples 8-bit images in integers, so the bytes do not depend on the processor.
"""

import functools
import math
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lenet.data.idx import SIDE
from lenet.errors import InputError

BOX = 20
"""The side of the box that holds the ink of one of MNIST's digits."""

_LARGEST = 1000
"""In pixels. Larger images are first reduced, which saves time and evens out a camera's noise."""


@functools.cache
def readable() -> tuple[str, ...]:
    """The formats that Pillow reads by itself: a PostScript file is a program, which it runs in another one."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in ("EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"))


def read_grey(file: Path | IO[bytes], name: str, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Read an image file, called `name` in errors, of one of these of Pillow's formats, as `grey` gives it.

    Without `formats`, those are `readable`.

    Raises
    ------
    InputError
        It is none, damaged, or has more pixels than Pillow takes for safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of metadata that Pillow does not understand.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=formats or readable()) as image:
                return grey(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(
            f"{name}: has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller or leave it out"
        ) from None
    except Image.UnidentifiedImageError:
        wanted = f"a {' or '.join(formats)} image" if formats else "an image of a format that Pillow reads"
        raise InputError(f"{name}: is not {wanted}; convert it or leave it out") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders fail in many ways, which all mean the same to the user.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{name}: cannot be read ({reason}); repair it or leave it out") from None


def grey(image: Image.Image) -> Image.Image:
    """The image upright and in grey, mode L; what is transparent gets the opposite shade of what is not."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would cut off all above 255.
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):  # Where black and white are is not known.
        values = np.asarray(image, np.float64)
        levels = (values - values.min()) * (255 / max(np.ptp(values), 1e-9))
        return Image.fromarray(levels.round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("L")
    shades, opacity = (np.asarray(band, np.uint16) for band in image.convert("LA").split())
    backdrop = 255 if (shades * opacity).sum() <= 127 * opacity.sum() else 0
    mixed = (shades * opacity + backdrop * (255 - opacity) + 127) // 255
    return Image.fromarray(mixed.astype(np.uint8))


def resized(image: Image.Image) -> NDArray[np.uint8]:
    """A grey image resampled to uint8 (28, 28), whatever its proportions."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def as_mnist(image: Image.Image) -> NDArray[np.uint8] | None:
    """The ink of a grey image as uint8 (28, 28), 0 to 255, made as MNIST was; None if there is no ink.

    MNIST's digits were scaled to fit a box of 20x20 pixels, in their proportions, and centred by their centre of mass
    (LeCun et al. 1998, section III.A). Those were black and white. In a drawing or a photograph, ink is what differs
    from the paper more than the paper itself does, five times as much as nine in ten pixels of the border (a stroke may
    touch it); the strongest ink becomes 255. The box holds what is stronger than a sixteenth of that: around it, JPEG
    and enlarging leave a faint halo.
    """
    longest = max(image.size)
    if longest > _LARGEST:
        image = image.reduce(math.ceil(longest / _LARGEST))
    shades = np.asarray(image).astype(np.int32)
    difference = shades - _paper(shades)
    border = _border(difference)
    sign = -1 if abs(difference.min()) > abs(difference.max()) else 1
    darkness = sign * difference
    towards, away = (5 * max(0, int(np.quantile(side * border, 0.9))) for side in (sign, -sign))
    # Where an image is cropped to its ink, much of the border is ink; only paper differs in the other direction.
    noise = towards if towards <= darkness.max() // 2 else away
    ink = darkness - noise
    if ink.max() <= 0:
        return None
    ink = (ink.clip(0) * 255 + ink.max() // 2) // ink.max()
    strong = ink > 255 // 16
    rows, columns = strong.any(axis=1).nonzero()[0], strong.any(axis=0).nonzero()[0]
    cut = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8))
    longest = max(cut.size)
    width, height = (max(1, round(length * BOX / longest)) for length in cut.size)
    # The mean of the pixels that become one: an enlarged digit of MNIST's becomes what it was.
    resampling = Image.Resampling.BOX if longest > BOX else Image.Resampling.BICUBIC
    scaled = np.asarray(cut.resize((width, height), resampling))
    return centred(scaled) if scaled.any() else None


def _paper(shades: NDArray[np.int32]) -> NDArray[np.int32]:
    """The shade of the paper, for each pixel or for all: from the border, which ink may cross in places.

    It is the median, or, if that explains the border much better, a surface for uneven light, which falls off to one
    side and to the corners: m + a x + b y + k (x^2 + y^2), from the medians of the thirds of the four sides.
    """
    border = _border(shades)
    flat = np.array(np.median(border)).astype(np.int32)
    height, width = shades.shape
    if min(height, width) < 3 or (border == flat).all():
        return flat
    sides = (shades[0], shades[-1], shades[:, 0], shades[:, -1])
    thirds = [[int(np.median(part)) for part in np.array_split(side, 3)] for side in sides]
    top, bottom, left, right = (middle for _, middle, _ in thirds)
    middle = (top + bottom + left + right) / 4
    corners = sum(first + last for first, _, last in thirds) / 8
    y, x = np.linspace(-1, 1, height)[:, np.newaxis], np.linspace(-1, 1, width)
    # The median of x^2 + y^2 is 1/36 + 1 in the middle third of a side, and 4/9 + 1 in the others.
    bend = (corners - middle) / (4 / 9 - 1 / 36) * (x**2 + y**2 - 37 / 36)
    surface = np.rint(middle + (right - left) / 2 * x + (bottom - top) / 2 * y + bend).astype(np.int32)
    deviations = [np.abs(_border(shades - paper)).mean() for paper in (surface, flat)]
    return surface if 2 * deviations[0] < deviations[1] else flat


def _border(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """The pixels of the four sides, those of the corners twice."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def centred(ink: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Place an image of at most 28x28 in 28x28 so that its centre of mass is in the middle, to within half a pixel.

    The middle of an image is a corner of pixel (14, 14). Where the image would stick out, it is moved back.
    """
    sums = [ink.sum(axis=1 - axis, dtype=np.int64) @ np.arange(ink.shape[axis]) for axis in (0, 1)]
    middle = np.array(sums) / ink.sum(dtype=np.int64)
    height, width = ink.shape
    top, left = np.clip(np.rint(SIDE / 2 - middle), 0, (SIDE - height, SIDE - width)).astype(int)
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[top : top + height, left : left + width] = ink
    return image
