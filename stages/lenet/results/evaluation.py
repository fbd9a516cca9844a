"""The metrics of a classifier on labelled images, overall and for each class."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import cross_entropy

from lenet.results.calibration import reliability


class Prediction(NamedTuple):
    """The actual and the predicted class of an image, by name, and the softmax probability of the prediction."""

    actual: str
    predicted: str
    probability: float


class ClassReport(NamedTuple):
    """Precision, recall and F1 of a class, in [0, 1], and its support, the number of its images.

    The recall is the fraction of the class's images that are classified correctly, which tutorials call the accuracy of
    the class. A quotient whose denominator is 0 is given as 0.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


class Evaluation(NamedTuple):
    """The metrics of a classifier, and its predictions.

    Attributes
    ----------
    overall : dict
        `accuracy` and `error_rate`, in [0, 1], `loss`, the mean cross-entropy in nats, and `calibration_error`, the
        expected calibration error, in [0, 1].
    per_class : list of ClassReport
        One for each class, in the order of their labels.
    predictions : list of Prediction
        One for each image, in the order of the images.
    """

    overall: dict[str, float]
    per_class: list[ClassReport]
    predictions: list[Prediction]


def evaluate(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Evaluation:
    """Compare logits, float32 [N, classes], with labels, int64 [N]. Metrics are rounded to six decimals."""
    # In double precision, so that six decimals do not depend on how a sum is split among threads.
    logits = logits.double()
    probabilities, predicted = logits.softmax(dim=1).max(dim=1)
    correct = int((predicted == labels).sum())
    count = len(labels)
    calibration = reliability(probabilities.numpy(), (predicted == labels).numpy())
    overall = {
        "accuracy": round(correct / count, 6),
        "error_rate": round((count - correct) / count, 6),
        "loss": round(cross_entropy(logits, labels).item(), 6),
        "calibration_error": round(calibration.calibration_error, 6),
    }
    # Images by actual class (row) and predicted class (column).
    size = len(classes)
    counts = (size * labels + predicted).bincount(minlength=size**2).view(size, size)
    right, support, taken = counts.diagonal().tolist(), counts.sum(dim=1).tolist(), counts.sum(dim=0).tolist()
    per_class = [
        ClassReport(
            name,
            precision=_share(right[label], taken[label]),
            recall=_share(right[label], support[label]),
            f1=_share(2 * right[label], support[label] + taken[label]),
            support=support[label],
        )
        for label, name in enumerate(classes)
    ]
    rows = zip(labels.tolist(), predicted.tolist(), probabilities.tolist(), strict=True)
    return Evaluation(overall, per_class, [Prediction(classes[a], classes[p], share) for a, p, share in rows])


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
