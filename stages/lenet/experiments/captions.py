"""What the pictures of a result show, in words: titles, captions, and texts for those who do not see them."""

from collections.abc import Callable, Sequence
from typing import Any

from lenet.data.catalog import CATALOG
from lenet.data.info import DIGITS
from lenet.experiments.revisions import Result


def dataset_title(result: Result) -> str:
    """The data set's title."""
    name = str(result.params["data"]["dataset"])
    return CATALOG[name].info.title if name in CATALOG else name


def enumerated(texts: Sequence[str]) -> str:
    """The texts with commas and, before the last one, `and`."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def caption(path: str, result: Result) -> tuple[str, str, str]:
    """The title of a picture, what such pictures show, and what this result's shows; in general words if unknown."""
    title, about, alt = PICTURES.get(path, (path, "A picture of the pipeline.", lambda _: f"The picture {path}."))
    return title, about, alt(result)


def _noun(result: Result) -> str:
    return "digit" if tuple(result.per_class) == DIGITS else "class"


def _mistakes(result: Result) -> Any:
    """The misclassified ones of the predictions, as pandas.DataFrame."""
    return result.predictions[result.predictions["actual"] != result.predictions["predicted"]]


def _count_of_mistakes(result: Result) -> str:
    count = len(_mistakes(result))
    return "no mistake" if not count else f"{count:,} mistake{'s' if count > 1 else ''}"


def _samples_alt(result: Result) -> str:
    each = result.params.get("plot", {}).get("samples")
    which = f"the first {each} of each {_noun(result)}" if each else f"the first of each {_noun(result)}"
    return f"Training images of {dataset_title(result)}: {which}, a row for each of {len(result.per_class)}."


def _training_alt(result: Result) -> str:
    ends = [
        f"{words} accuracy {result.metrics[key]:.2%}"
        for key, words in {"train_accuracy": "training", "validation_accuracy": "validation"}.items()
        if key in result.metrics
    ]
    last = f": at the end {enumerated(ends)}" if ends else ""
    return f"Loss and error by epoch, {result.params['train']['epochs']} in all{last}."


def _confusion_alt(result: Result) -> str:
    wrong = _mistakes(result)
    if wrong.empty:
        return "No mistake: all counts are on the diagonal."
    counts = wrong.groupby(["actual", "predicted"]).size()
    (actual, predicted), times = counts.idxmax(), counts.max()
    often = f"{times} time{'s' if times > 1 else ''}"
    return f"{_count_of_mistakes(result)}; the most frequent: {actual} taken for {predicted} ({often})."


def _per_class_alt(result: Result) -> str:
    tested = sorted({*result.predictions["actual"]})
    worst, best = (pick(tested, key=result.per_class.__getitem__) for pick in (min, max))
    low, high = result.per_class[worst], result.per_class[best]
    return f"Accuracy of each {_noun(result)}, from {low:.2%} ({worst}) to {high:.2%} ({best})."


def _mistakes_alt(result: Result) -> str:
    wrong = _mistakes(result)
    if wrong.empty:
        return "No mistake to show."
    first = wrong.sort_values("probability", ascending=False, kind="stable").iloc[0]
    shown = min(result.params.get("plot", {}).get("mistakes", len(wrong)), len(wrong))
    return (
        f"{shown} of {_count_of_mistakes(result)}, the most confident first: {first['actual']} taken for "
        f"{first['predicted']} with probability {first['probability']:.1%}."
    )


def _reliability_alt(result: Result) -> str:
    error = result.metrics.get("calibration_error")
    known = f"; the expected calibration error is {error:.2%}" if error is not None else ""
    return f"Accuracy of the predictions by their probability{known}."


def _kernels_alt(result: Result) -> str:
    first = "C1" if result.params["model"].get("architecture") == "lenet" else "the first layer"
    return f"The weights of {first} as small grey pictures, one for each output."


def _feature_maps_alt(result: Result) -> str:
    actual, predicted, *_ = result.predictions.iloc[0]
    return f"The outputs of all layers for the first test image, {_noun(result)} {actual}, classified as {predicted}."


def _embedding_alt(result: Result) -> str:
    return (
        f"A point for each of {len(result.predictions):,} test images, in a cloud for each of "
        f"{len(result.per_class)} classes; {_count_of_mistakes(result)} marked."
    )


PICTURES: dict[str, tuple[str, str, Callable[[Result], str]]] = {
    "plots/mistakes.png": (
        "Mistakes",
        "The most confident mistakes on the test images: what the image is, what it was taken for, and the "
        "prediction's probability.",
        _mistakes_alt,
    ),
    "plots/confusion_matrix.png": (
        "Confusion matrix",
        "Test images by actual class (row) and predicted class (column); the shade is logarithmic.",
        _confusion_alt,
    ),
    "plots/per_class_accuracy.png": (
        "Accuracy of each class",
        "The share of each class's test images that are classified correctly, with its 95% confidence interval.",
        _per_class_alt,
    ),
    "plots/training_curves.png": (
        "Training",
        "Loss and error after each epoch, on logarithmic axes.",
        _training_alt,
    ),
    "plots/reliability.png": (
        "Reliability",
        "How often predictions are right, by the probability that the network gives them; on the diagonal the "
        "probabilities are right.",
        _reliability_alt,
    ),
    "plots/embedding.png": (
        "Embedding",
        "The last hidden layer's outputs for all test images, reduced to two dimensions (principal components).",
        _embedding_alt,
    ),
    "plots/feature_maps.png": (
        "Feature maps",
        "The first test image on its way through the network; dark is a large output.",
        _feature_maps_alt,
    ),
    "plots/kernels.png": (
        "Kernels",
        "The weights of the first layer; dark where ink raises the output, light where it lowers it.",
        _kernels_alt,
    ),
    "plots/samples.png": ("Data", "Some of the training images.", _samples_alt),
}
"""In the order in which a page shows them: path -> title, what such pictures show, what a result's shows."""
