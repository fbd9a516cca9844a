"""Kill the pipeline at random moments: `python tests/kill.py PROJECT --kills 20 --seed 0`.

PROJECT is a clone in which `dvc repro` has run. Everything that it made is removed, including DVC's cache and lock.
Then `dvc repro` is started and killed, together with its stage (SIGKILL), at a random moment of the time that it takes;
it is started again, resumes, and is killed again. Whenever it reaches its end, every file must be as at first, byte for
byte, and it starts from scratch.
"""

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from conftest import tree

from lenet.experiments.verify import outputs

# What DVC prints if it was killed while it wrote its list of locks; docs/recovery.md says what to do.
DAMAGED = "Unable to read RWLock-file"


def state(project: Path) -> dict[str, bytes]:
    """Every file that a run makes, dvc.lock among them."""
    return tree(project) | {"dvc.lock": (project / "dvc.lock").read_bytes()}


def remove(project: Path) -> None:
    """Remove everything that runs made, and DVC's copies of it."""
    for name in outputs(project):
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (project / "dvc.lock").unlink()
    shutil.rmtree(project / ".dvc/cache")


def run(project: Path, seconds: float | None = None) -> tuple[bool, str]:
    """Run `dvc repro`, and kill it and its stage after these seconds. Return whether it finished, and its output."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(["dvc", "repro"], cwd=project, stdout=log, stderr=log, start_new_session=True)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
        log.seek(0)
        text = log.read()
    if status and DAMAGED in text:
        (project / ".dvc/tmp/rwlock").unlink()
    elif status:
        raise AssertionError(f"dvc repro exited with {status}:\n{text}")
    return status == 0, text


def check(project: Path, expected: dict[str, bytes]) -> None:
    """Raise if a file is missing, new or different."""
    found = state(project)
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if wrong:
        raise AssertionError(f"differ: {wrong}")


def kill(project: Path, kills: int, seed: int) -> Counter[str]:
    """Kill that many times; count the kills in each stage, and the trainings that were resumed."""
    expected = state(project)
    rng = random.Random(seed)  # noqa: S311
    remove(project)
    started = time.monotonic()
    run(project)
    length = time.monotonic() - started
    check(project, expected)

    hits: Counter[str] = Counter()
    ended = True
    while hits["kills"] < kills or not ended:
        if ended:
            remove(project)
        ended, text = run(project, rng.uniform(0, length) if hits["kills"] < kills else None)
        hits["trainings resumed"] += "resuming after epoch" in text
        if ended:
            check(project, expected)
        elif DAMAGED in text:
            hits["DVC's list of locks damaged"] += 1
        else:
            stages = [line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage '")]
            hits["kills"] += 1
            hits[stages[-1] if stages else "before the first stage"] += 1
    return hits


def main(
    project: Path,
    kills: Annotated[int, typer.Option(help="How many times.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Kill `dvc repro` at random moments, and compare every byte at the end."""
    hits = kill(project, kills, seed)
    print(", ".join(f"{name}: {count}" for name, count in hits.items()))


if __name__ == "__main__":
    typer.run(main)
