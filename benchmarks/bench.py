"""How fast the pipeline is, compared with conventional code on the same machine: `make bench`, `make bench QUICK=1`.

All figures come from one run of this program. Machines are uneven, so what is compared is run in turn: read the ratios.
It clones what is committed into a temporary folder, takes MNIST from MNIST_MIRROR or data/downloads/mnist, and
writes benchmarks/results.csv and benchmarks/results.png. With QUICK it uses fewer images and runs, leaves out PyTorch's
example, and writes nothing.
"""

import arithmetic  # noqa: F401  PyTorch's libraries read its settings as they are loaded.

# isort: split
import argparse
import gzip
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from rounds import spread
from ruamel.yaml import YAML

from lenet.data.catalog import CATALOG
from lenet.data.tensors import Dataset, load_dataset, save_dataset
from lenet.environment import be_deterministic, environment
from lenet.experiments.presets import Values, load_preset, overlaid, workspace
from lenet.files import write_bytes, write_csv
from lenet.network.backend import predict
from lenet.network.lenet import build
from lenet.network.saved import load_model
from lenet.params import Params
from lenet.processor import PORTABLE
from lenet.results.evaluation import evaluate
from lenet.results.figures import BLUE, ORANGE, to_png
from lenet.training import loop

HERE = Path(__file__).parent
MNIST = CATALOG["mnist"]
assert MNIST.source
FILES, CLASSES = MNIST.source.files, len(MNIST.info.classes)
STAGES = ("download", "preprocess", "train", "evaluate", "plot")
TARGET = 0.99
"""The test accuracy that both networks are trained to."""
LOOP, SCRIPT, EXAMPLE = "conventional loop", "conventional script", "PyTorch's example"
"""What the pipeline is compared with. The loop and the script train the same network, the example another."""


class Row(NamedTuple):
    """A row of results.csv: median, least and greatest of `runs`; `ratio` is theirs to ours, taken pair by pair."""

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


def alone(what: str, unit: str, values: Sequence[float]) -> Row:
    return Row(what, unit, *spread(values), runs=len(values))


def paired(what: str, against: str, ours: Sequence[float], theirs: Sequence[float], unit: str = "s") -> Row:
    """Compare two lists pair by pair; if one is shorter, its median stands in for what it lacks."""
    longer = max(len(ours), len(theirs))
    one = [*ours, *(longer - len(ours)) * [statistics.median(ours)]]
    two = [*theirs, *(longer - len(theirs)) * [statistics.median(theirs)]]
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    return Row(what, unit, *spread(ours), against, *spread(theirs), *spread(ratios), runs=len(ours))


class Finished(NamedTuple):
    seconds: float
    memory: float
    """Peak resident memory of its process in MB."""
    output: str


def run(*command: str | Path, cwd: Path) -> Finished:
    """Run a program to its end; if it fails, so does this one."""
    # Modules are to be compiled once, as they are for users, not at each start. The stages set the arithmetic
    # themselves, and conventional code has PyTorch's own.
    left_out = {"PYTHONDONTWRITEBYTECODE", *PORTABLE}
    variables = {name: value for name, value in os.environ.items() if name not in left_out}
    with tempfile.NamedTemporaryFile("r") as report:
        measured = [sys.executable, "-I", HERE / "measured.py", report.name, *command]
        done = subprocess.run(
            measured, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"error: {' '.join(map(str, command))} failed:\n{done.stdout}")
        seconds, memory = map(float, report.read().split())
    return Finished(seconds, memory, done.stdout)


def timed(command: Sequence[str], cwd: Path) -> float:
    return run(*command, cwd=cwd).seconds


