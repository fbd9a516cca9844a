"""Whether the probabilities of a classifier's predictions are right: calibration by bins of confidence."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS = 15


class Reliability(NamedTuple):
    """Predictions by their confidence, the probability of the predicted class, in 15 bins of equal width.

    Source: Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017, section 2, with their
    number of bins. Bin m, from 1, is ((m - 1) / 15, m / 15].

    Attributes
    ----------
    counts : int64 [15]
        The number of predictions in each bin.
    confidence, accuracy : float64 [15]
        Their mean confidence, and the fraction of them that is correct; NaN in an empty bin.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, in [0, 1]: equation 3 of the paper.

        That is the mean over all predictions of |accuracy - confidence| in their bins.
        """
        gap = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.counts * gap) / self.counts.sum())


def reliability(confidence: NDArray[Any], correct: NDArray[Any]) -> Reliability:
    """Group predictions, of which there is at least one, by their confidence, float [N]; `correct` is bool [N]."""
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    number = np.where(counts, counts, np.nan)
    sums = [np.bincount(place, weights=values, minlength=BINS) for values in (confidence, correct)]
    return Reliability(counts, *(total / number for total in sums))
