"""The trained model's file: the model section of the parameters and the network's `state_dict`."""

from pathlib import Path

from torch import nn

from lenet.data.tensors import is_plain, load_pt, refused, write_pt
from lenet.network.lenet import build
from lenet.params import Model, check


def save_model(path: Path, options: Model, network: nn.Module) -> None:
    """Write the model section and the network's `state_dict`, on the CPU, as a dictionary of the two."""
    state = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    write_pt(path, {"model": options.model_dump(), "state_dict": state})


def load_model(path: Path) -> nn.Sequential:
    """Build the network that `save_model` wrote, with its weights, on the CPU.

    Raises
    ------
    InputError
        The file does not hold a model, its model section is invalid, or its weights do not fit that section.
    """
    match load_pt(path):
        case {"model": dict() as options, "state_dict": dict() as state}:
            network = build(check(Model, options, f"{path}, its model section"))
        case _:
            raise refused(path, "does not hold a model section and a state_dict")
    expected = network.state_dict()
    for name in expected | state:
        have, want = state.get(name), expected.get(name)
        if have is None or want is None or not is_plain(have) or (have.shape, have.dtype) != (want.shape, want.dtype):
            raise refused(path, f"its weights do not fit its model section: {name!r}")
        if name.startswith("input.") and not have.equal(want):
            raise refused(path, f"its {name} is {have.item():.4g}, but its model section says {want.item():.4g}")
    network.load_state_dict(state)
    return network
