"""What does a cluster cost, and how far does it go? `python benchmarks/cluster.py PART`.

The parts are

overhead   what a task takes on a host that has run one before, with Git and DVC over SSH (on this machine), what of it
           is not `dvc exp run`, and what `dvc exp run` takes alone, in turn, in a fresh clone beside a warm cache;
           four minutes, and less than ten, after which the SSH server ends
zoo        `lenet zoo` on `digits` with an empty cache: one run after the other, two at once, and on a cluster of two
           hosts (of this machine) with one at once each; ten minutes
scheduler  10,000 tasks that sleep, for 0 s and for 0.5 s, through a sweep on 100 workers of four processes: tasks a
           second, the scheduler's time, and the memory of the scheduler and of the sweep; ten minutes
refs       what Git, the sweep and DVC take where 0, 1,000 and 10,000 experiments have landed, over SSH (on this
           machine); DVC's lists are given up after 30 s; ten minutes

A part replaces its own rows of benchmarks/cluster.csv, median, least and greatest, and prints them. It has a home of
its own, and starts and ends its servers, which listen on this machine's own addresses alone. Overhead and refs need
OpenSSH's server. Run nothing else meanwhile.

On two cores of an AMD EPYC a task takes about 2 s more than `dvc exp run` alone, and the scheduler passes on 305 tasks
a second. With 10,000 experiments a push takes 0.9 s instead of 0.4 s, and a sweep's look at all of them 72 s.
"""

import csv
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from asyncio import gather
from asyncio import run as run_loop
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any
from unittest.mock import patch

import psutil
import torch
import typer
from distributed import Worker
from rounds import spread

from lenet.environment import PACKAGES, environment
from lenet.experiments import cluster, origin, sweep, task
from lenet.experiments.cluster import Cluster
from lenet.experiments.origin import Origin
from lenet.experiments.progress import Progress
from lenet.experiments.sweep import Here, Sweep
from lenet.experiments.task import Outcome, Task
from lenet.files import write_csv
from lenet.processor import cores

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import DIGITS, clone, commit, set_params  # noqa: E402
from hosts import ssh_server  # noqa: E402

Row = tuple[str, str, Sequence[float]]
"""What, its unit, and the values of several rounds; none if it took longer than `PATIENCE`."""

PARTS = ("overhead", "zoo", "scheduler", "refs")
ROUNDS = 3
PROCESSES = 4
"""Of the workers that sleep."""
PROGRAMS = ("scheduler", "sweep")
"""Whose memory is measured."""
PATIENCE = 30.0
"""Seconds that DVC may take to list experiments."""
LIMIT = 3600
"""Seconds after which any program is ended."""

Table = Annotated[Path, typer.Option(help="Where the rows go.")]
CSV = Path(__file__).with_suffix(".csv")


def run(*command: str | Path, cwd: Path, text: str | None = None, limit: float = LIMIT) -> float:
    """How long a program takes; if it fails, so does this one."""
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=cwd, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} failed:\n{done.stdout}")
    return seconds


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, signal.alarm, (LIMIT,)) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def served(log: Path, says: str, *command: str, **environment: str) -> Iterator[psutil.Process]:
    """A program in the background that has said something; it ends with the context, and in any case at some time."""
    with log.open("w") as file:
        limited = ["timeout", "--kill-after=10", str(LIMIT), *command]
        program = psutil.Popen(limited, cwd=log.parent, env=os.environ | environment, stdout=file, stderr=file)
    try:
        while says not in log.read_text():
            assert program.poll() is None, log.read_text()
            time.sleep(0.1)
        yield program.children()[0]
    finally:
        if program.poll() is None:
            program.terminate()
            program.wait(timeout=60)


