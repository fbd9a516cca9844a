"""The trained model's file: the model section of the parameters, the classes and the network's `state_dict`."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from lenet.data.info import are_classes
from lenet.data.tensors import is_plain, load_pt, refused, write_pt
from lenet.errors import InputError
from lenet.network.lenet import build
from lenet.params import Model, check


def save_model(path: Path, options: Model, classes: Sequence[str], network: nn.Module) -> None:
    """Write the model section, the names of the classes and the network's `state_dict`, on the CPU, as a dictionary."""
    state = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    write_pt(path, {"model": options.model_dump(), "classes": [*classes], "state_dict": state})


def load_model(path: Path) -> tuple[nn.Sequential, list[str]]:
    """Build the network that `save_model` wrote, with its weights, on the CPU; with it the names of its classes.

    Raises
    ------
    InputError
        The file does not hold a model, its model section is invalid, or its weights do not fit that section.
    """
    match load_pt(path):
        case {"model": dict() as section, "classes": list() as classes, "state_dict": dict() as state}:
            options = check(Model, section, f"{path}, its model section")
        case _:
            raise refused(path, "does not hold a model section, classes and a state_dict")
    if not are_classes(classes) or "auto" in (options.mean, options.std):
        raise refused(path, "does not name its classes and their normalisation")
    try:
        network = build(options, classes)
    except InputError as error:
        raise refused(path, str(error)) from None
    expected = network.state_dict()
    for name in expected | state:
        have, want = state.get(name), expected.get(name)
        if have is None or want is None or not is_plain(have) or (have.shape, have.dtype) != (want.shape, want.dtype):
            raise refused(path, f"its weights do not fit its model section: {name!r}")
        if name.startswith("input.") and not have.equal(want):
            raise refused(path, f"its {name} is {have.item():.4g}, but its model section says {want.item():.4g}")
    network.load_state_dict(state)
    return network, classes