def in_turn(times: int, ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[list[float], list[float]]:
    pairs = [(ours(), theirs()) for _ in range(times)]
    return [one for one, _ in pairs], [two for _, two in pairs]


class Quiet(SimpleHTTPRequestHandler):
    """Logs nothing, and lets a client hang up in the middle of a file, as torchvision does."""

    def log_message(self, *_: Any) -> None:
        pass

    def copyfile(self, *files: Any) -> None:
        with suppress(ConnectionError):
            super().copyfile(*files)


class Bench:
    """The work folder: a clone of what is committed, a mirror of MNIST, and what the parts need of both."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.images = 10_000 if quick else 60_000
        self.mirror = folder / "mirror"
        self.mirror.mkdir()
        source = Path(os.environ.get("MNIST_MIRROR") or "data/downloads/mnist")
        for resource in FILES:
            if not (source / resource.name).exists():
                sys.exit(f"error: {source / resource.name}: no such file; `dvc repro` downloads it")
            shutil.copy(source / resource.name, self.mirror)
        # Over HTTP, because torchvision can download in no other way.
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(self.mirror)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        os.environ["MNIST_MIRROR"] = self.url
        self.clone = self.new_clone("clone", {})
        self.tanh = overlaid(workspace(), ("lenet5-tanh", load_preset("lenet5-tanh").changes))

    def new_clone(self, name: str, changes: Values) -> Path:
        """A fresh clone with these parameters and an empty cache."""
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
        for resource in FILES:
            (raw / resource.name.removesuffix(".gz")).write_bytes(
                gzip.decompress((self.mirror / resource.name).read_bytes())
            )
        return folder

    def first(self, project: Path, count: int) -> None:
        """Keep only the first `count` images in a project's training file."""
        path = project / "data/processed/training.pt"
        training_set = load_dataset(path, CLASSES)
        save_dataset(path, Dataset(*(tensor[:count].clone() for tensor in training_set)))


def trained_seconds(output: str) -> float:
    """Seconds since the training began, from the line that the stage prints for the last epoch."""
    return float(re.findall(r"\(([\d.]+) s\)", output)[-1])


def epoch(bench: Bench) -> list[Row]:
    project = bench.new_clone("epoch", bench.tanh | {"train": bench.tanh["train"] | {"epochs": 1}})
    for name in ("download", "preprocess"):
        bench.stage(project, name)
    bench.first(project, bench.images)
    data = bench.raw_for_torchvision("epoch-torchvision")
    script = (sys.executable, HERE / "conventional.py", data, "--epochs", "1", "--images", str(bench.images))

    def ours() -> float:
        return trained_seconds(bench.stage(project, "train").output)

    def theirs() -> float:
        return float(re.findall(r"([\d.]+) s$", run(*script, cwd=bench.folder).output, re.MULTILINE)[0])

    return [paired("the first epoch of lenet5-tanh", LOOP, *in_turn(1 if bench.quick else 3, ours, theirs))]


def whole_job(bench: Bench) -> list[Row]:
    epochs = 1 if bench.quick else 10

    def ours() -> float:
        project = bench.new_clone("job", bench.tanh | {"train": bench.tanh["train"] | {"epochs": epochs}})
        return run("dvc", "repro", cwd=project).seconds

    def theirs() -> float:
        folder = bench.folder / "job-torchvision"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        script = (sys.executable, HERE / "conventional.py", folder, "--epochs", str(epochs))
        return run(*script, "--mirror", bench.url, cwd=bench.folder).seconds

    what = f"the whole job with lenet5-tanh, {epochs} epoch{'s' * (epochs > 1)}, dvc repro"
    return [paired(what, SCRIPT, *in_turn(1 if bench.quick else 2, ours, theirs))]


def to_target(bench: Bench) -> list[Row]:
    """Seconds of training, evaluation excepted, until an epoch ends with the target accuracy on the test set."""
    values = Params.model_validate(workspace())
    model = values.model.normalised(MNIST.info.mean, MNIST.info.std)
    data = bench.clone / "data/processed"
    training_set, validation, test = (
        load_dataset(data / f"{name}.pt", CLASSES) for name in ("training", "validation", "test")
    )

    def seconds(seed: int) -> float:
        options = values.train.model_copy(update={"seed": seed})
        torch.manual_seed(loop.generator(seed, epoch=0).initial_seed())
        network = build(model)
        spent, started = 0.0, time.perf_counter()
        for row, _ in loop.train(network, training_set, validation, options, torch.device("cpu")):
            spent += time.perf_counter() - started
            accuracy = (predict(network, test.images, 250).argmax(dim=1) == test.labels).float().mean().item()
            if accuracy >= TARGET:
                print(f"  seed {seed}: {accuracy:.2%} after {row.epoch} epochs, {spent:.1f} s", flush=True)
                return spent
            started = time.perf_counter()
        print(f"  seed {seed}: no epoch ended with {TARGET:.1%}; the last reached {accuracy:.2%}", flush=True)
        return float("inf")

    ours = [seconds(seed) for seed in range(1 if bench.quick else 5)]
    what = f"training to {TARGET:.1%} test accuracy, default parameters"
    if bench.quick:
        return [alone(what, "s", ours)]
    data = bench.raw_for_torchvision("example")
    lines = run(sys.executable, HERE / "pytorch_example.py", data, cwd=bench.folder).output.splitlines()
    print(*(f"  {EXAMPLE}, epoch, s, accuracy: {line}" for line in lines), sep="\n", flush=True)
    number, spent, accuracy = lines[-1].split()
    against = f"{EXAMPLE} ({number} epochs, {float(accuracy):.2%})"
    return [paired(what, against, ours, [float(spent)])]


def overheads(bench: Bench) -> list[Row]:
    """What `dvc repro` costs besides training, and the time and memory of each stage."""
    times = 1 if bench.quick else 3
    torch_alone = [run(sys.executable, "-c", "import torch", cwd=bench.folder).memory for _ in range(times)]
    rest: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in STAGES}
    memory: dict[str, list[float]] = {name: [] for name in STAGES}
    for number in range(times):
        project = bench.new_clone(f"repro{number}", {"train": {"epochs": 1}})
        done = run("dvc", "repro", cwd=project)
        rest.append(done.seconds - trained_seconds(done.output))
        for name in STAGES:
            if name == "download":
                shutil.rmtree(project / "data")
            done = bench.stage(project, name)
            spent = trained_seconds(done.output) if name == "train" else 0.0
            seconds[name].append(done.seconds - spent)
            memory[name].append(done.memory)
    rows = [alone("dvc repro of all five stages, training excepted", "s", rest)]
    rows += [
        alone(f"python stages/{name}.py{', training excepted' if name == 'train' else ''}", "s", seconds[name])
        for name in STAGES
    ]
    processed = sum(path.stat().st_size for path in (project / "data/processed").iterdir()) / 1e6
    rows += [alone("peak memory of import torch", "MB", torch_alone), alone("data/processed", "MB", [processed])]
    bound = statistics.median(torch_alone) + 3 * processed
    against = "import torch + 3 times data/processed"
    rows += [paired(f"peak memory of {name}", against, memory[name], [bound], "MB") for name in STAGES]
    helps = {name: [bench.stage(project, name, "--help").seconds for _ in range(times)] for name in STAGES}
    rows += [alone(f"python stages/{name}.py --help", "s", values) for name, values in helps.items()]
    return rows


