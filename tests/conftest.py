"""The projects that the tests run in: copies of the working tree, never the working tree itself."""

import fcntl
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from ruamel.yaml import YAML

from lenet.__main__ import main  # Before PyTorch, whose threads wait as lenet.processor sets it.
from lenet.data.catalog import CATALOG
from lenet.params import Params, load_params
from lenet.processor import PORTABLE, set_arithmetic

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# For what computes in this process. The programs that tests start set these variables themselves.
set_arithmetic("portable")
import torch  # noqa: E402

torch.ones(2, 2) @ torch.ones(2, 2)
for name in PORTABLE:
    os.environ.pop(name, None)

ROOT = Path(__file__).resolve().parents[1]
assert CATALOG["mnist"].source
FILES = CATALOG["mnist"].source.files
INFO = CATALOG["mnist"].info
STAGES = ["download", "preprocess", "train", "evaluate", "plot"]

# On the CPU, so that the tests compare the same arithmetic on every machine.
DIGITS = ["data.dataset=digits", "preprocess.validation_size=143", "train.batch_size=32", "train.epochs=2"]
DIGITS += ["train.device=cpu"]


def find_mnist(*places: str) -> Path | None:
    """The first place, each a folder or a file: URL, that has MNIST's four files."""
    for place in filter(None, places):
        url = urlsplit(place)
        folder = Path(url2pathname(url.path)) if url.scheme == "file" else Path(place).expanduser().absolute()
        if all((folder / resource.name).is_file() for resource in FILES):
            return folder
    return None


# Read here: `_environment` below removes the variable.
_FOUND = find_mnist(f"{ROOT.parent}/shared/mnist", os.environ.get("MNIST_MIRROR", ""), f"{ROOT}/data/downloads/mnist")
MNIST = _FOUND or Path("nowhere")
needs_mnist = pytest.mark.skipif(
    _FOUND is None,
    reason="needs MNIST's four files in ../shared/mnist, in the folder that MNIST_MIRROR names or in "
    "data/downloads/mnist; `make repro` downloads them",
)


def defaults(dataset: str) -> Params:
    """params.yaml with a published data set's mean and standard deviation for `auto`, as the stage train fills in."""
    values, info = load_params(ROOT / "params.yaml"), CATALOG[dataset].info
    return values.model_copy(update={"model": values.model.normalised(info.mean, info.std)})


DEFAULTS = defaults("mnist")


def slow_except(values: Iterable[object], kept: Collection[object]) -> list[object]:
    """Cases for `parametrize`, of which `make test` runs only those that are kept."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.slow) for value in values]


class Outcome(NamedTuple):
    status: int
    output: str
    error: str


class RunStage(Protocol):
    """The fixture `run_stage`."""

    def __call__(self, project: Path, name: str, *options: str) -> Outcome: ...


class RunLenet(Protocol):
    """The fixture `run_lenet`."""

    def __call__(self, project: Path, *arguments: str) -> Outcome: ...


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
    )
    mirrors = [source.variable for entry in CATALOG.values() for source in entry.sources]
    for name in (*mirrors, "DVC_ROOT", "DVC_STAGE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "MAKEFLAGS"):
        os.environ.pop(name, None)
    # Programs inherit that Ctrl-C is ignored, as it is for what a shell runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # With it, each program would compile everything that it imports again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """What computes in this process begins with one thread: xdist's workers use all cores already."""
    torch.set_num_threads(1)


def sh(*command: str, cwd: Path, status: int | None = 0, **environment: str) -> str:
    """Run a program in a project and return its output and errors; it must exit with `status`, unless that is None."""
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, text=True, capture_output=True, timeout=600, check=False
    )
    text = done.stdout + done.stderr
    assert status is None or done.returncode == status, f"{' '.join(command)} exited with {done.returncode}:\n{text}"
    return text


