"""Many experiments: which they are, what they are called, and running those that have not landed yet.

What is done is not kept here, but read from the repository that experiments land in (`lenet.experiments.origin`). So
the same command, run again after whatever has ended it, runs what is left.
"""

import hashlib
import re
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Protocol

from lenet.cli import Stopped
from lenet.data.catalog import OWN
from lenet.errors import InputError
from lenet.experiments import dvc, origin
from lenet.experiments.git import contents, git
from lenet.experiments.origin import Finished, Origin
from lenet.experiments.presets import Values, committed, differences, overlaid, parse_settings, workspace
from lenet.experiments.progress import Progress
from lenet.experiments.revisions import WORKSPACE
from lenet.experiments.task import STAGES, Outcome, Task, attempt
from lenet.params import Params
from lenet.processor import cores
from lenet.results.statistics import accuracy_interval

FOLDER = Path(".dvc/tmp/lenet")
"""Of this project: the clones in which tasks run on this machine, and the logs of those that have failed."""


class Run(NamedTuple):
    """An experiment with its name, all its values, and the last stage that is run."""

    name: str
    values: Values
    last: str = STAGES[-1]


class Lost(Exception):  # noqa: N818  Not a fault, but a state.
    """The connection to a cluster's scheduler was lost, and with it what is known of the tasks."""


class Engine(Protocol):
    """What runs tasks: this machine (`Here`), or a cluster (`lenet.experiments.cluster.Cluster`).

    All but `reconnect` and `close` may raise `Lost`.
    """

    def submit(self, tasks: Sequence[Task], avoid: str = "") -> bool:
        """Put tasks into the queue, on another host than `avoid`; false if there is no other."""

    def ended(self) -> list[tuple[str, Outcome, str]]:
        """The tasks that have ended since this was last asked: name, outcome, host."""

    def running(self) -> dict[str, str]:
        """The tasks that are running, name -> host."""

    def reconnect(self) -> None:
        """Wait until tasks can be submitted again; all of those before are forgotten."""

    def close(self, cancel: bool) -> None:
        """End the tasks or, where that is possible and `cancel` is false, let them go on."""


class Here:
    """The cores of this machine, up to `jobs` tasks at once."""

    def __init__(self, jobs: int) -> None:
        self._pool = ThreadPoolExecutor(jobs)
        self._tasks: dict[str, Future[Outcome]] = {}
        self._running: set[str] = set()
        self._closed = False

    def submit(self, tasks: Sequence[Task], avoid: str = "") -> bool:
        if not avoid:
            self._tasks |= {task.name: self._pool.submit(self._attempt, task) for task in tasks}
        return not avoid

    def _attempt(self, task: Task) -> Outcome:
        self._running.add(task.name)
        try:
            return attempt(task, FOLDER, lambda: not self._closed)
        except OSError as error:
            return Outcome("failed", 0, message=str(error))
        finally:
            self._running.discard(task.name)

    def ended(self) -> list[tuple[str, Outcome, str]]:
        done = [name for name, task in self._tasks.items() if task.done()]
        return [(name, self._tasks.pop(name).result(), "this machine") for name in done]

    def running(self) -> dict[str, str]:
        return dict.fromkeys(self._running.copy(), "")

    def reconnect(self) -> None: ...

    def close(self, cancel: bool) -> None:  # noqa: ARG002  Without this program nothing goes on.
        self._closed = True
        self._pool.shutdown(cancel_futures=True)


