"""`digits`: the handwritten digits in scikit-learn's package, in the form of MNIST's four files.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, as
`sklearn.datasets.load_digits` holds it: 1,797 images of 8x8 pixels, their ink from 0 to 16. It needs no network.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lenet.data.idx import SIDE, to_bytes

_TEST_IMAGES = 360
_BOX = 20


def idx_files() -> dict[str, bytes]:
    """The data set as four IDX files: name -> gzip-compressed bytes; 1,437 training and 360 test images.

    The split is stratified by digit and, like MNIST's, a fixed part of the data set.
    """
    bunch = load_digits()
    images = np.stack([_as_mnist(image) for image in bunch.images])
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, bunch.target.astype(np.uint8), test_size=_TEST_IMAGES, stratify=bunch.target, random_state=0
    )
    return {
        "train-images-idx3-ubyte.gz": to_bytes(train_images),
        "train-labels-idx1-ubyte.gz": to_bytes(train_labels),
        "t10k-images-idx3-ubyte.gz": to_bytes(test_images),
        "t10k-labels-idx1-ubyte.gz": to_bytes(test_labels),
    }


def _as_mnist(ink: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Resample an 8x8 image to 20x20 and centre it by its centre of mass in 28x28, to within half a pixel.

    MNIST was made in this way (LeCun et al. 1998, section III.A); the centre of an image is a corner of pixel (14, 14).
    Pillow resamples 8-bit images in integers, so the bytes do not depend on the processor.
    """
    pixels = Image.fromarray((ink * 255 / 16).astype(np.uint8))
    box = np.asarray(pixels.resize((_BOX, _BOX), Image.Resampling.BICUBIC))
    weights = box / box.sum()
    middle = np.array([(weights.sum(axis=1 - axis) * np.arange(_BOX)).sum() for axis in (0, 1)])
    top, left = np.clip(np.rint(SIDE / 2 - middle), 0, SIDE - _BOX).astype(int)
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[top : top + _BOX, left : left + _BOX] = box
    return image