def clone(folder: Path) -> Path:
    """Make a folder a Git repository of what the working tree would commit."""
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


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one of xdist's workers makes, once for all of them: no test may change it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, made = base / name, base / f"{name}.made"
    with (base / f"{name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the whole pipeline ran on `digits`, committed; copy it (`digits_project`) to change anything."""

    def make(folder: Path) -> None:
        clone(folder)
        set_params(folder, *DIGITS)
        sh("dvc", "repro", cwd=folder)
        commit(folder, "a run on digits")
        # It is copied for most tests: one pack is quicker to copy than an object for each file.
        sh("git", "gc", "--quiet", cwd=folder)

    return shared(tmp_path_factory, "run-on-digits", make)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A browser; without one, the test is skipped."""
    from pages import started

    with started() as running:
        yield running


@pytest.fixture(scope="session")
def mnist_network(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Sequential:
    """The default network after one epoch on a third of MNIST's training images."""
    from lenet.data.idx import read_labelled_images
    from lenet.data.info import DIGITS as CLASSES
    from lenet.data.tensors import Dataset, to_tensors
    from lenet.network.lenet import build
    from lenet.network.saved import load_model, save_model
    from lenet.training import loop

    def make(folder: Path) -> None:
        training = to_tensors(*read_labelled_images(MNIST, "train", CLASSES))
        third = Dataset(training.images[:20_000], training.labels[:20_000])
        options = DEFAULTS.train.model_copy(update={"epochs": 1})
        torch.manual_seed(0)
        network = build(DEFAULTS.model)
        for _ in loop.train(network, third, None, options, torch.device("cpu")):
            pass
        save_model(folder / "lenet.pt", DEFAULTS.model, CLASSES, network)

    return load_model(shared(tmp_path_factory, "trained-on-mnist", make) / "lenet.pt")[0].eval()


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


def set_recorded(project: Path, *overrides: str) -> None:
    """Set parameters in params.yaml and, as if the stages had run with them, in dvc.lock."""
    set_params(project, *overrides)
    yaml = YAML(typ="safe", pure=True)
    values, lock = yaml.load(project / "params.yaml"), yaml.load(project / "dvc.lock")
    for stage in lock["stages"].values():
        used = stage["params"]["params.yaml"]
        for section in used.keys() & values.keys():
            used[section] = values[section]
    yaml.dump(lock, project / "dvc.lock")


def set_source(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Replace MNIST's published files or mirrors for one test, in this process."""
    entry = CATALOG["mnist"]
    assert entry.source
    monkeypatch.setitem(CATALOG, "mnist", entry._replace(source=entry.source._replace(**changes)))


def preset_overrides(name: str) -> list[str]:
    """What a preset changes besides the data set, as `set_params` takes it."""
    values = YAML(typ="safe", pure=True).load(ROOT / f"presets/{name}.yaml")
    for key in ("about", "source", "claimed", "data"):
        values.pop(key, None)
    return [f"{section}.{key}={value}" for section, keys in values.items() for key, value in keys.items()]


@pytest.fixture
def _in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run one of the project's programs in this process, so that PyTorch is imported only once."""

    def run(project: Path, program: Callable[[], object], *arguments: str) -> Outcome:
        monkeypatch.chdir(project)
        monkeypatch.setattr(sys, "argv", list(arguments))
        capfd.readouterr()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as stopped:
            program()
        for variable in PORTABLE:
            os.environ.pop(variable, None)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        output, error = capfd.readouterr()
        return Outcome(int(stopped.value.code or 0), output, error)

    return run


@pytest.fixture
def run_stage(_in_process: Callable[..., Outcome]) -> RunStage:
    """Run a stage as `python stages/NAME.py OPTIONS` would."""

    def run(project: Path, name: str, *options: str) -> Outcome:
        def stage() -> None:
            runpy.run_path(str(ROOT / "stages" / f"{name}.py"), run_name="__main__")

        return _in_process(project, stage, f"stages/{name}.py", *options)

    return run


@pytest.fixture
def run_lenet(_in_process: Callable[..., Outcome]) -> RunLenet:
    """Run `lenet ARGUMENTS`."""

    def run(project: Path, *arguments: str) -> Outcome:
        return _in_process(project, main, "lenet", *arguments)

    return run


def assert_refused(outcome: Outcome, *words: str) -> None:
    """Exit status 1 and one line on standard error: `error: ` and, somewhere in it, all of the words."""
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