class Sweep:
    """Runs experiments of the last commit: `started` makes one."""

    def __init__(self, place: Origin, engine: Engine) -> None:
        self._place = place
        self._engine = engine

    def run(self, runs: Sequence[Run], replace: bool = False) -> tuple[dict[str, Finished], dict[str, str]]:
        """Run the experiments that have not landed yet, and return those that have, and why others have failed.

        Experiments of this repository that have one of these names, but other parameters or code, are removed first if
        `replace` is true.

        Raises
        ------
        InputError
            There are such experiments, and they are not to be replaced.
        """
        names = [run.name for run in runs]
        have = self._read(self._place.kept(), names)
        for name in _others(runs, have):
            if not replace:
                raise InputError(_taken(name, f"`dvc exp remove {name}`"))
            print(f"{name}: replaced, because parameters or code have changed", flush=True)
            dvc.remove(name)
            del have[name]
        if not self._place.cache:
            have = self._landed(names)
            for name in _others(runs, have):
                remote = f"`dvc exp remove --git-remote {origin.REMOTE} {name}`"
                raise InputError(_taken(name, f"{remote} and `dvc exp remove {name}`"))
        progress = Progress(names)
        with progress.shown():
            for name, experiment in have.items():
                progress.set(name, "done", accuracy=shown_accuracy(experiment), note="landed before")
            left = [run for run in runs if run.name not in have]
            failures = self._work(self._tasks(left), progress) if left else {}
        done = self._landed(names) if left else have
        for name in _others(runs, done):
            del done[name]
            failures[name] = "another experiment of that name, with other parameters or code, has landed meanwhile"
        return done, failures

    def _landed(self, names: Iterable[str]) -> dict[str, Finished]:
        commits = self._place.landed()
        self._place.fetch(name for name in names if name in commits)
        return self._read(commits, names)

    def _read(self, commits: Mapping[str, str], names: Iterable[str]) -> dict[str, Finished]:
        return origin.finished(self._place, {name: commits[name] for name in names if name in commits})

    def _tasks(self, runs: Sequence[Run]) -> dict[str, Task]:
        # Here, and not with the module, because it imports PyTorch.
        from lenet.environment import PACKAGES

        packages = {package: version(package) for package in PACKAGES}
        base = committed()
        author = [git("config", f"user.{key}").stdout.strip() or "lenet" for key in ("name", "email")]
        tasks = {}
        for run in runs:
            overrides = dvc.overrides(differences(run.values, base))
            own = run.values["data"]
            beside = own["dataset"] == OWN and self._place.cache and not Path(own["folder"]).is_absolute()
            images = own["folder"] if beside else ""
            tasks[run.name] = Task(run.name, self._place, overrides, run.last, author, packages, images)
        return tasks

    def _work(self, left: dict[str, Task], progress: Progress) -> dict[str, str]:
        """Run tasks until each has landed or failed, and return why some have failed."""
        failures: dict[str, str] = {}
        retried: set[str] = set()
        submitted = False
        while left:
            try:
                if not submitted:
                    self._engine.submit(list(left.values()))
                    submitted = True
                time.sleep(0.5)
                for name, outcome, host in self._engine.ended():
                    if outcome.state == "stopped":  # It had been cancelled when it was submitted.
                        self._engine.submit([left[name]])
                        continue
                    if outcome.state == "failed":
                        _write_log(name, outcome.log)
                        if name not in retried and self._engine.submit([left[name]], avoid=host):
                            retried.add(name)
                            note = f"failed on {host}, is tried on another host: {outcome.message}"
                            progress.set(name, "waiting", note=note)
                            continue
                        failures[name] = outcome.message
                        progress.set(name, "failed", host, note=outcome.message)
                    elif outcome.state == "there":
                        progress.set(name, "done", host, shown_accuracy(self._landed([name])[name]), "landed before")
                    else:
                        progress.set(name, "done", host, outcome.accuracy)
                    del left[name]
                running = self._engine.running()
                progress.none_but(running)
                for name, host in running.items():
                    if name in left:
                        progress.set(name, "running", host)
            except Lost:
                progress.say("The scheduler is lost; waiting for it ...")
                self._engine.reconnect()
                progress.say("")
                for name, experiment in self._landed(left).items():
                    progress.set(name, "done", accuracy=shown_accuracy(experiment))
                    del left[name]
                submitted = False
        return failures


def _others(runs: Sequence[Run], found: Mapping[str, Finished]) -> list[str]:
    """The runs of whose names there are experiments with other parameters or code."""
    return [run.name for run in runs if run.name in found and not found[run.name].is_of(run.values)]


def _taken(name: str, remove: str) -> str:
    return (
        f"the experiment {name} exists already, with other parameters or code; remove it, {remove}, and run this "
        "again, or choose another name"
    )


def _write_log(name: str, text: str) -> None:
    log = FOLDER / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)


@contextmanager
def started(scheduler: str | None, jobs: int | None) -> Iterator[Sweep]:
    """Make ready to run experiments, `jobs` at once on this machine, or on the cluster of a scheduler.

    Ctrl-C ends those that are running. What ends this program otherwise leaves a cluster at work, and the same command
    finds what it has done.

    Raises
    ------
    InputError
        The cluster, the Git remote or the DVC remote cannot be used.
    """
    if scheduler:
        from lenet.experiments.cluster import Cluster

        if jobs:
            raise InputError(
                "--jobs cannot be used with --scheduler; `lenet worker --jobs` says how many experiments a worker runs"
            )
        place = origin.remote()
        engine: Engine = Cluster(scheduler)
    else:
        place, engine = origin.here(), Here(jobs or cores())
    cancel = False
    try:
        yield Sweep(place, engine)
    except Stopped as stop:
        cancel = stop.args[0] == signal.SIGINT
        raise
    finally:
        engine.close(cancel)


