"""Experiments by name, run and recorded by DVC beside the workspace, which stays as it is."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from lenet import InputError
from lenet.cli import Stopped
from lenet.presets import Values


class Experiment(NamedTuple):
    """A finished run that DVC has recorded on the commit that is checked out.

    Attributes
    ----------
    values : dict
        All of params.yaml.
    metrics : dict
        name -> value, those of train.json and test.json together.
    sources : dict
        path -> MD5 of each source file that its stages depend on.
    """

    revision: str
    values: Values
    metrics: dict[str, float]
    sources: dict[str, str]

    def is_of(self, values: Values) -> bool:
        """Whether it is what a run with these parameters and the workspace's code would be."""
        pipeline = subprocess.run(["git", "diff", "--quiet", self.revision, "--", "dvc.yaml"], check=False)
        code = all(_md5(Path(path)) == md5 for path, md5 in self.sources.items())
        return self.values == values and code and pipeline.returncode == 0


def _md5(path: Path) -> str | None:
    """The checksum by which DVC knows a file; None if there is no such file."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if path.exists() else None


def recorded() -> dict[str, Experiment]:
    """The finished experiments of the commit that is checked out, by name."""
    found = {}
    for commit in json.loads(dvc("exp", "show", "--json", capture=True)):
        # With an executor it is queued, running or failed; one whose run was killed stays "running" for ever.
        for group in [group for group in commit["experiments"] or [] if not group["executor"]]:
            for entry in [entry for entry in group["revs"] if entry["data"]]:
                data = entry["data"]
                metrics = [file.get("data", {}) for file in data["metrics"].values()]
                found[entry["name"]] = Experiment(
                    entry["rev"],
                    data["params"].get("params.yaml", {}).get("data", {}),
                    {name: value for file in metrics for name, value in file.items()},
                    {path: dep["hash"] for path, dep in data["deps"].items() if path.startswith("stages/")},
                )
    return found


def remove(name: str) -> None:
    """Let DVC forget an experiment; what it computed stays in DVC's cache."""
    dvc("exp", "remove", name, capture=True)


def run(name: str, changes: Values) -> None:
    """Run the pipeline with changed parameters as the experiment `name`, in a folder of DVC's own (`--temp`).

    What DVC computed before, in whatever experiment, comes from its cache.

    Raises
    ------
    InputError
        A stage failed, or there is an experiment of that name with other results; DVC has said more.
    """
    overrides = [f"{section}.{key}={_text(value)}" for section, keys in changes.items() for key, value in keys.items()]
    arguments = ["exp", "run", "--temp", "--name", name, *(text for pair in overrides for text in ("-S", pair))]
    print(">", shlex.join(["dvc", *arguments]), flush=True)
    dvc(*arguments)


def _text(value: object) -> str:
    """A parameter's value as DVC's -S takes it."""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def dvc(*arguments: str, capture: bool = False, cwd: Path = Path(), **environment: str) -> str:
    """Run DVC, of this Python environment; its output goes to the terminal or, with `capture`, is returned.

    Raises
    ------
    InputError
        It failed, and has said why.
    """
    # A stage's command is `python ...`: that has to be this Python, whether or not its environment is activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=cwd,
        env=os.environ | {"PATH": path} | environment,
        stdout=subprocess.PIPE if capture else None,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate()
        except Stopped:
            # Ctrl-C reaches DVC and its stage as well, a signal to this program alone does not.
            try:
                process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                with suppress(psutil.NoSuchProcess):
                    stages = psutil.Process(process.pid).children(recursive=True)
                    for stage in stages:
                        stage.terminate()
                    # Its end may take the time of an import; till then it needs its files.
                    psutil.wait_procs(stages, timeout=30)
                process.terminate()
                process.wait()
            raise
    if process.returncode:
        raise InputError(f"`{shlex.join(['dvc', *arguments])}` failed, and said why above")
    return output or ""
