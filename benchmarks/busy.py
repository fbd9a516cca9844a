"""Two trainings at once beside one alone: what waiting threads cost. `python benchmarks/busy.py [--rounds 3]`.

Runs `python stages/train.py` with the parameters of params.yaml, but three epochs, on the data that `dvc repro` made,
alone and two at once, with the wait of `lenet.processor` and with GNU OpenMP's own, in turn. Prints the seconds of the
whole process, median (least to greatest), and the ratio of two at once to one alone, and writes benchmarks/busy.csv.
Nothing else should run meanwhile.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from bench import spread

from lenet.environment import environment
from lenet.files import write_csv

HERE = Path(__file__).parent
# libgomp's own where neither variable is set.
WAITS = {"lenet.processor": {}, "GNU OpenMP's own": {"GOMP_SPINCOUNT": "300000"}}


def seconds(at_once: int, wait: dict[str, str]) -> float:
    """How long so many trainings take, started together."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = Path("params.yaml").read_text()
        changed = text.replace("\n  epochs: 5 ", "\n  epochs: 3 ")
        assert changed != text
        (folder / "params.yaml").write_text(changed)
        started = time.perf_counter()
        running = []
        for number in range(at_once):
            outputs = {"model": "m.pt", "metrics": "m.json", "history": "h.csv", "checkpoints": "c"}
            options = [part for key, end in outputs.items() for part in (f"--{key}", f"{folder}/{number}/{end}")]
            command = [sys.executable, "stages/train.py", "--params", f"{folder}/params.yaml", *options]
            running.append(subprocess.Popen(command, env=os.environ | wait, stdout=subprocess.DEVNULL))
        assert [process.wait() for process in running] == [0] * at_once
        return time.perf_counter() - started


def main(rounds: Annotated[int, typer.Option(min=1, help="Of all in turn.")] = 3) -> None:
    """Time two trainings at once beside one alone."""
    machine = environment(torch.device("cpu"))
    taken: dict[tuple[str, int], list[float]] = {(name, count): [] for name in WAITS for count in (1, 2)}
    for _ in range(rounds):
        for (name, count), times in taken.items():
            times.append(seconds(count, WAITS[name]))
    rows = []
    for (name, count), times in taken.items():
        ratios = [both / one for both, one in zip(times, taken[name, 1], strict=True)]
        figures = [*spread(times), *spread(ratios)]
        text = "{:.1f} s ({:.1f} to {:.1f}), {:.2f} ({:.2f} to {:.2f})".format(*figures)
        print(f"{name:20} {count} at once: {text}", flush=True)
        rows.append([name, count, *figures, rounds, f"{machine['processor']}, torch {machine['torch']}"])
    figures = [f"{name}{end}" for name in ("seconds", "ratio") for end in ("", "_least", "_most")]
    write_csv(HERE / "busy.csv", ["wait", "at_once", *figures, "rounds", "machine"], rows)


if __name__ == "__main__":
    assert Path("data/processed/training.pt").exists(), "run `dvc repro` first, in the project's root"
    typer.run(main)
