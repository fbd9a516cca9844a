"""Any image as one of 28x28 pixels, as MNIST's were made or plainly resized.

Pillow resamples 8-bit images in integers, so the bytes do not depend on the processor.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lenet.data.idx import SIDE

BOX = 20
"""The side of the box that holds the ink of one of MNIST's digits."""


def grey(image: Image.Image) -> Image.Image:
    """The image upright and in grey, mode L; what is transparent gets the opposite shade of what is not."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits; Pillow would cut off all above 255.
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
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
    (LeCun et al. 1998, section III.A). Those were black and white. In a drawing or a photograph, the median of the
    border is taken for the shade of the paper. Ink is what differs from it more than the paper itself does, five times
    as much as nine in ten pixels of the border (a stroke may touch it); the strongest ink becomes 255.
    """
    shades = np.asarray(image).astype(np.int32)
    border = np.concatenate([shades[0], shades[-1], shades[:, 0], shades[:, -1]])
    paper = int(np.median(border))
    sign = -1 if abs(shades.min() - paper) > abs(shades.max() - paper) else 1
    darkness = sign * (shades - paper)
    towards, away = (5 * max(0, int(np.quantile(side * (border - paper), 0.9))) for side in (sign, -sign))
    # Where an image is cropped to its ink, much of the border is ink; only paper differs in the other direction.
    noise = towards if towards <= darkness.max() // 2 else min(away, darkness.max() // 2)
    ink = darkness - noise
    if ink.max() <= 0:
        return None
    ink = (ink.clip(0) * 255 + ink.max() // 2) // ink.max()
    rows, columns = ink.any(axis=1).nonzero()[0], ink.any(axis=0).nonzero()[0]
    cut = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8))
    longest = max(cut.size)
    width, height = (max(1, round(length * BOX / longest)) for length in cut.size)
    scaled = np.asarray(cut.resize((width, height), Image.Resampling.BICUBIC))
    return centred(scaled) if scaled.any() else None


def centred(ink: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Place an image of at most 28x28 in 28x28 so that its centre of mass is in the middle, to within half a pixel.

    The middle of an image is a corner of pixel (14, 14). Where the image would stick out, it is moved back.
    """
    weights = ink / ink.sum()
    middle = np.array([(weights.sum(axis=1 - axis) * np.arange(ink.shape[axis])).sum() for axis in (0, 1)])
    height, width = ink.shape
    top, left = np.clip(np.rint(SIDE / 2 - middle), 0, (SIDE - height, SIDE - width)).astype(int)
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[top : top + height, left : left + width] = ink
    return image
