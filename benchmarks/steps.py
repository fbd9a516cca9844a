"""One step of training in the ways that were tried, each beside the one in use and in a process of its own.

    python benchmarks/steps.py [--rounds 5]

Times `lenet5-tanh` on mini-batches of 64 and the default network on mini-batches of 128, made-up images, all ways in
turn, round after round. Prints milliseconds a step and the ratio to the step in use, median (least to greatest) of the
rounds, and writes benchmarks/steps.csv. Nothing else should run meanwhile.
"""

import lenet.processor  # noqa: F401  Its settings have to be there before PyTorch is imported.

# isort: split
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from bench import spread
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lenet.environment import be_deterministic, environment
from lenet.experiments.presets import load_preset, overlaid, workspace
from lenet.files import write_csv
from lenet.network import quick
from lenet.network.capture import Step, capture
from lenet.network.lenet import build
from lenet.params import Model, Train
from lenet.training.optimizer import Optimizer

HERE = Path(__file__).parent
CASES = {"lenet5-tanh, 64": load_preset("lenet5-tanh").changes, "params.yaml, 128": {}}
SECONDS = 2

Forward = Callable[[Tensor], Tensor]
Way = tuple[Forward, Callable[[Step], Step]]


def not_captured(step: Step) -> Step:
    return step


def channels_last(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def bfloat16(network: nn.Module) -> Forward:
    """The network with its convolutions and products in bfloat16, the weights and the loss in float32."""

    def forward(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = network(images)
        return logits.float()

    return forward


def quick_but(layer: type[nn.Module], instead: Forward) -> Callable[[nn.Sequential], Forward]:
    """The quick form with something else in place of a layer's replacement."""

    def changed(network: nn.Sequential) -> Forward:
        usual = quick._replacement
        quick._replacement = lambda module: instead if isinstance(module, layer) else usual(module)
        return quick.quick(network)

    return changed


def one_thread(network: nn.Sequential) -> Forward:
    torch.set_num_threads(1)
    return quick.quick(network)


WAYS: dict[str, Callable[[nn.Sequential], Way]] = {
    "in use": lambda network: (quick.quick(network), capture),
    "not captured": lambda network: (quick.quick(network), not_captured),
    "PyTorch's tanh": lambda network: (quick_but(nn.Tanh, torch.tanh_)(network), capture),
    "PyTorch's maximum, its gradient shared": lambda network: (
        quick_but(nn.MaxPool2d, lambda x: x.amax(dim=0))(network),
        capture,
    ),
    "the plain network": lambda network: (network, not_captured),
    "the plain network, captured": lambda network: (network, capture),
    "the plain network, channels last": lambda network: (channels_last(network), not_captured),
    "the plain network, channels last, captured": lambda network: (channels_last(network), capture),
    "the plain network, channels last, bfloat16": lambda network: (bfloat16(channels_last(network)), not_captured),
    "the plain network, compiled": lambda network: (torch.compile(network), not_captured),  # type: ignore[dict-item]
    "one thread": lambda network: (one_thread(network), capture),
}


def measure(way: str, case: str) -> float:
    """Milliseconds a step, the median of stretches of 20 steps."""
    be_deterministic()
    torch.set_num_threads(2)
    # What is not captured finds memory anew in each step, which PyTorch would fill with NaN first.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    values = overlaid(workspace(), (case, CASES[case]))
    options = Train(**values["train"])
    torch.manual_seed(0)
    network = build(Model(**values["model"]))
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
    end = time.perf_counter() + SECONDS
    taken = []
    while time.perf_counter() < end:
        taken.append(stretch())
    return statistics.median(taken)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Of all ways in turn.")] = 5,
    way: Annotated[str | None, typer.Option(hidden=True)] = None,
    case: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Time one step of training in the ways that were tried."""
    if way:
        print(measure(way, case))
        return
    machine = environment(torch.device("cpu"))
    rows = []
    for title in CASES:
        ways = [name for name in WAYS if "tanh" in title or "tanh" not in name]
        ways = [name for name in ways if "tanh" not in title or "maximum" not in name]
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name in ways:
                command = [sys.executable, __file__, "--way", name, "--case", title]
                taken[name].append(float(subprocess.check_output(command, text=True)))
        print(f"\n{title}: ms a step, and its ratio to the first")
        for name, times in taken.items():
            ratios = [one / first for one, first in zip(times, taken["in use"], strict=True)]
            figures = [*spread(times), *spread(ratios)]
            text = "{:6.2f} ({:.2f} to {:.2f})   {:5.2f} ({:.2f} to {:.2f})".format(*figures)
            print(f"  {name:45s}{text}", flush=True)
            rows.append([title, name, *figures, rounds, f"{machine['processor']}, torch {machine['torch']}"])
    figures = [f"{name}{end}" for name in ("ms", "ratio") for end in ("", "_least", "_most")]
    write_csv(HERE / "steps.csv", ["case", "way", *figures, "rounds", "machine"], rows)


if __name__ == "__main__":
    assert Path("params.yaml").exists(), "run this in the project's root"
    typer.run(main)
