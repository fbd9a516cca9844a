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
from lenet.network import Tanh, build
from lenet.params import Model, Train
from lenet.presets import load_preset, overlaid, workspace

Step = Callable[[Tensor, Tensor], None]
ROUNDS = 9


def pytorchs_tanh(network: nn.Sequential) -> nn.Sequential:
    for name, layer in network.named_children():
        if isinstance(layer, Tanh):
            setattr(network, name, nn.Tanh())
    return network


def channels_last(network: nn.Sequential) -> nn.Sequential:
    """As `lenet.training.train` has it."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def pooled_first(network: nn.Sequential) -> nn.Sequential:
    """The activation behind the pooling: the same function where it is the maximum, of a quarter of the numbers."""
    order = list(network._modules)
    if isinstance(network.S2, nn.MaxPool2d):
        for first, second in (("C1_activation", "S2"), ("C3_activation", "S4")):
            one, two = order.index(first), order.index(second)
            order[one], order[two] = order[two], order[one]
    return nn.Sequential(OrderedDict((name, network.get_submodule(name)) for name in order))


def plain(network: nn.Module, options: Train) -> Step:
    optimizer = training.Optimizer(network, options)

    def step(images: Tensor, labels: Tensor) -> None:
        loss = cross_entropy(network(images), labels)
        loss.item()
        loss.backward()
        optimizer.step(options.learning_rate / 10)

    return step


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
    optimizer = training.Optimizer(network, options)
    pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def part(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, ...]:
        loss = cross_entropy(network(images), labels, reduction="sum") / count
        loss.item()
        return torch.autograd.grad(loss, optimizer.parameters)

    def step(images: Tensor, labels: Tensor) -> None:
        torch.set_num_threads(1)
        middle, count = len(labels) // 2, len(labels)
        other = pool.submit(part, images[middle:], labels[middle:], count)
        mine = part(images[:middle], labels[:middle], count)
        for parameter, one, two in zip(optimizer.parameters, mine, other.result(), strict=True):
            parameter.grad = one + two
        optimizer.step(options.learning_rate / 10)
        torch.set_num_threads(2)

    return step


def nan_filled(network: nn.Module, options: Train) -> Step:
    step = plain(network, options)

    def filled(images: Tensor, labels: Tensor) -> None:
        torch.utils.deterministic.fill_uninitialized_memory = True
        step(images, labels)
        torch.utils.deterministic.fill_uninitialized_memory = False

    return filled


def one_thread(network: nn.Module, options: Train) -> Step:
    step = plain(network, options)

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
        "in use": plain(channels_last(fresh()), options),
        "channels first": plain(fresh(), options),
        "channels first, PyTorch's tanh": plain(pytorchs_tanh(fresh()), options),
        "PyTorch's tanh": plain(channels_last(pytorchs_tanh(fresh())), options),
        "maximum before ReLU": plain(channels_last(pooled_first(fresh())), options),
        "NaN in new tensors": nan_filled(channels_last(fresh()), options),
        "bfloat16 autocast": plain(Bfloat16(channels_last(fresh())), options),
        "one thread": one_thread(channels_last(fresh()), options),
        "half a batch a core": half_a_batch_a_core(channels_last(fresh()), options),
    }
    compiled = plain(torch.compile(channels_last(pytorchs_tanh(fresh()))), options)  # type: ignore[arg-type]
    started = time.perf_counter()
    try:
        compiled(torch.zeros(options.batch_size, 28, 28, dtype=torch.uint8), torch.zeros(options.batch_size).long())
    except Exception as error:  # A machine without a C++ compiler is no reason to end.
        print(f"not compiled: {str(error).splitlines()[0]}")
        return found
    return found | {f"compiled in {time.perf_counter() - started:.0f} s": compiled}


def main(seconds: float) -> None:
    training.be_deterministic()
    training.keep_freed_memory()
    torch.set_num_threads(2)
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