def all_done(found: tuple[dict[str, Finished], dict[str, str]]) -> dict[str, Finished]:
    """What `Sweep.run` returns, if nothing has failed.

    Raises
    ------
    InputError
        Something has.
    """
    done, failures = found
    if failures:
        name, why = next(iter(failures.items()))
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        log = FOLDER / "logs" / f"{name}.log"
        where = f"; {log} has what it printed" if log.exists() else ""
        raise InputError(f"the experiment {name}{more} failed: {why}{where}")
    return done


def shown_accuracy(experiment: Finished) -> float | None:
    """The test accuracy or, of what was not evaluated, the validation accuracy."""
    return experiment.metrics.get("accuracy", experiment.metrics.get("validation_accuracy"))


def grid(settings: Sequence[str]) -> list[Run]:
    """The experiments of these settings, each a parameter with one or several values, as in `dvc exp run --queue -S`.

    Each trains in one thread, unless the settings have train.threads: one on each core is quicker than one after the
    other in several threads.

    Raises
    ------
    InputError
        A setting does not have that form, or a value is not allowed.
    """
    base = overlaid(workspace(), ("one thread each", {"train": {"threads": 1}}))
    runs = [Run(name_of(each), overlaid(base, ("-S", parse_settings(each)))) for each in combinations(settings)]
    check_free([run.name for run in runs])
    return list({run.name: run for run in runs}.values())


def combinations(settings: Sequence[str]) -> list[list[str]]:
    """All combinations of the settings' values, `section.key=value` each.

    Raises
    ------
    InputError
        A setting does not have the form of DVC's, or two have the same key.
    """
    keys = [text.partition("=")[0] for text in settings]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise InputError(f"-S {twice[0]} is given twice; give all of its values at once, for example {twice[0]}=1,2")
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import get_hydra_sweeps  # DVC's own, so that it is the same syntax; it has no public one.
    from hydra.errors import HydraException

    try:
        return [row["params.yaml"] for row in get_hydra_sweeps({"params.yaml": list(settings)})]
    except (DvcException, HydraException) as error:
        raise InputError(f"-S {' -S '.join(settings)}: {str(error).splitlines()[0]}") from None


def name_of(overrides: Sequence[str]) -> str:
    """The name of an experiment: what it changes, and the seed last, so that `lenet compare` knows a group of seeds.

    For example `activation-tanh-learning_rate-0.003-seed0`. Where something does not fit into a name, it ends with a
    hash.
    """
    sections = Params.model_json_schema()["$defs"]
    parts, seed = [], ""
    for override in overrides:
        name, _, value = override.partition("=")
        section, _, key = name.partition(".")
        if name == "train.seed":
            seed = f"-seed{value}"
            continue
        shared = sum(key in each.get("properties", {}) for each in sections.values()) > 1
        parts.append(f"{section}-{key}-{value}" if shared else f"{key}-{value}")
    exact = "-".join(parts) or "params"
    plain = plain_name(exact)[:100]
    digest = hashlib.sha256(exact.encode()).hexdigest()[:8]
    return (plain if plain == exact else f"{plain}-{digest}") + seed


def plain_name(text: str) -> str:
    """A text as a part of a name: what may not be in one becomes a dash."""
    return re.sub("[^A-Za-z0-9_.]+|[.]{2,}", "-", text).strip("-.")


def check_free(names: Sequence[str], option: str = "") -> None:
    """Refuse a name of experiments that Git knows as something else."""
    for name, known in zip(names, contents([f"{name}^{{commit}}" for name in names]), strict=True):
        if known is not None or name == WORKSPACE:
            raise InputError(f"{option}{name} is the name of a revision already; choose another")


def summary(runs: Sequence[Run], done: Mapping[str, Finished]) -> str:
    """The test accuracies of a sweep; of experiments that differ in the seed alone, their mean and deviation."""
    groups: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        if run.name in done:
            groups[re.sub("-seed[0-9]+$", "", run.name)].append(done[run.name].metrics["accuracy"])
    width = max(map(len, groups), default=0)
    lines = []
    for name, accuracies in groups.items():
        line = f"{name:{width}}  test accuracy {statistics.fmean(accuracies):.2%}"
        if len(accuracies) > 1:
            low, high = accuracy_interval(accuracies)
            line += f" ± {100 * statistics.stdev(accuracies):.2f}, {len(accuracies)} seeds"
            line += f", 95% interval of the mean {low:.2%} to {high:.2%}"
        lines.append(line)
    return "\n".join(lines)
