"""One step of training, in the ways that were tried: each beside the step that is in use, in turn, in one process.

    python benchmarks/steps.py [SECONDS]    (of each way, 20 by default)

Prints milliseconds a step, median with the least and the greatest of the rounds, and the median of the ratios to the
step in use, round by round. `lenet5-tanh` on batches of 64 and the default network on batches of 128, made-up images.
"""

import copy
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lenet import training
from lenet.experiments.presets import load_preset, overlaid, workspace
from lenet.network import AveragePool, Convolution, Dense, ImagesFirst, MaxPool, Normalize, Tanh, build
from lenet.network.capture import Function, capture
from lenet.params import Model, Train

Step = Callable[[Tensor, Tensor], object]
ROUNDS = 9


def pytorchs_tanh(network: nn.Sequential) -> nn.Sequential:
    for name, layer in network.named_children():
        if isinstance(layer, Tanh):
            setattr(network, name, nn.Tanh())
    return network


class Input(nn.Module):
    """From [1, H, W, N] to PyTorch's [N, 1, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(3, 0, 1, 2).contiguous()


def pytorchs_layers(network: nn.Sequential) -> nn.Sequential:
    """The same network, with the same weights, of the layers that PyTorch has."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in network.named_children():
        match layer:
            case Normalize():
                layers |= {name: layer, "images_first": Input()}
            case Convolution():
                layers[name] = nn.Conv2d(layer.in_channels, layer.out_channels, 5)
            case Dense():
                layers[name] = nn.Linear(layer.in_features, layer.out_features)
            case MaxPool():
                layers[name] = nn.MaxPool2d(2)
            case AveragePool():
                layers[name] = nn.AvgPool2d(2)
            case nn.Flatten():
                layers[name] = nn.Flatten()
            case ImagesFirst():
                pass
            case _:
                layers[name] = layer
    result = nn.Sequential(layers)
    result.load_state_dict(network.state_dict())
    return pytorchs_tanh(result)


def channels_last(network: nn.Sequential) -> nn.Sequential:
    return pytorchs_layers(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def plain(network: nn.Module, options: Train) -> Function:
    """As `lenet.training.train` has it, where nothing is captured."""
    optimizer, rate = training.Optimizer(network, options), torch.tensor(options.learning_rate / 10)

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        loss = cross_entropy(network(images), labels)
        optimizer.step(torch.autograd.grad(loss, optimizer.parameters), rate)
        return (loss.detach(),)

    return step


def captured(network: nn.Module, options: Train) -> Function:
    return capture(plain(network, options))


class Bfloat16(nn.Module):
    """The network with its convolutions and products in bfloat16, the weights and the loss in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.network(images)
        return logits.float()


def half_a_batch_a_core(network: nn.Module, options: Train) -> Step:
    """Two Python threads, each with half of the batch and a core; PyTorch's operations let go of Python's lock."""
    optimizer, rate = training.Optimizer(network, options), torch.tensor(options.learning_rate / 10)
    pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def part(images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        loss = cross_entropy(network(images), labels) / 2
        return torch.autograd.grad(loss, optimizer.parameters)

    # Two recordings, because each has memory of its own.
    mine, others = capture(part), capture(part)

    def step(images: Tensor, labels: Tensor) -> None:
        torch.set_num_threads(1)
        middle = len(labels) // 2
        other = pool.submit(others, images[middle:], labels[middle:])
        here = mine(images[:middle], labels[:middle])
        optimizer.step([one + two for one, two in zip(here, other.result(), strict=True)], rate)
        torch.set_num_threads(2)

    return step


def one_thread(network: nn.Module, options: Train) -> Step:
    step = captured(network, options)

    def alone(images: Tensor, labels: Tensor) -> None:
        torch.set_num_threads(1)
        step(images, labels)
        torch.set_num_threads(2)

    return alone


def ways(network: nn.Sequential, options: Train) -> dict[str, Step]:
    """What is timed: name -> step, the one in use first."""

    def fresh() -> nn.Sequential:
        return copy.deepcopy(network)

    found = {
        "in use": captured(fresh(), options),
        "not captured": plain(fresh(), options),
        "PyTorch's tanh": captured(pytorchs_tanh(fresh()), options),
        "PyTorch's layers, channels last": plain(channels_last(fresh()), options),
        "the same, captured": captured(channels_last(fresh()), options),
        "the same, bfloat16 autocast": plain(Bfloat16(channels_last(fresh())), options),
        "PyTorch's layers, channels first": plain(pytorchs_layers(fresh()), options),
        "one thread": one_thread(fresh(), options),
        "half a batch a core": half_a_batch_a_core(fresh(), options),
    }
    compiled = plain(torch.compile(channels_last(fresh())), options)  # type: ignore[arg-type]
    started = time.perf_counter()
    try:
        compiled(torch.zeros(options.batch_size, 28, 28, dtype=torch.uint8), torch.zeros(options.batch_size).long())
    except Exception as error:  # A machine without a C++ compiler is no reason to end.
        print(f"not compiled: {str(error).splitlines()[0]}")
        return found
    return found | {f"PyTorch's layers, compiled in {time.perf_counter() - started:.0f} s": compiled}


def main(seconds: float) -> None:
    training.be_deterministic()
    torch.set_num_threads(2)
    # What is not captured finds memory anew in each step. Else it would be filled with NaN first, and glibc would give
    # it back to the system each time, until a block of nearly 32 MiB has been freed: a third of an epoch.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.empty(30_000_000, dtype=torch.uint8)
    for title, changes in (("lenet5-tanh", load_preset("lenet5-tanh").changes), ("params.yaml", {})):
        values = overlaid(workspace(), (title, changes))
        options = Train(**values["train"])
        torch.manual_seed(0)
        steps = ways(build(Model(**values["model"])), options)
        images = torch.randint(256, (20, options.batch_size, 28, 28), dtype=torch.uint8)
        labels = torch.randint(10, (20, options.batch_size))
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                number, started = 0, time.perf_counter()
                while time.perf_counter() - started < seconds / ROUNDS:
                    step(images[number % 20], labels[number % 20])
                    number += 1
                taken[name].append(1000 * (time.perf_counter() - started) / number)
        print(f"\n{title}, batches of {options.batch_size}: ms a step, median (least to greatest); ratio to the first")
        for name, times in taken.items():
            ratio = statistics.median(time / first for time, first in zip(times, taken["in use"], strict=True))
            print(f"  {name:45s} {statistics.median(times):6.2f} ({min(times):.2f} to {max(times):.2f}) {ratio:6.2f}")


if __name__ == "__main__":
    assert Path("params.yaml").exists(), "run this in the project's root"
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20)
