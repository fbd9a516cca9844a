"""The measures of a classifier on labelled images, overall and for each digit."""

from typing import NamedTuple

import pandas
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor
from torch.nn.functional import cross_entropy

DIGITS = range(10)


class Evaluation(NamedTuple):
    """What is known of a classifier after it has seen every image.

    Attributes
    ----------
    overall : dict
        `accuracy` and `error`, fractions of 1, and `loss`, the mean cross-entropy in nats.
    per_class : dict
        digit -> `accuracy`, `precision`, `recall`, `f1`, fractions of 1, and `support`, its number of images. The
        accuracy of a digit is the fraction of its images that were predicted right, which is its recall under the name
        that tutorials use. A figure that would divide by zero is 0.
    predictions : DataFrame
        A row an image, in the images' order: `actual`, `predicted` and the `probability` of the prediction (softmax).
    """

    overall: dict[str, float]
    per_class: dict[str, dict[str, float]]
    predictions: pandas.DataFrame


def evaluate(logits: Tensor, labels: Tensor) -> Evaluation:
    """Compare logits, float32 [N, 10], with labels, int64 [N]. Figures are rounded to six decimals."""
    # In double precision, so that however the sum is split over threads, six decimals do not show it.
    logits = logits.double()
    probabilities, predicted = logits.softmax(dim=1).max(dim=1)
    correct = int((predicted == labels).sum())
    count = len(labels)
    overall = {
        "accuracy": round(correct / count, 6),
        "error": round((count - correct) / count, 6),
        "loss": round(cross_entropy(logits, labels).item(), 6),
    }
    columns = precision_recall_fscore_support(labels, predicted, labels=list(DIGITS), zero_division=0.0)
    per_class = {}
    for digit, (precision, recall, f1, support) in enumerate(zip(*columns, strict=True)):
        rates = {"accuracy": recall, "precision": precision, "recall": recall, "f1": f1}
        per_class[str(digit)] = {name: round(float(value), 6) for name, value in rates.items()}
        per_class[str(digit)]["support"] = int(support)
    predictions = pandas.DataFrame(
        {"actual": labels.numpy(), "predicted": predicted.numpy(), "probability": probabilities.numpy()}
    )
    return Evaluation(overall, per_class, predictions)
