"""How long a training step takes as it is, and in each other way that was tried: `python benchmarks/steps.py`.

Times `lenet5-tanh` on mini-batches of 64 and the default network on mini-batches of 128, with random images, each way
in a process of its own, all in turn. Prints milliseconds per step and the ratio to the step in use, median (least to
greatest) of the rounds, and writes benchmarks/steps.csv. Run nothing else meanwhile.
"""

import arithmetic  # noqa: F401  PyTorch's libraries read its settings as they are loaded.

# isort: split
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rounds import compare
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from lenet.data.catalog import CATALOG
from lenet.environment import be_deterministic
from lenet.experiments.presets import load_preset, overlaid, workspace
from lenet.network import quick
from lenet.network.capture import Step, capture
from lenet.network.lenet import build
from lenet.params import Model, Train
from lenet.processor import PORTABLE
from lenet.training.optimizer import Optimizer

CASES = {"lenet5-tanh, 64": load_preset("lenet5-tanh").changes, "default network, 128": {}}

Forward = Callable[[Tensor], Tensor]
Way = tuple[Forward, Callable[[Step], Step]]


def not_captured(step: Step) -> Step:
    return step


def channels_last(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)


def bfloat16(network: nn.Module) -> Forward:
    """The network with its convolutions and matrix products in bfloat16; weights and loss stay in float32."""

    def forward(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = network(images)
        return logits.float()

    return forward


def quick_with(instead: Forward, kind: type[nn.Module], network: nn.Sequential) -> Forward:
    """The quick form with another function in place of each layer of a kind."""
    usual = quick._replacement

    def replacement(layer: nn.Module) -> Forward:
        return instead if isinstance(layer, kind) else usual(layer)

    quick._replacement = replacement
    return quick.quick(network)


def amax(x: Tensor) -> Tensor:
    """Max pooling by PyTorch's operation, which divides the gradient among equal maxima."""
    return x.amax(dim=0)


def plain_products(network: nn.Sequential) -> Forward:
    """Products of any shape in one piece, and PyTorch's dense layers."""
    quick.mm, quick.linear = torch.mm, linear  # type: ignore[assignment]
    return quick.quick(network)


def one_thread(network: nn.Sequential) -> Forward:
    torch.set_num_threads(1)
    return quick.quick(network)


WAYS: dict[str, Callable[[nn.Sequential], Way]] = {
    "in use": lambda network: (quick.quick(network), capture),
    "native arithmetic": lambda network: (quick.quick(network), capture),
    "native arithmetic, products in one piece": lambda network: (plain_products(network), capture),
    "not captured": lambda network: (quick.quick(network), not_captured),
    "PyTorch's tanh": lambda network: (quick_with(torch.tanh_, nn.Tanh, network), capture),
    "PyTorch's amax": lambda network: (quick_with(amax, nn.MaxPool2d, network), capture),
    "the plain network": lambda network: (network, not_captured),
    "the plain network, captured": lambda network: (network, capture),
    "the plain network, channels last": lambda network: (channels_last(network), not_captured),
    "the plain network, channels last, captured": lambda network: (channels_last(network), capture),
    "the plain network, channels last, bfloat16": lambda network: (bfloat16(channels_last(network)), not_captured),
    "the plain network, compiled": lambda network: (torch.compile(network), not_captured),
    "one thread": lambda network: (one_thread(network), capture),
}
# The network of the one case has no max pooling, that of the other no tanh.
LEFT_OUT = {"lenet5-tanh, 64": "PyTorch's amax", "default network, 128": "PyTorch's tanh"}


def milliseconds(case: str, way: str) -> float:
    """Milliseconds per step: the median of two seconds of stretches, 20 steps each."""
    be_deterministic()
    torch.set_num_threads(2)
    # A step that is not captured allocates memory each time; in this mode PyTorch would fill it with NaN first.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    values = overlaid(workspace(), (case, CASES[case]))
    options, info = Train(**values["train"]), CATALOG["mnist"].info
    torch.manual_seed(0)
    network = build(Model(**values["model"]).normalised(info.mean, info.std))
    optimizer, rate = Optimizer(network, options), torch.tensor(options.learning_rate / 10)
    forward, prepare = WAYS[way](network)

    @prepare
    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        loss = cross_entropy(forward(images), labels)
        optimizer.step(torch.autograd.grad(loss, optimizer.parameters), rate)
        return (loss.detach(),)

    images = torch.randint(256, (20, options.batch_size, 28, 28), dtype=torch.uint8)
    labels = torch.randint(10, (20, options.batch_size))

    def stretch() -> float:
        started = time.perf_counter()
        for number in range(20):
            step(images[number], labels[number])[0].item()
        return 1000 * (time.perf_counter() - started) / 20

    stretch()
    end = time.perf_counter() + 2
    taken = []
    while time.perf_counter() < end:
        taken.append(stretch())
    return statistics.median(taken)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 5,
    one: Annotated[tuple[str, str] | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time a training step as it is, and in each other way that was tried."""
    if one:
        print(milliseconds(*one))
        return

    def measure(case: str, way: str) -> float:
        command = [sys.executable, __file__, "--one", case, way]
        environment = {name: value for name, value in os.environ.items() if name not in PORTABLE}
        return float(subprocess.check_output(command, text=True, env=environment))

    groups = {case: [way for way in WAYS if way != left_out] for case, left_out in LEFT_OUT.items()}
    compare(measure, groups, rounds, Path(__file__).with_name("steps.csv"), ["case", "way", "ms"])


if __name__ == "__main__":
    assert Path("params.yaml").exists(), "run this in the project's root"
    typer.run(main)
