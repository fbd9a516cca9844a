"""One experiment of a commit, run by DVC in a clone of its own: by a worker of a cluster, or on this machine.

A task is a program, which `attempt` starts and watches. It ends, and what it started with it, as soon as nobody holds
its standard input any more: so nothing is left of a task whose worker was killed, or which was cancelled.

What the tasks of a host share is in one folder: copies of Git repositories (`git/`), DVC's cache (`cache/`), which
commits' inputs are in it (`fetched/`), and the clones in which they run (`tasks/`).
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

import psutil

from lenet.errors import InputError, printable
from lenet.experiments.git import git
from lenet.experiments.origin import REMOTE, Origin
from lenet.files import leftovers
from lenet.params import parse_yaml

STAGES = ("download", "preprocess", "train", "evaluate", "plot")


class Task(NamedTuple):
    """An experiment to run.

    Attributes
    ----------
    name : str
    origin : Origin
        The commit that it is an experiment of, and where it lands.
    overrides : list of str
        What it changes of the commit's params.yaml, `section.key=value` each.
    last : str
        The last stage to run. What later ones would write is left out of the experiment.
    author : list of str
        Name and e-mail address of the experiment's commit.
    packages : dict
        Those that compute the results, with the versions that they must have.
    images : str
        The folder of a data set of one's own that is not in Git, relative to the project; empty if there is none.
    """

    name: str
    origin: Origin
    overrides: list[str]
    last: str
    author: list[str]
    packages: dict[str, str]
    images: str

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """What `json.dumps` has made of a task."""
        name, origin, *others = json.loads(text)
        return cls(name, Origin(*origin), *others)


class Outcome(NamedTuple):
    """How a task ended.

    Attributes
    ----------
    state : {"done", "there", "failed", "stopped"}
        Whether it landed, had landed before, has failed, or was ended because it was not wanted any more.
    seconds : float
        How long it took.
    running : float
        How much of that DVC took to run the experiment; 0 if it did not.
    accuracy : float or None
        On the test set or, if it was not evaluated, on the validation set, in [0, 1].
    message : str
        Why it failed, in one line.
    log : str
        What it has printed, if it has failed; the end of it.
    """

    state: str
    seconds: float
    running: float = 0.0
    accuracy: float | None = None
    message: str = ""
    log: str = ""


def attempt(task: Task, folder: Path, is_wanted: Callable[[], bool]) -> Outcome:
    """Run a task in a program of its own, in this host's folder, and end it if it is not wanted any more."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        # A stage's command is `python ...`: make that this Python, even if its environment is not activated. In a
        # session of its own, Ctrl-C does not reach it.
        process = subprocess.Popen(
            [sys.executable, "-m", "lenet.experiments.task", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        )
        assert process.stdin
        assert process.stdout
        with process:
            with contextlib.suppress(BrokenPipeError):  # It says why.
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
            stopped = False
            while process.poll() is None:
                if not stopped and not is_wanted():
                    stopped = True
                    process.stdin.close()
                time.sleep(0.1)
            answer = process.stdout.read()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # If it was killed itself, what it has started is left.
        seconds = time.monotonic() - started
        if stopped:
            return Outcome("stopped", seconds)
        if process.returncode == 0:
            return Outcome(*json.loads(answer))._replace(seconds=seconds)
        log.seek(0)
        text = log.read()[-20_000:]
    why = f"killed by {signal.Signals(-process.returncode).name}" if process.returncode < 0 else _last_words(text)
    return Outcome("failed", seconds, message=printable(why), log=text)


def _last_words(log: str) -> str:
    """The line of a log that says why the program failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for start in ("error: ", "ERROR: "):  # What a stage says says more than what DVC says of it.
        for line in reversed(lines):
            if line.startswith(start):
                return line.removeprefix(start)
    return lines[-1] if lines else "it has not said why"


def main() -> None:
    """Run the task that standard input begins with, and print its outcome. The argument is this host's folder."""
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    task = Task.from_json(sys.stdin.readline())
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    clone = folder / "tasks" / f".{task.name}.{os.getpid()}.part"
    threading.Thread(target=_end_with, args=[sys.stdin, clone], daemon=True).start()
    os.environ |= dict(zip(("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL"), task.author, strict=True))
    os.environ |= dict(zip(("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"), task.author, strict=True))
    os.environ["GIT_TERMINAL_PROMPT"] = "0"
    try:
        outcome = _run(task, folder, clone)
    except InputError as error:
        sys.exit(f"error: {printable(str(error))}")
    except OSError as error:
        sys.exit(f"error: {error.filename or 'this host'}: {error.strerror}")
    finally:
        os.chdir(folder)
        shutil.rmtree(clone, ignore_errors=True)
    print(json.dumps(outcome), file=answer, flush=True)


def _end_with(stream: TextIO, clone: Path) -> NoReturn:
    """Wait for a stream's end, and then end this program and what it has started, and remove the clone."""
    stream.read()
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    # A stage may first finish an import.
    _, alive = psutil.wait_procs(children, timeout=10)
    for child in alive:
        child.kill()
    # Until DVC, in the main thread, writes nothing more there.
    for _ in range(50):
        shutil.rmtree(clone, ignore_errors=True)
        time.sleep(0.1)
        if not clone.exists():
            break
    os._exit(1)


def _run(task: Task, folder: Path, clone: Path) -> Outcome:
    origin = task.origin
    _check_packages(task.packages)
    if origin.landed(task.name):
        return Outcome("there", 0)
    clone.parent.mkdir(parents=True, exist_ok=True)
    for left in leftovers(clone.parent, "*"):
        shutil.rmtree(left, ignore_errors=True)
    _clone(origin, folder, clone)
    os.chdir(clone / origin.folder)
    cache = origin.cache or str(folder / "cache")
    # Its index would outlive the clone elsewhere.
    index = Path(".dvc/tmp/site").absolute()
    Path(".dvc/config.local").write_text(f"[cache]\n    dir = {cache}\n[core]\n    site_cache_dir = {index}\n")
    if origin.cache is None:
        _dvc("config", "core.remote")  # Where there is none, that is found before hours of training.
        _fetch_inputs(folder, origin)
    if task.images:
        _copy(Path(origin.url, origin.folder, task.images), Path(task.images))
    _one_at_a_time(folder / "runs.lock")
    _read_again_what_was_restored()
    partial = task.last != STAGES[-1]
    if partial:
        _remove_outputs(STAGES[STAGES.index(task.last) + 1 :])

    started = time.monotonic()
    settings = [word for override in task.overrides for word in ("-S", override)]
    _dvc("exp", "run", "--name", task.name, *settings, *([task.last] if partial else []))
    running = time.monotonic() - started

    # First the data: an experiment that has landed is not run again.
    if origin.cache is None:
        _dvc("push", *(["--with-deps", task.last] if partial else []))
    _dvc("exp", "push", "--no-cache", REMOTE, task.name)
    return Outcome(_judge(task), 0, running, _accuracy(partial))


def _check_packages(wanted: dict[str, str]) -> None:
    for package, needed in wanted.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "none"
        if found != needed:
            raise InputError(
                f"{package} is {found} on this host and {needed} where the experiment comes from, so that the results "
                "might differ; install requirements.txt here"
            )


def _clone(origin: Origin, folder: Path, clone: Path) -> None:
    """Clone the repository at the commit; of a remote one, each host keeps a copy."""
    source = origin.url
    if origin.cache is None:
        copy = folder / "git" / hashlib.sha256(origin.url.encode()).hexdigest()[:16]
        with _locked(folder / "git.lock"):
            if not (copy / "HEAD").exists():
                _git("init", "--quiet", "--bare", str(copy))
            if git("-C", str(copy), "cat-file", "-e", f"{origin.commit}^{{commit}}").returncode:
                _git("-C", str(copy), "fetch", "--quiet", origin.url, "--prune", "+refs/heads/*:refs/heads/*")
        source = str(copy)
    _git("clone", "--quiet", "--shared", "--no-checkout", "--no-tags", source, str(clone))
    _git("-C", str(clone), "remote", "set-url", REMOTE, origin.url)
    _git("-C", str(clone), "checkout", "--quiet", "--detach", origin.commit)


def _fetch_inputs(folder: Path, origin: Origin) -> None:
    """Bring what training reads from DVC's remote into this host's cache, once for each commit."""
    fetched = folder / "fetched" / origin.commit
    fetched.parent.mkdir(exist_ok=True)
    with _locked(folder / "cache.lock"):
        if not fetched.exists():
            with contextlib.suppress(SystemExit):  # What the remote does not have, the stages make.
                _dvc("fetch", "preprocess", "--with-deps")
                fetched.touch()


def _copy(source: Path, folder: Path) -> None:
    """Give the clone what a folder beside it has, and Git does not; the experiment's commit will not have it either."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [path for path in source.iterdir() if not (folder / path.name).exists()]
    for path in missing:  # Not symbolically: DVC would not look into it.
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copy2(path, folder / path.name)
    exclude = Path(git("rev-parse", "--git-path", "info/exclude").stdout.strip())
    exclude.parent.mkdir(exist_ok=True)
    with exclude.open("a") as file:
        file.writelines(f"{folder.as_posix()}/{path.name}\n" for path in missing)


def _one_at_a_time(lock: Path) -> None:
    """Let the tasks of a host use DVC's run cache one after the other.

    DVC writes an entry there under a temporary name, in a folder where another DVC looks for the newest file: that one
    takes it for a damaged entry and removes it, and the first one fails.
    """
    from dvc.stage.cache import StageCache

    def locked(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with _locked(lock):
                return method(*arguments, **options)

        return call

    for name in ("save", "_load"):  # Neither calls the other.
        setattr(StageCache, name, locked(getattr(StageCache, name)))


def _read_again_what_was_restored() -> None:
    """Let DVC read dvc.lock again when a stage's outputs have come from its cache, as it does when a stage runs.

    Otherwise it would look for the folders that the commit's dvc.lock names, which the cache lacks in a clone where
    nobody ran `dvc repro`, and fail.
    """
    from dvc.stage.cache import StageCache

    restore = StageCache.restore

    def restored(cache: StageCache, *arguments: Any, **options: Any) -> None:
        restore(cache, *arguments, **options)
        cache.repo._reset()

    StageCache.restore = restored


def _remove_outputs(stages: tuple[str, ...]) -> None:
    """Remove what these stages have written, in the commit: it is not of this experiment."""
    lock = parse_yaml(Path("dvc.lock").read_bytes(), "dvc.lock")
    for stage in stages:
        for output in lock["stages"].get(stage, {}).get("outs", []):  # type: ignore[index]
            Path(output["path"]).unlink(missing_ok=True)


def _judge(task: Task) -> str:
    """Whether the experiment has landed, or another host's, which must have the same results."""
    reference = task.origin.reference(task.name)
    landed = task.origin.landed(task.name)
    if task.name not in landed:
        raise InputError(f"the experiment did not reach {task.origin.url}; the log says why")
    ours = git("rev-parse", reference).stdout.strip()
    if landed[task.name] == ours:
        return "done"
    _git("fetch", "--quiet", REMOTE, reference)
    if git("diff", "--quiet", ours, "FETCH_HEAD").returncode:
        raise InputError(f"the experiment was run twice, and its results differ: {ours} and {landed[task.name]}")
    return "there"


def _accuracy(partial: bool) -> float | None:
    """What the table of the experiments shows."""
    file, name = ("train", "validation_accuracy") if partial else ("test", "accuracy")
    found: float | None = json.loads(Path(f"metrics/{file}.json").read_text()).get(name)
    return found


def _dvc(*arguments: str) -> None:
    """Run a command of DVC's in this process, which saves its start: a second for each. It says itself why it fails."""
    from dvc.cli import main as dvc

    print("> dvc", *arguments, flush=True)
    if dvc(list(arguments)):
        sys.exit(1)


def _git(*arguments: str) -> None:
    done = git(*arguments)
    if done.returncode:
        print(done.stderr, file=sys.stderr, flush=True)
        raise InputError(done.stderr.strip().splitlines()[-1].removeprefix("fatal: "))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let the tasks of a host do something one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main()