def idle(bench: Bench) -> list[Row]:
    """`dvc repro` with nothing to do and `dvc metrics diff`, here and in a project of five empty stages."""
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
        ours, theirs = in_turn(
            3 if bench.quick else 9, partial(timed, command, bench.clone), partial(timed, command, empty)
        )
        rows.append(paired(what, "five empty stages", ours, theirs))
        more = [one - two for one, two in zip(ours, theirs, strict=True)]
        rows.append(alone(f"{what}, more than on five empty stages", "s", more))
    return rows


def evaluation(bench: Bench) -> list[Row]:
    network, classes = load_model(bench.clone / "models/lenet.pt")
    test = load_dataset(bench.clone / "data/processed/test.pt", len(classes))
    taken = []
    for _ in range(3 if bench.quick else 7):
        started = time.perf_counter()
        evaluate(predict(network, test.images, 250), test.labels, classes)
        taken.append(time.perf_counter() - started)
    return [alone("evaluation of 10,000 images, start-up excepted", "s", taken)]


def growth(bench: Bench) -> list[Row]:
    """Seconds per epoch of the default network, by number of images, threads and batch size."""
    values = Params.model_validate(workspace())
    model = values.model.normalised(MNIST.info.mean, MNIST.info.std)
    whole = load_dataset(bench.clone / "data/processed/training.pt", CLASSES)
    base = 2_500 if bench.quick else 15_000
    images, labels = (torch.cat([tensor, tensor, tensor])[: 8 * base] for tensor in whole)

    def seconds(count: int, **changes: Any) -> float:
        options = values.train.model_copy(update={"epochs": 1} | changes)
        torch.set_num_threads(options.threads)
        started = time.perf_counter()
        list(loop.train(build(model), Dataset(images[:count], labels[:count]), None, options, torch.device("cpu")))
        taken = time.perf_counter() - started
        torch.set_num_threads(values.train.threads)
        return taken

    seconds(base)
    times = 1 if bench.quick else 3
    work = f"an epoch of {2 * base:,} images"
    cases: dict[str, tuple[int, dict[str, int]]] = {
        **{f"an epoch of {multiple} x {base:,} images": (multiple * base, {}) for multiple in (1, 2, 4, 8)},
        **{f"{work}, {count} thread{'s' * (count > 1)}": (2 * base, {"threads": count}) for count in (1, 2)},
        **{f"{work}, batch size {size}": (2 * base, {"batch_size": size}) for size in (32, 64, 128, 256, 512, 1024)},
    }
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(times):
        for name, (count, changes) in cases.items():
            taken[name].append(seconds(count, **changes))
    return [alone(name, "s", values) for name, values in taken.items()]


