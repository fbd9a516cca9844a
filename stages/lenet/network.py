"""LeNet-5.

Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86(11),
1998, section II.B and figure 2. The layers carry the paper's names. This is the network as it is taught today: C3 reads
every map of S2, the subsampling has no parameters, and the output is linear. On 32x32 it has 61,706 parameters
(C1 156, C3 2,416, C5 48,120, F6 10,164, output 850); unpadded, on 28x28, it has 44,426.
"""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lenet.idx import SIDE
from lenet.params import Model, check
from lenet.tensors import is_plain, load_pt, refused, write_pt

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
POOLINGS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class Normalize(nn.Module):
    """Pad with background and normalise: uint8 [N, 28, 28] -> float32 [N, 1, 28 + 2 padding, 28 + 2 padding].

    The mean and the standard deviation of pixels scaled to [0, 1] are buffers, saved with the weights, so that whoever
    uses a trained network cannot use others.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, padding: int, mean: float, std: float) -> None:
        super().__init__()
        self.padding = padding
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        padded = pad(images.unsqueeze(1), 4 * [self.padding])
        return (padded / 255 - self.mean) / self.std


def lenet(options: Model) -> nn.Sequential:
    """Build the network of the parameters' model section: uint8 images [N, 28, 28] -> float32 logits [N, 10].

    The activation follows C1, C3, C5 and F6; the pooling is S2 and S4, 2x2 with stride 2. The weights are drawn by
    PyTorch's global generator, as PyTorch's layers do it.
    """
    side = ((SIDE + 2 * options.padding - 4) // 2 - 4) // 2
    act, pool = ACTIVATIONS[options.activation], POOLINGS[options.pooling]
    return nn.Sequential(
        OrderedDict(
            input=Normalize(options.padding, options.mean, options.std),
            C1=nn.Conv2d(1, 6, 5),
            C1_activation=act(),
            S2=pool(2),
            C3=nn.Conv2d(6, 16, 5),
            C3_activation=act(),
            S4=pool(2),
            flatten=nn.Flatten(),
            C5=nn.Linear(16 * side * side, 120),
            C5_activation=act(),
            F6=nn.Linear(120, 84),
            F6_activation=act(),
            output=nn.Linear(84, 10),
        )
    )


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """The logits, float32 [N, 10], of images, uint8 [N, 28, 28], computed `batch_size` at a time in evaluation mode."""
    was_training = network.training
    network.eval()
    logits = torch.cat([network(batch) for batch in images.split(batch_size)])
    network.train(was_training)
    return logits


def save_model(path: Path, options: Model, network: nn.Module) -> None:
    """Write the model section and the network's `state_dict`, on the CPU, as a dictionary of the two."""
    state = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    write_pt(path, {"model": options.model_dump(), "state_dict": state})


def load_model(path: Path) -> nn.Sequential:
    """Build the network that `save_model` wrote, with its weights, on the CPU.

    Raises
    ------
    InputError
        The file holds no model, its model section is not valid, or its weights are not those of such a network.
    """
    match load_pt(path):
        case {"model": dict() as options, "state_dict": dict() as state}:
            network = lenet(check(Model, options, f"{path}, its model section"))
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
