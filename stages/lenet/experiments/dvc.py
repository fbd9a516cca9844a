"""Named experiments, run and recorded by DVC outside the workspace, which stays as it is."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from lenet.cli import Stopped
from lenet.data.catalog import OWN
from lenet.errors import InputError
from lenet.experiments.git import git
from lenet.experiments.presets import Values, flattened


class Experiment(NamedTuple):
    """A finished experiment that DVC has recorded for the commit that is checked out.

    Attributes
    ----------
    values : dict
        All of params.yaml.
    metrics : dict
        name -> value, of all metrics files together but that of the classes.
    sources : dict
        path -> MD5, of each source file that its stages depend on, and of the folder of one's own images.
    """

    revision: str
    values: Values
    metrics: dict[str, float]
    sources: dict[str, str]

    def is_of(self, values: Values) -> bool:
        """Whether an experiment with these parameters and the workspace's code would be the same."""
        pipeline = git("diff", "--quiet", self.revision, "--", "dvc.yaml")
        code = all(md5(Path(path)) == recorded for path, recorded in self.sources.items())
        return self.values == values and code and pipeline.returncode == 0


def md5(path: Path) -> str | None:
    """The checksum by which DVC identifies a file or a folder; None if there is none of that name."""
    if path.is_dir():
        files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        listed = json.dumps([{"md5": md5(path / name), "relpath": name} for name in files], sort_keys=True)
        return f"{hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest()}.dir"
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if path.exists() else None


def recorded() -> dict[str, Experiment]:
    """The finished experiments of the commit that is checked out, by name."""
    found = {}
    for commit in json.loads(command("exp", "show", "--json", capture=True)):
        # An entry with an executor is queued, running or failed. A run that was killed stays listed as running.
        for group in [group for group in commit["experiments"] or [] if not group["executor"]]:
            for entry in [entry for entry in group["revs"] if entry["data"]]:
                data = entry["data"]
                values = data["params"].get("params.yaml", {}).get("data", {})
                # A class may have the name of another metric.
                files = [file.get("data", {}) for path, file in data["metrics"].items() if "per_class" not in path]
                sources = {path: dep["hash"] for path, dep in data["deps"].items() if path.startswith("stages/")}
                own = values.get("data", {})
                if own.get("dataset") == OWN:
                    # DVC shows an absolute path without its first slash.
                    sources[own["folder"]] = (
                        data["deps"].get(Path(own["folder"]).as_posix().lstrip("/"), {}).get("hash", "")
                    )
                metrics = {name: value for file in files for name, value in file.items()}
                found[entry["name"]] = Experiment(entry["rev"], values, metrics, sources)
    return found


def remove(name: str) -> None:
    """Remove an experiment from DVC's list; what it computed stays in DVC's cache."""
    command("exp", "remove", name, capture=True)


def run(name: str, changes: Values) -> None:
    """Run the pipeline with changed parameters as the experiment `name`, in a temporary folder (`--temp`).

    What DVC computed before, in whichever experiment, comes from its cache.

    Raises
    ------
    InputError
        A stage failed, or there is an experiment of that name with other results; DVC has printed more.
    """
    arguments = _experiment(name, changes)
    print(">", shlex.join(["dvc", *arguments]), flush=True)
    command(*arguments)


def _experiment(name: str, changes: Values) -> list[str]:
    """DVC's arguments to run an experiment."""
    return ["exp", "run", "--temp", "--name", name, *(word for pair in overrides(changes) for word in ("-S", pair))]


def overrides(changes: Values) -> list[str]:
    """Changed parameters as DVC's -S takes them, `section.key=value` each."""
    return [f"{name}={text(value)}" for name, value in flattened(changes).items()]


def text(value: object) -> str:
    """A parameter's value as DVC's -S takes it."""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def command(
    *arguments: str,
    capture: bool = False,
    progress: bool = False,
    check: bool = True,
    cwd: Path = Path(),
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run the DVC of this Python environment.

    Its output goes to standard output, with `progress` to standard error; with `capture` it is returned.

    Raises
    ------
    InputError
        It failed, and has printed why; not without `check`.
    """
    stdout = subprocess.PIPE if capture else sys.stderr.fileno() if progress else None
    with _start(*arguments, stdout=stdout, cwd=cwd, environment=environment or {}) as process:
        try:
            output, _ = process.communicate()
        except Stopped:
            _end(process)
            raise
    if process.returncode and check:
        raise InputError(f"`{shlex.join(['dvc', *arguments])}` failed; the reason is above")
    return output or ""


def _start(
    *arguments: str, stdout: int | None, stderr: int | None = None, cwd: Path = Path(), environment: Mapping[str, str]
) -> "subprocess.Popen[str]":
    # A stage's command is `python ...`: make that this Python, even if its environment is not activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
        stdout=stdout,
        stderr=stderr,
        text=True,
    )


def _end(process: "subprocess.Popen[str]") -> None:
    """End DVC and its stage: Ctrl-C reaches them too, but a signal to this program alone does not."""
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        with suppress(psutil.NoSuchProcess):
            stages = psutil.Process(process.pid).children(recursive=True)
            for stage in stages:
                stage.terminate()
            # A stage may first finish an import; until then it needs its files.
            psutil.wait_procs(stages, timeout=30)
        process.terminate()
        process.wait()