@contextmanager
def scheduler_in(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A scheduler: its address and its process."""
    log = folder / "scheduler.log"
    with served(log, "scheduler: ", "lenet", "scheduler", "--port", "0") as process:
        yield re.findall("^scheduler: (.*)", log.read_text(), re.M)[0], process


@contextmanager
def worker_in(folder: Path, address: str, number: int) -> Iterator[Path]:
    """A worker of a scheduler, the host 127.0.0.NUMBER, with an empty folder; that folder."""
    home = folder / f"host-{number}"
    home.mkdir()
    command = ["lenet", "worker", address, "--host", f"127.0.0.{number}", "--jobs", "1"]
    with served(folder / f"host-{number}.log", "worker: tcp://", *command, LENET_FOLDER=str(home)):
        yield home


@contextmanager
def workplace() -> Iterator[Path]:
    """An empty folder, and the environment that programs are started in: this Python's, with a home of its own."""
    # Modules are to be compiled once, as they are for users, not at each start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="lenet-cluster-") as name:
        home = Path(name, "home")
        home.mkdir()
        (home / ".gitconfig").write_text("[user]\n\tname = A tester\n\temail = tester@example.org\n")
        os.environ |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
        yield Path(name)
        os.chdir(ROOT)


def with_remotes(project: Path, host: str = "", scheme: str = "") -> Path:
    """Give a project a Git remote, with its commit, and a DVC remote, both beside it; the Git repository."""
    remote = project.parent / f"{project.name}.git"
    run("git", "init", "--quiet", "--bare", "--initial-branch", "main", remote, cwd=project)
    run("git", "remote", "add", "origin", f"{host}{remote}", cwd=project)
    storage = f"{scheme}{project.parent}/{project.name}.storage"
    run("dvc", "remote", "add", "--quiet", "--default", "storage", storage, cwd=project)
    commit(project, "the remotes")
    run("git", "push", "--quiet", "origin", "HEAD:main", cwd=project)
    return remote


def done(engine: Cluster, tasks: Sequence[Task]) -> list[Outcome]:
    """Run tasks to their ends."""
    engine.submit(tasks)
    found: list[Outcome] = []
    while len(found) < len(tasks):
        time.sleep(0.1)
        found += [outcome for _, outcome, _ in engine.ended()]
    for outcome in found:
        assert outcome.state == "done", outcome.log
    return found


def overhead(
    seeds: Annotated[int, typer.Option(min=1, help="How many tasks are timed.")] = 8, table: Table = CSV
) -> None:
    """What a task costs beyond `dvc exp run`."""
    with workplace() as folder, ExitStack() as stack:
        server = stack.enter_context(ssh_server(folder / "ssh"))
        os.environ |= server.home(folder / "me")
        project = clone(folder / "project")
        set_params(project, *DIGITS)
        run("dvc", "repro", cwd=project)
        commit(project, "a run on digits")
        with_remotes(project, "store:", "ssh://store")
        run("dvc", "push", cwd=project)
        address, _ = stack.enter_context(scheduler_in(folder))
        host = stack.enter_context(worker_in(folder, address, 2))

        os.chdir(project)
        engine = Cluster(address)
        stack.callback(engine.close, cancel=True)
        runs = sweep.grid([f"train.seed=range(0,{seeds + 1 + ROUNDS})"])
        tasks = list(Sweep(origin.remote(), engine)._tasks(runs).values())
        [first] = done(engine, tasks[:1])
        outcomes, without = [], []
        for each in tasks[1 : seeds + 1]:
            outcomes += done(engine, [each])
            without.append(run_alone(project, each))
        pieces = defaultdict(list)
        for each in tasks[seeds + 1 :]:
            for name, seconds in in_pieces(each, host).items():
                pieces[name].append(seconds)
    taken = [outcome.seconds for outcome in outcomes]
    rows: list[Row] = [
        ("the first task on a host", "s", [first.seconds]),
        ("a task", "s", taken),
        ("of it dvc exp run", "s", [outcome.running for outcome in outcomes]),
        ("of it the rest", "s", [outcome.seconds - outcome.running for outcome in outcomes]),
        *((f"of the rest, {name}", "s", values) for name, values in pieces.items()),
        ("dvc exp run alone, in a fresh clone", "s", without),
        ("a task, more than that", "s", [one - two for one, two in zip(taken, without, strict=True)]),
    ]
    write("overhead", rows, table)


def run_alone(project: Path, each: Task) -> float:
    """How long `dvc exp run` takes for what a task is to do, in a clone that shares the project's cache."""
    fresh = project.parent / each.name
    run("git", "clone", "--quiet", project, fresh, cwd=project)
    settings = f"[cache]\n    dir = {project}/.dvc/cache\n[core]\n    site_cache_dir = {fresh}/.dvc/tmp/site\n"
    (fresh / ".dvc/config.local").write_text(settings)
    changes = [word for override in each.overrides for word in ("-S", override)]
    return run("dvc", "exp", "run", "--name", each.name, *changes, cwd=fresh)


def in_pieces(each: Task, host: Path) -> dict[str, float]:
    """The seconds of what a task does in a host's folder besides `dvc exp run`, by what it prints."""
    names = {
        "> dvc exp run": "starting, asking what has landed, the clone",
        "> dvc push": "",
        "> dvc exp push": "dvc push",
    }
    spent = {}
    command = [sys.executable, "-m", "lenet.experiments.task", str(host)]
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(json.dumps(each) + "\n")
        process.stdin.flush()
        lines = []
        for line in process.stderr:
            lines.append(line)
            for start, name in names.items():
                if line.startswith(start):
                    now = time.perf_counter()
                    spent[name] = now - began
                    began = now
        assert process.wait() == 0, "".join(lines)
    spent["dvc exp push, asking again, the end"] = time.perf_counter() - began
    del spent[""]
    return spent


def zoo(
    seeds: Annotated[int, typer.Option(min=3, help="Of each preset.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of each run.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 1,
    table: Table = CSV,
) -> None:
    """`lenet zoo` one after the other, two at once and on a cluster."""
    # As in the Makefile.
    settings = ["data.dataset=digits", "preprocess.validation_size=143", "train.batch_size=32"]
    command = ["lenet", "zoo", "--seeds", str(seeds)]
    command += [word for setting in [*settings, f"train.epochs={epochs}"] for word in ("--set", setting)]
    ways: dict[str, list[float]] = {"--jobs 1": [], "--jobs 2": [], "two workers, --jobs 1 each": []}
    for _ in range(rounds):
        for way, times in ways.items():
            with workplace() as folder, ExitStack() as stack:
                project = clone(folder / "project")
                if way.startswith("--jobs"):
                    times.append(run(*command, *way.split(), cwd=project))
                    continue
                with_remotes(project)
                address, _ = stack.enter_context(scheduler_in(folder))
                for number in (2, 3):
                    stack.enter_context(worker_in(folder, address, number))
                times.append(run(*command, "--scheduler", address, cwd=project))
    runs = f"lenet zoo on digits, {seeds} seeds, {epochs} epochs"
    rows: list[Row] = [(f"{runs}, {way}", "s", times) for way, times in ways.items()]
    one, two, hosts = ways.values()
    ratios = {"--jobs 1 to --jobs 2": (one, two), "--jobs 1 to two workers": (one, hosts)}
    ratios["two workers to --jobs 2"] = (hosts, two)
    for name, (slow, quick) in ratios.items():
        rows.append((f"{runs}, {name}", "times", [a / b for a, b in zip(slow, quick, strict=True)]))
    write("zoo", rows, table)


def scheduler(
    tasks: Annotated[int, typer.Option(min=1, help="How many.")] = 10_000,
    workers: Annotated[int, typer.Option(min=PROCESSES, help="How many, of one thread each.")] = 100,
    sleep: Annotated[float, typer.Option(min=0.001, help="Seconds of a task, if they are not 0.")] = 0.5,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = ROUNDS,
    table: Table = CSV,
) -> None:
    """Many tasks that sleep, on many workers."""
    found: dict[float, list[list[float]]] = {0.0: [], sleep: []}
    for _ in range(rounds):
        for seconds, results in found.items():
            results.append(asleep(tasks, workers, seconds))
    rows: list[Row] = []
    for seconds, results in found.items():
        taken, processor, *memory = zip(*results, strict=True)
        what = f"{tasks} tasks of {seconds:g} s on {workers} workers"
        rows.append((f"{what}, tasks", "1/s", [tasks / each for each in taken]))
        rows.append((f"{what}, time for each", "ms", [1e3 * each / tasks for each in taken]))
        rows.append((f"{what}, the scheduler's processor time for each", "ms", [1e3 * x / tasks for x in processor]))
        if seconds:
            busy = [100 * tasks * seconds / workers / each for each in taken]
            rows.append((f"{what}, how much of the time a worker works", "%", busy))
        names = [f"the {whose}'s {which}" for which in ("memory at first", "peak memory") for whose in PROGRAMS]
        rows += [(f"{what}, {name}", "MB", values) for name, values in zip(names, memory, strict=True)]
    write("scheduler", rows, table)


def asleep(tasks: int, workers: int, seconds: float) -> list[float]:
    """What `swept` returns, with a scheduler and workers of its own."""
    with workplace() as folder, scheduler_in(folder) as (address, process):
        context = get_context("spawn")
        shares = [len(range(number, workers, PROCESSES)) for number in range(PROCESSES)]
        running = [context.Process(target=sleepers, args=(address, share, seconds, folder)) for share in shares]
        for each in running:
            each.start()
        try:
            figures: list[float] = alone(swept, address, tasks, workers, process.pid, folder)
        finally:
            for each in running:
                each.terminate()
                each.join()
    return figures


def sleepers(address: str, count: int, seconds: float, folder: Path) -> None:
    """Workers as `lenet worker` makes them, but what they run only sleeps."""

    def attempt(*_: object) -> Outcome:
        time.sleep(seconds)
        return Outcome("done", seconds, seconds, 0.99)

    async def work() -> None:
        settings: dict[str, Any] = {"nthreads": 1, "memory_limit": 0, "dashboard": False}
        settings |= {"host": "127.0.0.1", "local_directory": str(folder / "dask")}
        each = [Worker(address, **settings) for _ in range(count)]
        await gather(*each)
        await gather(*(worker.finished() for worker in each))

    signal.alarm(LIMIT)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # It would say of each that it is there.
    with patch.object(cluster, "attempt", attempt):
        run_loop(work())


def swept(address: str, count: int, workers: int, scheduler: int, folder: Path) -> list[float]:
    """Run tasks as a sweep does: its seconds, the scheduler's processor time, and the memory of both, first and most.

    `scheduler` is its process.
    """
    os.chdir(folder)
    engine = Cluster(address)
    engine._client.wait_for_workers(workers, timeout=300)
    place = Origin("ssh://git@example.org/lenet.git", 40 * "0", "", None)
    machinery = Sweep(place, engine)
    runs = [f"activation-relu-learning_rate-0.01-seed{number}" for number in range(count)]
    overrides = ["model.activation=relu", "train.learning_rate=0.01", "train.threads=1"]
    author = ["A tester", "tester@example.org"]
    packages = dict.fromkeys(PACKAGES, "1.0.0")
    tasks = {name: Task(name, place, overrides, task.STAGES[-1], author, packages, "") for name in runs}
    process = psutil.Process(scheduler)
    before = sum(process.cpu_times()[:2])
    with peaks(process, psutil.Process()) as memory, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        first = memory.copy()
        started = time.perf_counter()
        failures = machinery._work(tasks, Progress(runs))
        seconds = time.perf_counter() - started
    assert not failures, failures
    processor = sum(process.cpu_times()[:2]) - before
    engine.close(cancel=True)
    return [seconds, processor, *first, *memory]


@contextmanager
def peaks(*processes: psutil.Process) -> Iterator[list[float]]:
    """The most memory that each of these processes has had within the context, in MB."""
    most = [process.memory_info().rss / 1e6 for process in processes]
    ended = Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for number, process in enumerate(processes):
                most[number] = max(most[number], process.memory_info().rss / 1e6)

    watching = Thread(target=watch)
    watching.start()
    try:
        yield most
    finally:
        ended.set()
        watching.join()


def refs(
    counts: Annotated[str, typer.Option(help="How many experiments have landed.")] = "0,1000,10000",
    table: Table = CSV,
) -> None:
    """What takes longer, the more experiments have landed."""
    rows: list[Row] = []
    for count in map(int, counts.split(",")):
        with workplace() as folder, ssh_server(folder / "ssh") as server:
            os.environ |= server.home(folder / "me")
            rows += [(f"{count} experiments, {what}", unit, values) for what, unit, values in landed(folder, count)]
    write("refs", rows, table)


def landed(folder: Path, count: int) -> Iterator[Row]:
    """What Git, a sweep and DVC take where so many experiments of a commit have landed."""
    project = clone(folder / "project")
    remote = with_remotes(project, "store:")
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=project, text=True).strip()
    place = Origin(f"store:{remote}", head, "", None)
    names = [f"params-seed{number}" for number in range(count)]
    record(remote, project, place, names)

    def asked(name: str) -> list[float]:
        return [run("git", "ls-remote", "--quiet", place.url, place.reference(name), cwd=folder) for _ in range(ROUNDS)]

    yield "git ls-remote of one", "s", asked("params-seed0")
    yield "git ls-remote of all of the commit", "s", asked("*")

    # A task has a clone of its own, and nothing in it but its own experiment.
    pushing = folder / "task"
    run("git", "clone", "--quiet", place.url, pushing, cwd=folder)
    own = {way: [f"{way}{number}" for number in range(ROUNDS)] for way in ("git", "dvc")}
    record(pushing, project, place, [name for group in own.values() for name in group])
    by_git = [run("git", "push", "--quiet", "origin", place.reference(name), cwd=pushing) for name in own["git"]]
    by_dvc = [run("dvc", "exp", "push", "--no-cache", "origin", name, cwd=pushing) for name in own["dvc"]]
    yield "git push of one more", "s", by_git
    yield "dvc exp push of one more", "s", by_dvc

    first, read = alone(collected, project, place, names)
    yield "a sweep's look at all, which fetches them", "s", [first]
    yield "of it reading them", "s", [read]
    for command in ("list", "show"):
        for when in ("", ", again"):
            try:
                taken = [run("dvc", "exp", command, cwd=project, limit=PATIENCE)]
            except subprocess.TimeoutExpired:
                taken = []
            yield f"dvc exp {command}{when}", "s", taken


def record(repository: Path, project: Path, place: Origin, names: Iterable[str]) -> None:
    """Make experiments in a repository that has the commit, each with parameters and metrics of its own."""
    params = (project / "params.yaml").read_text()
    paths = ("metrics/train.json", "metrics/test.json")
    metrics = {path: json.loads((project / path).read_text()) for path in paths}

    def data(text: str) -> str:
        return f"data {len(text.encode())}\n{text}\n"

    stream = []
    for number, name in enumerate(names):
        # The second seed is the training's.
        before, middle, after = params.split("\n  seed: 0", 2)
        files = {"params.yaml": f"{before}\n  seed: 0{middle}\n  seed: {number}{after}"}
        for path, values in metrics.items():
            files[path] = json.dumps(values | {"loss": number}, indent=2)
        stream.append(f"commit {place.reference(name)}\ncommitter A tester <tester@example.org> {number} +0000\n")
        stream.append(f"{data(name)}from {place.commit}\n")
        stream += [f"M 100644 inline {path}\n{data(text)}" for path, text in files.items()]
    run("git", "fast-import", "--quiet", cwd=repository, text="".join(stream))


def collected(project: Path, place: Origin, names: Sequence[str]) -> tuple[float, float]:
    """The seconds of what a sweep does before and after its runs, and those of reading alone."""
    os.chdir(project)
    machinery = Sweep(place, Here(1))
    started = time.perf_counter()
    found = machinery._landed(names)
    between = time.perf_counter()
    assert len(found) == len(names)
    origin.finished(place, {name: experiment.commit for name, experiment in found.items()})
    return between - started, time.perf_counter() - between


def write(part: str, rows: Sequence[Row], table: Path) -> None:
    """Print a part's rows, and put them into the table instead of those that it has of this part."""
    machine = f"{environment(torch.device('cpu'), 'portable')['processor']}, {cores()} cores"
    machine += f", {subprocess.check_output(['git', 'version'], text=True).strip()}"
    machine += "".join(f", {package} {version(package)}" for package in ("dvc", "distributed"))
    kept = list(csv.reader(table.read_text().splitlines()))[1:] if table.exists() else []
    made: list[Sequence[object]] = [row for row in kept if not row[0].startswith(f"{part}: ")]
    width = max(len(what) for what, _, _ in rows)
    for what, unit, values in rows:
        figures = spread(values) if values else (f"over {PATIENCE:g}", "", "")
        numbers = "{:.3g} {unit} ({:.3g} to {:.3g})" if values else "{} {unit}"
        print(f"{what:{width}}  {numbers.format(*figures, unit=unit)}")
        made.append([f"{part}: {what}", *figures, unit, machine])
    made.sort(key=lambda row: PARTS.index(str(row[0]).partition(":")[0]))
    write_csv(table, ["what", "value", "least", "most", "unit", "machine"], made)


def main() -> None:
    """Measure one part."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that servers are ended.
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    for part in (overhead, zoo, scheduler, refs):
        app.command()(part)
    app()


if __name__ == "__main__":
    main()
