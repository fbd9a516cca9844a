"""Whether results have the same bits on processors of another make: `make portability`.

Runs three programs here and on emulated processors, and compares the SHA-256 of whatever each computes:

products    matrix products of many shapes, as PyTorch computes them, and as `lenet.network.products` does
operations  every operation of PyTorch in short trainings and evaluations of all presets and options
pipeline    the stages on `digits`, all presets and options: every output, and the pictures of the default network

Prints, and writes to benchmarks/portability.csv, how many are equal, by settings of the environment. Operations are
compared where their inputs are equal. The emulators are Debian's packages qemu-user and valgrind.
"""

import hashlib
import itertools
import json
import math
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from lenet.processor import PORTABLE, cores, set_arithmetic

if TYPE_CHECKING:
    from torch import Tensor

# What was computed, the digest of what it was computed from, and the digest of the result.
Result = tuple[str, str, str]

ROOT = Path(__file__).resolve().parents[1]

# None emulates AVX-512. QEMU 7.2 crashes in grid_sample, so Valgrind, with its one processor, runs what is augmented.
EMULATORS = {
    "Intel Haswell, QEMU": ["qemu-x86_64", "-cpu", "Haswell"],
    "Intel Skylake, QEMU": ["qemu-x86_64", "-cpu", "Skylake-Client"],
    "AMD EPYC, QEMU": ["qemu-x86_64", "-cpu", "EPYC"],
    "Intel Haswell, Valgrind": ["valgrind", "--tool=none", "-q"],
}