def picture(rows: list[Row], machine: str) -> Figure:
    """How many times as fast as conventional code the pipeline is, and what the time of an epoch depends on."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    figure.suptitle(textwrap.fill(machine, 120), size=9)
    [above], [below] = figure.subfigures(2, 1, squeeze=False, height_ratios=[5, 6])
    draw_comparisons(above.subplots(), rows)
    images, threads, batch = below.subplots(1, 3, width_ratios=[5, 4, 6])

    points = draw_epochs(images, rows, r"(an epoch).* (\d+) x ([\d,]+) images", "Number of images (thousands)", "-")
    images.plot(*zip((0, 0), points[-1], strict=True), "--", color=ORANGE, label="proportional")
    images.xaxis.set_major_formatter(lambda number, _: f"{number / 1000:g}")
    images.legend(loc="upper left")
    # Without a line, which would promise something between the points.
    points = draw_epochs(threads, rows, r"(an epoch.*), (\d+) threads?", "Number of threads", "none")
    threads.set_xticks([count for count, _ in points])
    threads.margins(x=0.5)
    points = draw_epochs(batch, rows, r"(an epoch.*), batch\D* (\d+)", "Batch size (logarithmic)", "-")
    batch.set_xscale("log", base=2)
    batch.set_xticks([size for size, _ in points], [f"{size:g}" for size, _ in points])
    return figure


def draw_comparisons(axes: Axes, rows: list[Row]) -> None:
    """Each ratio with its range, those to the same network first."""
    same = [row for row in rows if row.against.startswith((LOOP, SCRIPT))]
    other = [row for row in rows if row.against.startswith(EXAMPLE)]
    labels = []
    for place, row in enumerate(same + other):
        color, marker, network = (BLUE, "o", "the same network") if row in same else (ORANGE, "D", "another network")
        ends = [[row.ratio - row.ratio_least], [row.ratio_most - row.ratio]]
        axes.errorbar(row.ratio, place, xerr=ends, fmt=marker, color=color, capsize=4)
        text = f"{row.ratio:.1f} ({row.ratio_least:.1f} to {row.ratio_most:.1f})"
        axes.annotate(text, (row.ratio, place), xytext=(0, 9), textcoords="offset points", ha="center", size=9)
        labels.append(f"{row.what[0].upper()}{row.what[1:]}\nagainst {network}: {row.against}")
    axes.set_yticks(range(len(labels)), labels, size=9)
    axes.set_ylim(len(labels) - 0.6, -0.8)
    axes.set_xscale("log")
    least, most = min(row.ratio_least for row in same + other), max(row.ratio_most for row in same + other)
    axes.set_xlim(min(1, 0.8 * least), 2 * most)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("Their time / the pipeline's (logarithmic)")
    axes.set_title("How many times as fast the pipeline is\nmedian (minimum to maximum) of the runs", size=10)
    axes.grid(axis="x", alpha=0.3)


def draw_epochs(axes: Axes, rows: list[Row], pattern: str, label: str, line: str) -> list[tuple[float, float]]:
    """Draw the seconds of the rows that match the pattern by the product of their numbers, and return these points."""
    found = [(match, row) for row in rows if (match := re.fullmatch(pattern, row.what))]
    at = [math.prod(float(number.replace(",", "")) for number in match.groups()[1:]) for match, _ in found]
    seconds = [row.ours for _, row in found]
    ends = [[row.ours - row.ours_least for _, row in found], [row.ours_most - row.ours for _, row in found]]
    axes.errorbar(at, seconds, yerr=ends, marker="o", linestyle=line, color=BLUE, capsize=3)
    axes.set_ylim(0, 1.15 * max(row.ours_most for _, row in found))
    axes.set_xlabel(label)
    axes.set_ylabel("Seconds per epoch")
    axes.set_title(f"Time of {found[0][0][1]}\nby {label.split(' (')[0].lower()}", size=10)
    axes.grid(alpha=0.3)
    return list(zip(at, seconds, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    started = time.perf_counter()
    be_deterministic()
    train = workspace()["train"]
    threads = train["threads"]
    torch.set_num_threads(threads)
    facts = environment(torch.device("cpu"), train["arithmetic"])
    versions = {"python": platform.python_version(), "torch": facts["torch"]}
    versions |= {package: version(package) for package in ("torchvision", "dvc")}
    machine = (
        f"{facts['processor']}, {facts['arithmetic']} arithmetic, {os.cpu_count()} cores, {threads} threads; "
        f"{facts['system']}; " + ", ".join(f"{name} {number}" for name, number in versions.items())
    )
    print(machine, flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), quick)
        # For what the parts below read, and so that the files are in the system's cache.
        run("dvc", "repro", "--force", cwd=bench.clone)
        for part in (idle, evaluation, overheads, epoch, to_target, growth, whole_job):
            for row in part(bench):
                print(row, flush=True)
                rows.append(row)
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    if not quick:
        write_csv(HERE / "results.csv", [*Row._fields, "machine"], [[*row, machine] for row in rows])
        write_bytes(HERE / "results.png", to_png(picture(rows, machine)))


if __name__ == "__main__":
    main()
