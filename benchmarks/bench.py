"""How fast the pipeline is, beside what people run today, on this machine: `make bench`, `make bench QUICK=1`.

Every figure is of one run of this program, and every comparison is made in turn, one beside the other, because machines
are uneven: read the ratios. It clones what is committed into a temporary folder, takes MNIST from MNIST_MIRROR or
data/downloads, and writes benchmarks/results.csv and benchmarks/results.png. With QUICK it takes fewer images and runs,
leaves PyTorch's example out, and writes nothing.
"""

import lenet.processor  # noqa: F401  Its settings have to be there before PyTorch is imported.

# isort: split
import argparse
import gzip
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from ruamel.yaml import YAML

from lenet.data.mnist import RESOURCES
from lenet.data.tensors import Dataset, load_dataset, save_dataset
from lenet.environment import be_deterministic, environment
from lenet.experiments.presets import Values, load_preset, overlaid, workspace
from lenet.files import write_bytes, write_csv
from lenet.network.backend import predict
from lenet.network.lenet import build
from lenet.network.saved import load_model
from lenet.params import Params
from lenet.results.evaluation import evaluate
from lenet.results.figures import BLUE, ORANGE, to_png
from lenet.training import loop

HERE = Path(__file__).parent
STAGES = ("download", "preprocess", "train", "evaluate", "plot")
TARGET = 0.99
"""Test accuracy, to which both networks are trained."""


class Row(NamedTuple):
    """A line of results.csv: median, least and greatest of `runs`; `ratio` is theirs to ours, pair by pair."""

    what: str
    unit: str
    ours: float
    ours_least: float
    ours_most: float
    against: str = ""
    theirs: float = float("nan")
    theirs_least: float = float("nan")
    theirs_most: float = float("nan")
    ratio: float = float("nan")
    ratio_least: float = float("nan")
    ratio_most: float = float("nan")
    runs: int = 1

    def __str__(self) -> str:
        text = (
            f"{self.what}: {self.ours:.4g} {self.unit} ({self.ours_least:.4g} to {self.ours_most:.4g}, n={self.runs})"
        )
        if self.against:
            text += f"; {self.against}: {self.theirs:.4g} ({self.theirs_least:.4g} to {self.theirs_most:.4g}); "
            text += f"ratio {self.ratio:.2f} ({self.ratio_least:.2f} to {self.ratio_most:.2f})"
        return text


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def alone(what: str, unit: str, values: Sequence[float]) -> Row:
    return Row(what, unit, *spread(values), runs=len(values))


def paired(what: str, against: str, ours: Sequence[float], theirs: Sequence[float], unit: str = "s") -> Row:
    """Compare lists of the same length pair by pair; of a shorter list the median stands for what is missing."""
    longer = max(len(ours), len(theirs))
    one = [*ours, *(longer - len(ours)) * [statistics.median(ours)]]
    two = [*theirs, *(longer - len(theirs)) * [statistics.median(theirs)]]
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    return Row(what, unit, *spread(ours), against, *spread(theirs), *spread(ratios), runs=len(ours))


class Finished(NamedTuple):
    seconds: float
    memory: float
    """The most that its process had resident at once, in MB."""
    output: str


def run(*command: str | Path, cwd: Path) -> Finished:
    """Run a program to its end; its failure is this program's."""
    # Modules are compiled once, as for users, not in each start.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.NamedTemporaryFile("r") as report:
        measured = [sys.executable, "-I", HERE / "measured.py", report.name, *command]
        done = subprocess.run(
            measured, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"error: {' '.join(map(str, command))} failed:\n{done.stdout}")
        seconds, memory = map(float, report.read().split())
    return Finished(seconds, memory, done.stdout)


