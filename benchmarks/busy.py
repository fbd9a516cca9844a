"""What threads that spin while they wait cost when two trainings run at once: `python benchmarks/busy.py [--rounds 3]`.

Runs `python stages/train.py` for three epochs, with the other parameters of params.yaml, on the data that `dvc repro`
prepared: alone and two at once, with the wait that `lenet.processor` sets and with GNU OpenMP's default. Prints the
seconds of the whole process and the ratio of two at once to one alone, median (minimum to maximum), and writes
benchmarks/busy.csv. Run nothing else meanwhile.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rounds import compare

# The default is libgomp's if neither GOMP_SPINCOUNT nor OMP_WAIT_POLICY is set.
WAITS = {"lenet.processor": {}, "GNU OpenMP's default": {"GOMP_SPINCOUNT": "300000"}}


def seconds(wait: str, at_once: str) -> float:
    """How long that many trainings take, started together."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = Path("params.yaml").read_text()
        changed = text.replace("\n  epochs: 5 ", "\n  epochs: 3 ")
        assert changed != text
        (folder / "params.yaml").write_text(changed)
        started = time.perf_counter()
        running = []
        for number in range(int(at_once)):
            outputs = {"model": "m.pt", "metrics": "m.json", "history": "h.csv", "checkpoints": "c"}
            options = [part for key, end in outputs.items() for part in (f"--{key}", f"{folder}/{number}/{end}")]
            command = [sys.executable, "stages/train.py", "--params", f"{folder}/params.yaml", *options]
            running.append(subprocess.Popen(command, env=os.environ | WAITS[wait], stdout=subprocess.DEVNULL))
        assert [process.wait() for process in running] == [0] * len(running)
        return time.perf_counter() - started


def main(rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 3) -> None:
    """Time two trainings at once and one alone."""
    table = Path(__file__).with_name("busy.csv")
    compare(seconds, {wait: ["1", "2"] for wait in WAITS}, rounds, table, ["wait", "at_once", "seconds"])


if __name__ == "__main__":
    assert Path("data/processed/training.pt").exists(), "run `dvc repro` first, in the project's root"
    typer.run(main)
