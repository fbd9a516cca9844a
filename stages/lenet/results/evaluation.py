"""The metrics of a classifier on labelled images, overall and for each digit."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import cross_entropy

DIGITS = range(10)


class Prediction(NamedTuple):
    """The actual and the predicted digit of an image, and the softmax probability of the prediction."""

    actual: int
    predicted: int
    probability: float


class ClassReport(NamedTuple):
    """Precision, recall and F1 of a digit, in [0, 1], and its support, the number of its images.

    The recall is the fraction of the digit's images that are classified correctly, which tutorials call the accuracy of
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
        `accuracy` and `error_rate`, in [0, 1], and `loss`, the mean cross-entropy in nats.
    per_class : list of ClassReport
        One for each digit, 0 to 9.
    predictions : list of Prediction
        One for each image, in the order of the images.
    """

    overall: dict[str, float]
    per_class: list[ClassReport]
    predictions: list[Prediction]


def evaluate(logits: Tensor, labels: Tensor) -> Evaluation:
    """Compare logits, float32 [N, 10], with labels, int64 [N]. Metrics are rounded to six decimals."""
    # In double precision, so that six decimals do not depend on how a sum is split among threads.
    logits = logits.double()
    probabilities, predicted = logits.softmax(dim=1).max(dim=1)
    correct = int((predicted == labels).sum())
    count = len(labels)
    overall = {
        "accuracy": round(correct / count, 6),
        "error_rate": round((count - correct) / count, 6),
        "loss": round(cross_entropy(logits, labels).item(), 6),
    }
    # Images by actual digit (row) and predicted digit (column).
    counts = (len(DIGITS) * labels + predicted).bincount(minlength=len(DIGITS) ** 2).view(len(DIGITS), len(DIGITS))
    right, support, taken = counts.diagonal().tolist(), counts.sum(dim=1).tolist(), counts.sum(dim=0).tolist()
    per_class = [
        ClassReport(
            str(digit),
            precision=_share(right[digit], taken[digit]),
            recall=_share(right[digit], support[digit]),
            f1=_share(2 * right[digit], support[digit] + taken[digit]),
            support=support[digit],
        )
        for digit in DIGITS
    ]
    columns = labels.tolist(), predicted.tolist(), probabilities.tolist()
    return Evaluation(overall, per_class, [Prediction(*row) for row in zip(*columns, strict=True)])


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