def in_turn(times: int, ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[list[float], list[float]]:
    pairs = [(ours(), theirs()) for _ in range(times)]
    return [one for one, _ in pairs], [two for _, two in pairs]


class Quiet(SimpleHTTPRequestHandler):
    """Says nothing, not even when a client asks for a file and then does not want it, as torchvision does."""

    def log_message(self, *_: Any) -> None:
        pass

    def copyfile(self, *files: Any) -> None:
        with suppress(ConnectionError):
            super().copyfile(*files)


class Bench:
    """The work folder: a clone of what is committed, a mirror of MNIST on this machine, what the parts need of both."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.images = 10_000 if quick else 60_000
        self.mirror = folder / "mirror"
        self.mirror.mkdir()
        source = Path(os.environ.get("MNIST_MIRROR") or "data/downloads")
        for resource in RESOURCES:
            if not (source / resource.name).exists():
                sys.exit(f"error: {source / resource.name}: no such file; `dvc repro` downloads it")
            shutil.copy(source / resource.name, self.mirror)
        # Over HTTP from this machine itself: torchvision downloads in no other way.
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(self.mirror)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        os.environ["MNIST_MIRROR"] = self.url
        self.clone = self.new_clone("clone", {})
        self.tanh = overlaid(workspace(), ("lenet5-tanh", load_preset("lenet5-tanh").changes))

    def new_clone(self, name: str, changes: Values) -> Path:
        """A fresh clone with these parameters, nothing in its cache."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        run("git", "clone", "--quiet", Path.cwd(), path, cwd=self.folder)
        self.set_params(path, changes)
        return path

    def set_params(self, project: Path, changes: Values) -> None:
        values = overlaid(workspace(), ("the benchmark", changes))
        with (project / "params.yaml").open("wb") as file:
            YAML().dump(values, file)

    def stage(self, project: Path, name: str, *options: str) -> Finished:
        return run(sys.executable, f"stages/{name}.py", *options, cwd=project)

    def raw_for_torchvision(self, name: str) -> Path:
        folder = self.folder / name
        raw = folder / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for resource in RESOURCES:
            (raw / resource.name.removesuffix(".gz")).write_bytes(
                gzip.decompress((self.mirror / resource.name).read_bytes())
            )
        return folder

    def first(self, project: Path, count: int) -> None:
        """Leave no more than so many images in a project's training file."""
        path = project / "data/processed/training.pt"
        training_set = load_dataset(path)
        save_dataset(path, Dataset(*(tensor[:count].clone() for tensor in training_set)))


def trained_seconds(output: str) -> float:
    """What the last epoch's line of the stage says: seconds since the training began."""
    return float(re.findall(r"\(([\d.]+) s\)", output)[-1])


def epoch(bench: Bench) -> list[Row]:
    project = bench.new_clone("epoch", bench.tanh | {"train": bench.tanh["train"] | {"epochs": 1}})
    for name in ("download", "preprocess"):
        bench.stage(project, name)
    bench.first(project, bench.images)
    data = bench.raw_for_torchvision("epoch-torchvision")
    script = [sys.executable, HERE / "conventional.py", data, "--epochs", "1", "--images", str(bench.images)]

    def theirs() -> float:
        return float(re.findall(r"([\d.]+) s$", run(*script, cwd=bench.folder).output, re.MULTILINE)[0])

    ours = lambda: trained_seconds(bench.stage(project, "train").output)  # noqa: E731
    return [
        paired(
            "one epoch of lenet5-tanh, the first", "conventional loop", *in_turn(1 if bench.quick else 3, ours, theirs)
        )
    ]


def whole_job(bench: Bench) -> list[Row]:
    epochs = 1 if bench.quick else 10

    def ours() -> float:
        project = bench.new_clone("job", bench.tanh | {"train": bench.tanh["train"] | {"epochs": epochs}})
        return run("dvc", "repro", cwd=project).seconds

    def theirs() -> float:
        folder = bench.folder / "job-torchvision"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        script = [sys.executable, HERE / "conventional.py", folder, "--epochs", str(epochs)]
        return run(*script, "--mirror", bench.url, cwd=bench.folder).seconds

    what = f"the whole job with lenet5-tanh, {epochs} epochs, dvc repro"
    return [paired(what, "conventional script", *in_turn(1 if bench.quick else 2, ours, theirs))]


def to_target(bench: Bench) -> list[Row]:
    """Seconds of training, evaluation excepted, until an epoch ends with the target on the test set."""
    values = Params.model_validate(workspace())
    data = bench.clone / "data/processed"
    training_set, validation, test = (load_dataset(data / f"{name}.pt") for name in ("training", "validation", "test"))

    def seconds(seed: int) -> float:
        options = values.train.model_copy(update={"seed": seed})
        torch.manual_seed(loop.generator(seed, epoch=0).initial_seed())
        network = build(values.model)
        spent, started = 0.0, time.perf_counter()
        for row, _ in loop.train(network, training_set, validation, options, torch.device("cpu")):
            spent += time.perf_counter() - started
            accuracy = (predict(network, test.images, 250).argmax(dim=1) == test.labels).float().mean().item()
            if accuracy >= TARGET:
                print(f"  seed {seed}: {accuracy:.2%} after {row.epoch} epochs, {spent:.1f} s", flush=True)
                return spent
            started = time.perf_counter()
        print(f"  seed {seed}: no epoch ended with {TARGET:.1%}, the last with {accuracy:.2%}", flush=True)
        return float("inf")

    ours = [seconds(seed) for seed in range(1 if bench.quick else 5)]
    what = "training to 99.0% test accuracy, params.yaml"
    if bench.quick:
        return [alone(what, "s", ours)]
    data = bench.raw_for_torchvision("example")
    lines = run(sys.executable, HERE / "pytorch_example.py", data, cwd=bench.folder).output.splitlines()
    print(*(f"  PyTorch's example, epoch, s, accuracy: {line}" for line in lines), sep="\n", flush=True)
    number, spent, accuracy = lines[-1].split()
    against = f"PyTorch's example ({number} epochs, {float(accuracy):.2%})"
    return [paired(what, against, ours, [float(spent)])]


def overheads(bench: Bench) -> list[Row]:
    """What `dvc repro` costs besides training, and each stage's own time and memory."""
    torch_alone = run(sys.executable, "-c", "import torch", cwd=bench.folder).memory
    rest, stages = [], {name: ([], []) for name in STAGES}  # type: ignore[var-annotated]
    times = 1 if bench.quick else 3
    for number in range(times):
        project = bench.new_clone(f"repro{number}", {"train": {"epochs": 1}})
        done = run("dvc", "repro", cwd=project)
        rest.append(done.seconds - trained_seconds(done.output))
        for name in STAGES:
            if name == "download":
                shutil.rmtree(project / "data")
            done = bench.stage(project, name)
            spent = trained_seconds(done.output) if name == "train" else 0.0
            stages[name][0].append(done.seconds - spent)
            stages[name][1].append(done.memory)
    rows = [alone("dvc repro of all five stages, training excepted", "s", rest)]
    rows += [
        alone(f"{name} alone{', training excepted' if name == 'train' else ''}", "s", stages[name][0])
        for name in STAGES
    ]
    processed = sum(path.stat().st_size for path in (project / "data/processed").iterdir()) / 1e6
    bound = torch_alone + 3 * processed
    for name in STAGES:
        against = f"import torch ({torch_alone:.0f} MB) + 3 times the data ({processed:.0f} MB)"
        rows.append(paired(f"peak memory of {name}", against, stages[name][1], [bound], "MB"))
    helps = {name: [bench.stage(project, name, "--help").seconds for _ in range(times)] for name in STAGES}
    rows += [alone(f"python stages/{name}.py --help", "s", values) for name, values in helps.items()]
    return rows


def idle(bench: Bench) -> list[Row]:
    """`dvc repro` with nothing to do and `dvc metrics diff`, beside DVC on five empty stages."""
    run("dvc", "repro", cwd=bench.clone)
    empty = bench.folder / "empty"
    empty.mkdir()
    (empty / "m.json").write_text("{}")
    (empty / "dvc.yaml").write_text(
        "stages:\n"
        + "".join(
            f"  s{n}: {{cmd: 'touch {n}', outs: ['{n}']" + (f", deps: ['{n - 1}']" if n else "") + "}\n"
            for n in range(5)
        )
        + "metrics: [m.json]\n"
    )
    (empty / ".gitignore").write_text("/[0-4]\n")
    commands = [
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["dvc", "config", "core.analytics", "false"],
        ["dvc", "repro", "-q"],
    ]
    commands += [["git", "add", "-A"], ["git", "-c", "user.name=b", "-c", "user.email=b@b", "commit", "-qm", "empty"]]
    for command in commands:
        run(*command, cwd=empty)
    rows = []
    for what, command in (
        ("dvc repro with nothing to do", ["dvc", "repro"]),
        ("dvc metrics diff", ["dvc", "metrics", "diff"]),
    ):
        run(*command, cwd=empty)
        pairs = in_turn(
            3 if bench.quick else 9,
            lambda c=command: run(*c, cwd=bench.clone).seconds,
            lambda c=command: run(*c, cwd=empty).seconds,
        )  # type: ignore[misc]
        rows.append(paired(what, "the same on five empty stages", *pairs))
        rows.append(alone(f"{what}, beyond that", "s", [one - two for one, two in zip(*pairs, strict=True)]))
    return rows


def evaluation(bench: Bench) -> list[Row]:
    test, network = load_dataset(bench.clone / "data/processed/test.pt"), load_model(bench.clone / "models/lenet.pt")
    taken = []
    for _ in range(3 if bench.quick else 7):
        started = time.perf_counter()
        evaluate(predict(network, test.images, 250), test.labels)
        taken.append(time.perf_counter() - started)
    return [alone("evaluation of 10,000 images", "s", taken)]


def growth(bench: Bench) -> list[Row]:
    """Seconds of an epoch of the default network by images, threads and batch."""
    values = Params.model_validate(workspace())
    whole = load_dataset(bench.clone / "data/processed/training.pt")
    base = 2_500 if bench.quick else 15_000
    images, labels = (torch.cat([tensor, tensor, tensor])[: 8 * base] for tensor in whole)

    def seconds(count: int, **changes: Any) -> float:
        options = values.train.model_copy(update={"epochs": 1} | changes)
        torch.set_num_threads(options.threads)
        started = time.perf_counter()
        list(
            loop.train(build(values.model), Dataset(images[:count], labels[:count]), None, options, torch.device("cpu"))
        )
        taken = time.perf_counter() - started
        torch.set_num_threads(values.train.threads)
        return taken

    seconds(base)
    times = 1 if bench.quick else 3
    cases: dict[str, tuple[int, dict[str, int]]] = {
        **{f"an epoch, {multiple} x {base:,} images": (multiple * base, {}) for multiple in (1, 2, 4, 8)},
        **{f"an epoch, {threads} threads": (2 * base, {"threads": threads}) for threads in (1, 2)},
        **{f"an epoch, batch {size}": (2 * base, {"batch_size": size}) for size in (32, 64, 128, 256, 512, 1024)},
    }
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(times):
        for name, (count, changes) in cases.items():
            taken[name].append(seconds(count, **changes))
    return [alone(name, "s", values) for name, values in taken.items()]


def picture(rows: list[Row], title: str) -> Figure:
    """The comparisons as bars, and how the time of an epoch grows."""
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    figure.suptitle(title, size=10)
    bars, data, threads, batch = figure.subplots(2, 2).ravel()
    compared = [row for row in rows if row.unit == "s" and row.against and row.ratio > 1.5]
    for place, row in enumerate(compared):
        bars.barh(place, row.ratio, color=BLUE)
        bars.text(row.ratio, place, f" {row.ratio:.1f}", va="center")
    bars.set_yticks(range(len(compared)), [row.what.split(",")[0].replace(" with", "\nwith") for row in compared])
    bars.invert_yaxis()
    bars.margins(x=0.15)
    bars.set_xlabel("times as fast as the conventional way")

    def grown(axes: Any, pattern: str, label: str) -> list[tuple[float, Row]]:
        points = [(float(found[1].replace(",", "")), row) for row in rows if (found := re.fullmatch(pattern, row.what))]
        x, y = [at for at, _ in points], [row.ours for _, row in points]
        error = [[row.ours - row.ours_least for _, row in points], [row.ours_most - row.ours for _, row in points]]
        axes.errorbar(x, y, yerr=error, marker="o", color=BLUE, capsize=3)
        axes.set_xlabel(label)
        axes.set_ylabel("Seconds of an epoch")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        return points

    points = grown(data, r"an epoch, (\d) x .*", "Images, in multiples of the first")
    data.plot([0, 8], [0, points[-1][1].ours], "--", color=ORANGE, label="linear, through the last")
    data.legend()
    grown(threads, r"an epoch, (\d) threads", "Threads")
    threads.set_xticks([1, 2])
    grown(batch, r"an epoch, batch (\d+)", "Batch size (logarithmic)")
    batch.set_xscale("log", base=2)
    batch.set_xticks([32, 64, 128, 256, 512, 1024], ["32", "64", "128", "256", "512", "1024"])
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    started = time.perf_counter()
    be_deterministic()
    threads = workspace()["train"]["threads"]
    torch.set_num_threads(threads)
    facts = environment(torch.device("cpu"))
    versions = {"python": platform.python_version(), "torch": facts["torch"]}
    versions |= {package: version(package) for package in ("torchvision", "dvc")}
    title = (
        f"{facts['processor']}, {facts['instructions']}, {os.cpu_count()} cores, {threads} threads; {facts['system']}\n"
        + ", ".join(f"{name} {number}" for name, number in versions.items())
    )
    print(title, flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), quick)
        # The clone's own run: what the parts below read, and what warms the system's cache of files.
        run("dvc", "repro", "--force", cwd=bench.clone)
        for part in (idle, evaluation, overheads, epoch, to_target, growth, whole_job):
            for row in part(bench):
                print(row, flush=True)
                rows.append(row)
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    if not quick:
        drawn = to_png(picture(rows, title))
        machine = " ".join(title.split())
        write_csv(HERE / "results.csv", [*Row._fields, "machine"], [[*row, machine] for row in rows])
        write_bytes(HERE / "results.png", drawn)


if __name__ == "__main__":
    main()
