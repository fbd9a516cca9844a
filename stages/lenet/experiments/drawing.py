"""A pad to draw on, and what the trained networks of revisions make of the drawing, computed in the page itself."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from lenet.data.info import DIGITS
from lenet.errors import InputError
from lenet.experiments.captions import enumerated
from lenet.experiments.models import Trained, test_set, trained, validation_images
from lenet.experiments.revisions import WORKSPACE, Revision
from lenet.results.javascript import in_base64, program
from lenet.results.prediction import least_familiarity

TEMPLATES = Environment(
    loader=PackageLoader("lenet", "results"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)

MOST_EXAMPLES = 10


class Drawing(NamedTuple):
    """What pad.html and pad.js show.

    Attributes
    ----------
    hint : str
        What to draw.
    networks : list of dict
        `lenet.results.javascript.program` of each, with its `name`, its `classes`, how to `prepare` an image, and how
        `familiar` an image is at least that is not strange (None if DVC does not have the validation images).
    examples : dict or None
        For those who cannot draw, the first test image of each class, of at most ten: `labels`, the classes' names, and
        `images`, base64 of uint8 [N, 28, 28]; None if DVC does not have the test set.
    """

    hint: str
    networks: list[dict[str, Any]]
    examples: dict[str, Any] | None


def drawing(models: Sequence[Trained]) -> Drawing:
    """One pad for these networks, side by side."""
    networks = [
        program(model.network)
        | {
            "name": model.revision.name,
            "classes": model.classes,
            "prepare": model.prepare,
            "familiar": _familiar(model),
        }
        for model in models
    ]
    return Drawing(_hint(models), networks, _examples(models[0]))


def available(revisions: Sequence[Revision]) -> tuple[Drawing | None, list[str]]:
    """One pad for those of the revisions whose trained networks can be had, and why the others' cannot."""
    models, reasons = list[Trained](), list[str]()
    for revision in revisions:
        try:
            models.append(trained(revision))
        except InputError as error:
            reasons.append(str(error))
    return drawing(models) if models else None, reasons


def page(models: Sequence[Trained]) -> bytes:
    """Render a page that has a pad for these networks, and nothing else."""
    names = enumerated([model.revision.name.replace(WORKSPACE, "the workspace") for model in models])
    heading = f"Draw for the network of {names}" if len(models) == 1 else f"Draw for the networks of {names}"
    return TEMPLATES.get_template("draw.html").render(heading=heading, drawing=drawing(models)).encode()


def _hint(models: Sequence[Trained]) -> str:
    """What to draw for these networks."""
    what = "a digit" if all(tuple(model.classes) == DIGITS for model in models) else "one of the classes"
    hint = f"Draw {what}."
    if any(model.prepare == "mnist" for model in models):
        hint += " It is scaled and centred as MNIST's digits were, so its size and place do not matter."
    if whole := [model.revision.name for model in models if model.prepare == "resize"]:
        hint += f" For {enumerated(whole)}, fill the shape in, and use the whole square, which becomes the image."
    return hint


def _familiar(model: Trained) -> float | None:
    try:
        return least_familiarity(model.network, validation_images(model.revision))
    except InputError:
        return None


def _examples(model: Trained) -> dict[str, Any] | None:
    """The first test image of each class, of at most ten."""
    try:
        images, labels = test_set(model.revision)
    except InputError:
        return None
    first = {label: int((labels == label).nonzero()[0]) for label in labels.unique().tolist()[:MOST_EXAMPLES]}
    return {
        "labels": [model.classes[label] for label in first],
        "images": in_base64(images[torch.tensor([*first.values()])]),
    }
