"""`digits`: the handwritten digits in scikit-learn's package, in the form of MNIST's four files.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, as
`sklearn.datasets.load_digits` holds it: 1,797 images of 8x8 pixels, their ink from 0 to 16. It needs no network.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lenet.data.idx import to_bytes
from lenet.data.images import BOX, centred
from lenet.data.info import FILES

_TEST_IMAGES = 360


def idx_files() -> dict[str, bytes]:
    """The data set as four IDX files: name -> gzip-compressed bytes; 1,437 training and 360 test images.

    The split is stratified by digit and, like MNIST's, a fixed part of the data set.
    """
    bunch = load_digits()
    images = np.stack([_as_mnist(image) for image in bunch.images])
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, bunch.target.astype(np.uint8), test_size=_TEST_IMAGES, stratify=bunch.target, random_state=0
    )
    parts = (train_images, train_labels, test_images, test_labels)
    return {name: to_bytes(items) for name, items in zip(FILES, parts, strict=True)}


def _as_mnist(ink: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Resample an 8x8 image to 20x20 and centre it in 28x28, as MNIST was made (LeCun et al. 1998, section III.A)."""
    pixels = Image.fromarray((ink * 255 / 16).astype(np.uint8))
    return centred(np.asarray(pixels.resize((BOX, BOX), Image.Resampling.BICUBIC)))