SETTINGS = {
    "none": {},
    "MKL_CBWR=AVX2": {"MKL_CBWR": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "portable": PORTABLE,
}

OPTIONS: dict[str, dict[str, dict[str, object]]] = {
    "default": {},
    "sigmoid, average": {
        "model": {"activation": "sigmoid", "pooling": "average"},
        "train": {"optimizer": "sgd", "schedule": "step"},
    },
    "ReLU, trainable": {
        "model": {"pooling": "trainable"},
        "train": {"optimizer": "adam", "schedule": "constant", "loss": "nll"},
    },
    "sparse, dropout": {"model": {"c3": "sparse", "dropout": 0.3}, "train": {"weight_decay": 0.01}},
    "batch norm, tanh": {"model": {"batch_norm": True, "activation": "tanh"}},
    "batch norm, 28x28": {"model": {"batch_norm": True, "padding": 0}, "train": {"optimizer": "sgd"}},
    "mlp, batch norm, 32x32": {"model": {"architecture": "mlp", "padding": 2, "batch_norm": True}},
    "mlp, tanh, dropout": {"model": {"architecture": "mlp", "activation": "tanh", "dropout": 0.2}},
    "mlp, sigmoid": {"model": {"architecture": "mlp", "activation": "sigmoid"}},
    "RBF, tanh": {"model": {"head": "rbf", "activation": "tanh"}, "train": {"loss": "rbf"}},
    "scaled tanh": {"model": {"activation": "scaled_tanh"}},
    "one thread": {"train": {"threads": 1}},
    "flips, label smoothing, average": {"train": {"flip": True, "label_smoothing": 0.1, "ema": 0.99}},
    "batch norm, mean": {"model": {"batch_norm": True, "pooling": "average"}},
    "mini-batches of 1": {"train": {"batch_size": 1}},
    "mini-batches of 200": {"train": {"batch_size": 200}},
    "augmentation": {"train": {"augment": 1}},
}


def digest(*contents: bytes) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()[:12]


def bits(*tensors: "Tensor") -> str:
    return digest(*(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors))


def variants(only: str) -> dict[str, dict[str, Any]]:
    """Presets and options, as parameters of short runs on `digits`: one, or those that are `augmented` or `plain`."""
    from lenet.experiments.presets import load_preset, names, overlaid, workspace

    short: dict[str, dict[str, object]] = {
        "data": {"dataset": "digits"},
        "preprocess": {"validation_size": 1338},  # It leaves 99 images for training.
        "train": {"epochs": 1, "device": "cpu", "batch_size": 32},
    }
    every = {}
    for name, change in {**{name: load_preset(name).changes for name in names()}, **OPTIONS}.items():
        sections = {"model": dict(change.get("model", {})), "train": dict(change.get("train", {}))}
        if name not in OPTIONS:
            for key in ("epochs", "batch_size"):
                sections["train"].pop(key, None)
        every[name] = overlaid(workspace(), ("portability", short), (name, sections))
    kinds = {name: "augmented" if values["train"]["augment"] else "plain" for name, values in every.items()}
    return {name: values for name, values in every.items() if only in (name, kinds[name])}


def made(*shape: int, seed: int) -> "Tensor":
    """Numbers between -2 and 2, from integers alone, so that they are the same everywhere."""
    import torch

    state = (torch.arange(math.prod(shape)) + 977 * seed) * 6364136223846793005 + 1442695040888963407
    return (((state >> 33) & 16383) - 8192).to(torch.float32).mul(1 / 4096).reshape(shape)


def products(only: str) -> Iterator[Result]:
    """Each product, by shape and by how its factors lie in memory."""
    assert only == "plain", "products have no variants"
    import torch

    from lenet.network.products import mm

    torch.set_num_threads(2)
    rows, columns = (1, 3, 4, 10, 24, 84, 120), (1, 10, 16, 24, 37, 128, 250)
    inner = (1, 10, 37, 84, 143, 192, 193, 217, 256, 300, 383, 384, 784, 1000)
    for m, k, n in itertools.product(rows, inner, columns):
        a, b = made(m, k, seed=1), made(k, n, seed=2)
        for left, right in ((a, b), (a, b.t().contiguous().t()), (a.t().contiguous().t(), b)):
            order = "".join("n" if factor.is_contiguous() else "t" for factor in (left, right))
            yield f"torch.mm {m}x{k}x{n} {order}", "", bits(left @ right)
            yield f"products.mm {m}x{k}x{n} {order}", "", bits(mm(left, right))


def operations(only: str) -> Iterator[Result]:
    """Each call of an operation: its name and its inputs' shapes, what its inputs are, what its results are."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from lenet.data.catalog import CATALOG
    from lenet.data.tensors import Dataset
    from lenet.network.backend import predict
    from lenet.network.capture import _tensors
    from lenet.network.lenet import build
    from lenet.params import Params
    from lenet.results.evaluation import evaluate
    from lenet.training import loop

    calls: list[Result] = []

    class Recorder(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # With True, PyTorch imports its compiler.

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            inputs = _tensors((args, kwargs))
            before = bits(*inputs)
            results = func(*args, **kwargs)
            tensors = _tensors(results)
            if "empty" in func.name():
                for tensor in tensors:
                    tensor.zero_()  # What is in new memory would differ from run to run.
            changed = inputs if func._schema.is_mutable else []
            calls.append((f"{func} {[list(x.shape) for x in inputs]}", before, bits(*tensors, *changed)))
            return results

    images = (made(96, 28, 28, seed=1).abs() * 127).to(torch.uint8)
    labels = torch.arange(96) % 10
    training, validation = Dataset(images[:46], labels[:46]), Dataset(images[46:], labels[46:])
    for name, values in variants(only).items():
        params = Params.model_validate(values)
        info = CATALOG[params.data.dataset].info
        torch.set_num_threads(params.train.threads)
        with Recorder():
            torch.manual_seed(0)
            network = build(params.model.normalised(info.mean, info.std))
            list(loop.train(network, training, validation, params.train, torch.device("cpu")))
            evaluate(predict(network, validation.images, 30), validation.labels, info.classes)
        for call, before, after in calls:
            yield f"{name}: {call}", before, after
        calls.clear()


def pipeline(only: str) -> Iterator[Result]:
    """Each output of the stages."""
    from ruamel.yaml import YAML

    def run(stage: str) -> None:
        sys.argv = [f"stages/{stage}.py"]
        try:
            with redirect_stdout(sys.stderr):
                runpy.run_path(str(ROOT / f"stages/{stage}.py"), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise

    # As each stage does itself; but here, all in one process, `preprocess` has imported PyTorch before `train` does it.
    set_arithmetic("portable")
    every = variants(only)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, values in every.items():
            with Path("params.yaml").open("w") as file:
                YAML().dump(values, file)
            first = name == next(iter(every))
            for stage in ["download", "preprocess"] * first + ["train", "evaluate"] + ["plot"] * (name == "default"):
                run(stage)
            for path in sorted(Path().rglob("*")):
                if path.is_file() and path.suffix in (".gz", ".npz", ".pt", ".json", ".csv", ".png"):
                    yield f"{name}: {path}", "", digest(path.read_bytes())
                    if path.parts[0] != "data":
                        path.unlink()
        os.chdir(ROOT)


PROGRAMS = {"products": products, "operations": operations, "pipeline": pipeline}


def start(emulator: list[str], program: str, only: str, settings: dict[str, str]) -> list[Result]:
    """Run one of the programs in a process, emulated unless `emulator` is empty, and return what it computed.

    An emulator needs the interpreter itself: a virtual environment has a link to it, and would not be found.
    """
    python = os.path.realpath(sys.executable)
    paths = os.pathsep.join([str(ROOT / "stages"), sysconfig.get_path("purelib")])
    environment = {key: value for key, value in os.environ.items() if key not in PORTABLE}
    done = subprocess.run(
        [*emulator, python, __file__, "--one", program, "--only", only],
        cwd=ROOT,
        env=environment | settings | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if emulator else None,  # QEMU warns of each feature that it lacks.
        text=True,
        check=True,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]


class Case(NamedTuple):
    """A program, the variants that it runs, the settings of the environment, and the emulated processor."""

    program: str
    only: str
    settings: str
    processor: str


class Row(NamedTuple):
    """A comparison: of so many results, so many have equal bits.

    `different` names the operations whose results differ, and how often; `machine` is the processor here.
    """

    program: str
    settings: str
    processor: str
    compared: int
    equal: int
    different: str
    machine: str


def compare(here: list[Result], there: list[Result], case: Case, machine: str) -> list[Row]:
    """Compare what two processors computed; products in a row for each of the two ways."""
    program, only, settings, processor = case
    ways = ("torch.mm", "products.mm") if program == "products" else ("",)
    rows = []
    for way in ways:
        pairs = [(ours, theirs) for ours, theirs in zip(here, there, strict=True) if ours[0].startswith(way)]
        assert all(ours[0] == theirs[0] for ours, theirs in pairs), "both run the same program"
        given = [(ours, theirs) for ours, theirs in pairs if ours[1] == theirs[1]]
        differing = Counter(
            ours[0].partition(": ")[2].partition(" [")[0] for ours, theirs in given if ours[2] != theirs[2]
        )
        shown = "" if way else "; ".join(f"{name} ({count})" for name, count in differing.most_common(12))
        name = f"{program}: {way}" if way else program if only == "plain" else f"{program}, {only}"
        rows.append(Row(name, settings, processor, len(given), len(given) - differing.total(), shown, machine))
    return rows


PLAN = [
    *(Case("products", "plain", settings, "Intel Haswell, QEMU") for settings in SETTINGS),
    Case("products", "plain", "portable", "AMD EPYC, QEMU"),
    *(Case("operations", "plain", settings, "Intel Haswell, QEMU") for settings in SETTINGS),
    Case("operations", "plain", "portable", "AMD EPYC, QEMU"),
    Case("operations", "augmented", "portable", "Intel Haswell, Valgrind"),
    *(Case("pipeline", "plain", "portable", processor) for processor in EMULATORS if "QEMU" in processor),
    Case("pipeline", "augmented", "portable", "Intel Haswell, Valgrind"),
]


def main(
    one: Annotated[str, typer.Option(hidden=True)] = "",
    only: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Compare what this processor computes with what emulated ones compute."""
    if one:
        for result in PROGRAMS[one](only):
            print(json.dumps(result), flush=True)
        return
    missing = [command[0] for command in EMULATORS.values() if not shutil.which(command[0])]
    if missing:
        sys.exit(f"error: {', '.join(sorted(set(missing)))}: not found; on Debian, apt-get install qemu-user valgrind")

    import torch

    from lenet.environment import environment
    from lenet.files import write_csv

    facts = environment(torch.device("cpu"), "portable")
    machine = f"{facts['processor']}, torch {facts['torch']}"
    kinds = dict.fromkeys((case.program, case.only, case.settings) for case in PLAN)
    here = {kind: start([], *kind[:2], SETTINGS[kind[2]]) for kind in kinds}

    def measure(case: Case) -> list[Row]:
        there = start(EMULATORS[case.processor], case.program, case.only, SETTINGS[case.settings])
        rows = compare(here[case.program, case.only, case.settings], there, case, machine)
        for row in rows:
            print(*row, sep=" | ", flush=True)
        return rows

    with ThreadPoolExecutor(cores()) as pool:
        rows = [row for rows in pool.map(measure, PLAN) for row in rows]
    write_csv(ROOT / "benchmarks/portability.csv", Row._fields, rows)


if __name__ == "__main__":
    typer.run(main)
