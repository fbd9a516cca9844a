"""The projects that the tests run in: copies of the working tree, never the working tree itself."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
MNIST = ROOT.parent / "shared" / "mnist"

DIGITS = ["data.dataset=digits", "preprocess.validation_size=143", "train.batch_size=32", "train.epochs=2"]

needs_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason="needs MNIST's four files in ../shared/mnist")


class Outcome(NamedTuple):
    status: int
    output: str
    error: str


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Programs that tests start: the environment's own, no network, no configuration of the user's."""
    home = tmp_path_factory.mktemp("home")
    (home / ".gitconfig").write_text("[user]\n\tname = A tester\n\temail = tester@example.org\n")
    os.environ.update(
        HOME=str(home),
        XDG_CONFIG_HOME=str(home),
        XDG_CACHE_HOME=str(home),
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # Nothing listens there: a test that would reach a public mirror fails at once instead.
        http_proxy="http://127.0.0.1:9",
        https_proxy="http://127.0.0.1:9",
        no_proxy="127.0.0.1",
        # Two tests run at once on few cores: threads that wait must not spin.
        OMP_WAIT_POLICY="PASSIVE",
    )
    for name in ("MNIST_MIRROR", "DVC_ROOT", "DVC_STAGE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "MAKEFLAGS"):
        os.environ.pop(name, None)
    # Programs inherit that Ctrl-C is ignored, as it is for what a shell runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # With it, each program would compile all that it imports anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def sh(*command: str, cwd: Path, status: int | None = 0, **environment: str) -> str:
    """Run a program in a project; its output and errors together. It must exit with `status` unless that is None."""
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, text=True, capture_output=True, timeout=600, check=False
    )
    text = done.stdout + done.stderr
    assert status is None or done.returncode == status, f"{' '.join(command)} exited with {done.returncode}:\n{text}"
    return text


def clone(folder: Path) -> Path:
    """Make a Git repository of the files that the working tree would commit."""
    listed = subprocess.check_output(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    sh("git", "init", "--quiet", cwd=folder)
    sh("git", "add", ".", cwd=folder)
    commit(folder, "a clone")
    return folder


def commit(folder: Path, message: str) -> None:
    sh("git", "commit", "--quiet", "-am", message, cwd=folder)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the whole pipeline ran on `digits`, committed. Not to be changed: copy it (`digits_project`)."""
    project = clone(tmp_path_factory.mktemp("digits"))
    set_params(project, *DIGITS)
    sh("dvc", "repro", cwd=project)
    commit(project, "a run on digits")
    return project


@pytest.fixture
def digits_project(digits_run: Path, tmp_path: Path) -> Path:
    """A copy of that clone for one test."""
    return shutil.copytree(digits_run, tmp_path / "project")


def set_params(project: Path, *overrides: str) -> None:
    """Write `section.key=value` into params.yaml as text, whatever it is, as a user with an editor would."""
    path = project / "params.yaml"
    lines = path.read_text().splitlines()
    for override in overrides:
        name, value = override.split("=", 1)
        section, key = name.split(".")
        start = next(i for i, line in enumerate(lines) if line.split("#")[0].strip() == f"{section}:")
        at = next(i for i in range(start + 1, len(lines)) if lines[i].startswith(f"  {key}:"))
        lines[at] = f"  {key}: {value}"
    path.write_text("\n".join(lines) + "\n")


def preset_overrides(name: str) -> list[str]:
    """What a preset changes, as `set_params` takes it."""
    values = YAML(typ="safe", pure=True).load(ROOT / f"presets/{name}.yaml")
    values.pop("claimed", None)
    return [f"{section}.{key}={value}" for section, keys in values.items() for key, value in keys.items()]


@pytest.fixture
def run_stage(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a stage as `python stages/NAME.py OPTIONS` would, but in this process, so that torch is imported once."""

    def run(project: Path, name: str, *options: str) -> Outcome:
        monkeypatch.chdir(project)
        monkeypatch.setattr(sys, "argv", [f"stages/{name}.py", *options])
        capfd.readouterr()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "stages" / f"{name}.py"), run_name="__main__")
        for number, handler in handlers.items():
            signal.signal(number, handler)
        output, error = capfd.readouterr()
        return Outcome(int(stopped.value.code or 0), output, error)

    return run


def assert_refused(outcome: Outcome, *words: str) -> None:
    """The contract of errors: exit status 1 and one line that says `error: ` and all of the words."""
    assert outcome.status == 1, outcome
    lines = outcome.error.splitlines()
    assert len(lines) == 1, outcome.error
    assert lines[0].startswith("error: ")
    assert "unexpected" not in lines[0], lines[0]
    for word in words:
        assert word in lines[0], lines[0]


def tree(project: Path) -> dict[str, bytes]:
    """Every file that a stage could write, with its content."""
    folders = [project / name for name in ("data", "models", "metrics", "plots")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(project)): path.read_bytes() for path in files}
