"""Whether the committed results are reproduced: everything is rerun in a clone and compared byte for byte."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from lenet.data.catalog import CATALOG
from lenet.environment import environment, find_device
from lenet.errors import InputError
from lenet.experiments import dvc
from lenet.experiments.git import git
from lenet.experiments.presets import workspace
from lenet.files import write_json
from lenet.params import parse_yaml

LOCK, RECORD = Path("dvc.lock"), Path("environment.lock")

# Where the last bits differ, training drifts to other weights, about as far as with another seed, on MNIST. A class of
# ten has a tenth of the images, so its accuracy varies by the square root of 10 times as much as the overall one.
TOLERANCE = {
    "accuracy": 0.005,
    "error_rate": 0.005,
    "calibration_error": 0.005,
    "loss": 0.02,
    "accuracy of a class": 0.016,
}


class Change(NamedTuple):
    """A metric that differs from the committed one; NaN where there is none."""

    name: str
    committed: float
    here: float

    @property
    def tolerated(self) -> bool:
        """Whether rounding explains the difference."""
        file, name = self.name.split(maxsplit=1)
        kind = re.sub("^(train|validation)_", "", name) if file != "metrics/per_class.json" else "accuracy of a class"
        return abs(self.here - self.committed) <= TOLERANCE.get(kind, 0)


def clone(folder: Path) -> None:
    """Clone what the current folder's repository has committed."""
    done = git("clone", "--quiet", ".", str(folder))
    if done.returncode:
        raise InputError(f"cannot clone this folder: {done.stderr.strip()}; run this in the project's root")
    if not (folder / LOCK).exists():
        raise InputError("the last commit has no dvc.lock to compare with; run `dvc repro` and commit what it writes")


def rerun(folder: Path) -> None:
    """Run every stage of a clone. Published files, which are checked by their SHA-256, are not downloaded again."""
    mirrors = {}
    for name, entry in CATALOG.items():
        kept = Path("data/downloads", name).resolve()
        for source in entry.sources if kept.exists() else []:
            mirrors[source.variable] = os.environ.get(source.variable) or str(kept)
    dvc.command("repro", "--force", progress=True, cwd=folder, environment=mirrors)


def outputs(folder: Path) -> dict[str, str]:
    """The outputs that a project's dvc.lock lists: path -> MD5.

    Raises
    ------
    InputError
        The file was not written by DVC.
    """
    path = folder / LOCK
    try:
        stages: Any = parse_yaml(path.read_bytes(), str(LOCK))["stages"]  # type: ignore[index]
        return {str(out["path"]): str(out["md5"]) for stage in stages.values() for out in stage["outs"]}
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"{LOCK}: was not written by DVC; `dvc repro` writes a new one") from None


def stale_inputs(folder: Path) -> list[str]:
    """The sources and parameters of a fresh clone that differ from those of its dvc.lock."""
    found: list[str] = []
    for changes in json.loads(dvc.command("status", "--json", cwd=folder, capture=True)).values():
        entries = [entry for change in changes if isinstance(change, dict) for entry in change.values()]
        for path, how in (item for entry in entries for item in entry.items()):
            # A fresh clone has no data and no model: those are "deleted" or "not in cache".
            found += how if isinstance(how, dict) else [path] if how == "modified" else []
    return list(dict.fromkeys(found))


def metric_changes(folder: Path) -> list[Change]:
    """The metrics of a clone that differ from the committed ones."""
    files: dict[str, Any] = json.loads(dvc.command("metrics", "diff", "--json", cwd=folder, capture=True))

    def number(value: float | None) -> float:
        return math.nan if value is None else value

    return [
        Change(f"{path} {name}", number(values.get("old")), number(values.get("new")))
        for path, metrics in files.items()
        for name, values in metrics.items()
    ]


def record(made: dict[str, str]) -> None:
    """Write environment.lock: this environment, and the outputs that it gives."""
    write_json(RECORD, {"environment": _environment(), "outputs": made})


def environment_changes(made: dict[str, str]) -> dict[str, str]:
    """How this environment differs from the one that these outputs were made in: what -> its two names or versions.

    If that is not known, the only entry is `unknown`, with the reason.
    """
    try:
        recorded: Any = json.loads(RECORD.read_bytes())
        was, of = dict(recorded["environment"]), recorded["outputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return {"unknown": f"{RECORD} is missing, or was not written by `lenet verify --record`"}
    if of != made:
        return {"unknown": f"{RECORD} belongs to other outputs; run `lenet verify --record` on the machine of {LOCK}"}
    now = _environment()
    return {
        name: f"{was.get(name, 'none')}; here: {now.get(name, 'none')}"
        for name in was | now
        if was.get(name) != now.get(name)
    }


def explanations(changes: dict[str, str]) -> set[str]:
    """Which of these changes of the environment may change the last bits of a result."""
    # Not the processor, if the arithmetic is portable here and was so there.
    portable = "arithmetic" not in changes and _environment()["arithmetic"] == "portable"
    return changes.keys() - ({"processor"} if portable else set())


def verdict(
    made: dict[str, str], different: list[str], stale: list[str], changes: dict[str, str], metrics: list[Change]
) -> tuple[str, int]:
    """One line that says whether the results are reproduced, and the exit status, which `lenet verify --help` explains.

    `made` are the outputs in dvc.lock, `different` those with other bytes here; `stale`, `changes` and `metrics` are
    what `stale_inputs`, `environment_changes` and `metric_changes` return.
    """
    if not different:
        return f"equal: all {len(made)} outputs have the bytes of {LOCK}", 0
    count = f"{len(different)} of {len(made)} outputs differ from those of {LOCK}"
    if stale:
        why = "which was not made from the committed sources"
    elif "unknown" in changes:
        why = f"and where those were made is unknown: {changes['unknown']}"
    elif not (found := explanations(changes)):
        why = "although the arithmetic is the same"
    elif not all(change.tolerated for change in metrics):
        why = "by more than another arithmetic explains"
    else:
        why = f"by no more than another arithmetic explains ({', '.join(sorted(found))})"
        return f"explained: {count}, {why}", 3
    return f"different: {count}, {why}", 1


def _environment() -> dict[str, str]:
    train = workspace()["train"]
    return environment(find_device(train["device"]), train["arithmetic"])
