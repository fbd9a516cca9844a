"""Who wrote MNIST's training images.

Source: C. Yadav, L. Bottou, "Cold case: the lost MNIST digits", 2019, whose QMNIST traces each image of MNIST to NIST's
Special Database 19.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenet.data.idx import read_idx, refused

FILE = "qmnist-train-labels-idx2-int.gz"
_COLUMNS = 8
_CLASS, _WRITER = 0, 2


def read_writers(raw: Path, labels: NDArray[np.uint8]) -> NDArray[Any]:
    """The writer of each training image: int32 (N,), a number in NIST's database.

    `labels`, uint8 (N,), are those of the data set; they have to be the ones in the file.

    Raises
    ------
    InputError
        The file is not QMNIST's, or belongs to other images.
    """
    rows = read_idx(raw / FILE, (_COLUMNS,), ">i4")
    if not np.array_equal(rows[:, _CLASS], labels):
        raise refused(raw / FILE, "belongs to other images: its labels are not those of the training file")
    return rows[:, _WRITER].astype(np.int32)
