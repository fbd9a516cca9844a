"""Whether what is committed can be had again: everything rerun in a clone, and compared to the byte."""

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from lenet.environment import environment, find_device
from lenet.errors import InputError
from lenet.experiments import dvc
from lenet.experiments.presets import workspace
from lenet.files import write_json
from lenet.params import parse_yaml

LOCK, RECORD = Path("dvc.lock"), Path("environment.lock")

# Where the last bits differ, training drifts to other weights, as it does with another seed: this is what the seeds of
# one LeNet differ by, at most, in metrics/zoo.csv.
TOLERANCE = {"accuracy": 0.005, "error_rate": 0.005, "loss": 0.02}


class Change(NamedTuple):
    """A metric that is not as committed; NaN where there is none."""

    name: str
    committed: float
    here: float

    @property
    def tolerated(self) -> bool:
        """Whether it is one that other rounding explains."""
        allowed = [tolerance for ending, tolerance in TOLERANCE.items() if self.name.endswith(ending)]
        return abs(self.here - self.committed) <= max(allowed, default=0)


def clone(folder: Path) -> None:
    """Clone what the current folder's repository has committed."""
    done = subprocess.run(["git", "clone", "--quiet", ".", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"cannot clone this folder: {done.stderr.strip()}; run this in the project's root")
    if not (folder / LOCK).exists():
        raise InputError("the last commit has no dvc.lock to compare with; run `dvc repro` and commit what it makes")


def rerun(folder: Path) -> None:
    """Run every stage of a clone. MNIST's four files, which are known by checksum, are not fetched a second time."""
    kept = Path("data/downloads").resolve()
    mirror = os.environ.get("MNIST_MIRROR") or (str(kept) if kept.exists() else "")
    dvc.command("repro", "--force", cwd=folder, MNIST_MIRROR=mirror)


def outputs(folder: Path) -> dict[str, str]:
    """What a project's dvc.lock says of the outputs: path -> MD5.

    Raises
    ------
    InputError
        It is not a lock of DVC.
    """
    path = folder / LOCK
    try:
        stages: Any = parse_yaml(path.read_bytes(), str(LOCK))["stages"]  # type: ignore[index]
        return {str(out["path"]): str(out["md5"]) for stage in stages.values() for out in stage["outs"]}
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"{LOCK}: not a lock that DVC wrote; `dvc repro` makes a new one") from None


def stale_inputs(folder: Path) -> list[str]:
    """The sources and parameters of a fresh clone that are not those that its dvc.lock was made from."""
    found: list[str] = []
    for changes in json.loads(dvc.command("status", "--json", cwd=folder, capture=True)).values():
        entries = [entry for change in changes if isinstance(change, dict) for entry in change.values()]
        for path, how in (item for entry in entries for item in entry.items()):
            # A clone has no data and no model yet: those are "deleted" or "not in cache".
            found += how if isinstance(how, dict) else [path] if how == "modified" else []
    return list(dict.fromkeys(found))


def metric_changes(folder: Path) -> list[Change]:
    """The metrics of a clone that are not as they are committed there."""
    files: dict[str, Any] = json.loads(dvc.command("metrics", "diff", "--json", cwd=folder, capture=True))

    def number(value: float | None) -> float:
        return math.nan if value is None else value

    return [
        Change(f"{path} {name}", number(values.get("old")), number(values.get("new")))
        for path, metrics in files.items()
        for name, values in metrics.items()
    ]


def record(made: dict[str, str]) -> None:
    """Write environment.lock: the environment of this run, and the outputs that it gave."""
    write_json(RECORD, {"environment": _environment(), "outputs": made})


def environment_changes(made: dict[str, str]) -> list[str]:
    """What is not as it was where these outputs were made, a line each; that alone, if it was not recorded."""
    try:
        recorded: Any = json.loads(RECORD.read_bytes())
        was, of = dict(recorded["environment"]), recorded["outputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return [f"unknown: {RECORD} is not there, or not what `lenet verify --record` writes"]
    if of != made:
        return [f"unknown: {RECORD} is of other outputs than {LOCK}; whoever made these can `lenet verify --record`"]
    now = _environment()
    return [
        f"{name}: {was.get(name, 'none')}; here: {now.get(name, 'none')}"
        for name in was | now
        if was.get(name) != now.get(name)
    ]


def _environment() -> dict[str, str]:
    return environment(find_device(workspace()["train"]["device"]))
