"""Portable arithmetic: the same bits on every x86-64 processor with AVX2, and what happens where that cannot be."""

import itertools
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    ROOT,
    RunStage,
    assert_refused,
    commit,
    set_params,
    sh,
    slow_except,
    tree,
)
from test_documents import records
from torch import Tensor

from lenet.environment import environment
from lenet.experiments.verify import RECORD, Change, outputs, verdict
from lenet.network.products import BLOCK, COLUMNS, ROWS, linear, mm
from lenet.processor import PORTABLE, is_portable, set_arithmetic

sys.path.insert(0, str(ROOT / "benchmarks"))
import portability

needs_avx2 = pytest.mark.skipif(not is_portable("portable"), reason="needs an x86-64 processor with AVX2")


def chain(a: Tensor, b: Tensor) -> Tensor:
    """One fused multiply-add after the other, from zero: float32 [m, k] @ [k, n] -> [m, n].

    Numbers of `portability.made` have 14 bits, so that in double precision neither product nor sum is rounded.
    """
    total = torch.zeros(len(a), b.shape[1])
    for k in range(a.shape[1]):
        total = torch.addcmul(total.double(), a[:, k : k + 1].double(), b[k : k + 1].double()).float()
    return total


def bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32)


def by_definition(a: Tensor, b: Tensor) -> Tensor:
    """The product as `lenet.network.products` defines it."""
    blocks = zip(a.split(BLOCK, dim=1), b.split(BLOCK), strict=True)
    total = chain(*next(blocks))
    for block in blocks:
        total = total + chain(*block)
    return total


@needs_avx2
@pytest.mark.parametrize("threads", [1, 2])
def test_a_product_is_a_chain_of_fused_multiply_adds(threads: int) -> None:
    """In blocks of 192, for whatever shape, and however the factors lie in memory."""
    torch.set_num_threads(threads)
    different = []
    for m, k, n in itertools.product(
        (1, 2, 4, 10, 23, 24, 84), (1, 10, 37, 143, 192, 193, 217, 383, 384, 784), (1, 2, 10, 16, 23, 24, 37, 128)
    ):
        a, b = portability.made(m, k, seed=1), portability.made(k, n, seed=2)
        expected = by_definition(a, b)
        results = [mm(a, b), mm(a, b.t().contiguous().t()), mm(a.t().contiguous().t(), b)]
        results.append(mm(a, b, out=torch.full((m, n), torch.nan)))
        # As integers, because 0 and -0 are equal numbers.
        different += [(m, k, n)] * sum(not bits(result).equal(bits(expected)) for result in results)
    assert different == []


@needs_avx2
def test_a_dense_layer_is_made_of_such_products() -> None:
    x, weight, bias = (portability.made(*shape, seed=seed) for seed, shape in enumerate([(30, 256), (10, 256), (10,)]))
    gradient = portability.made(30, 10, seed=4)
    for each in (x, weight, bias):
        each.requires_grad_()
    y = linear(x, weight, bias)
    of_x, of_weight, of_bias = torch.autograd.grad(y, (x, weight, bias), gradient)
    with torch.no_grad():
        assert y.equal(by_definition(x, weight.t()) + bias)
        assert of_x.equal(by_definition(gradient, weight))
        assert of_weight.equal(by_definition(gradient.t(), x))
        torch.testing.assert_close(of_bias, gradient.sum(dim=0))


def products_of(text: str) -> Iterator[tuple[int, int, int, str]]:
    """Rows, inner dimension, columns and mode of each product in float32 that MKL_VERBOSE makes MKL print.

    Those in float64 lead to pictures and tables alone, in which they are rounded.
    """
    for columns, rows, inner, mode in re.findall(
        r"^MKL_VERBOSE SGEMM\w*\(.,.,(\d+),(\d+),(\d+),.* CNR:(\S+)", text, re.M
    ):
        yield int(rows), int(inner), int(columns), mode


NETWORKS = [
    [],
    ["model.padding=0", "model.batch_norm=true", "model.dropout=0.1", "train.augment=1"],
    [
        "model.batch_norm=true",
        "model.pooling=average",
        "train.label_smoothing=0.1",
        "train.ema=0.99",
        "train.flip=true",
        "train.batch_size=250",
    ],
    ["model.architecture=mlp", "train.threads=1"],
    ["model.head=rbf", "train.loss=rbf", "model.activation=tanh", "model.c3=sparse", "model.pooling=trainable"],
    ["train.batch_size=1", "preprocess.validation_size=1400"],
    ["train.batch_size=15", "preprocess.validation_size=1000"],
]


@needs_avx2
@pytest.mark.parametrize("changes", slow_except(NETWORKS, NETWORKS[:1]), ids=" ".join)
def test_every_product_has_a_portable_shape(digits_project: Path, changes: list[str]) -> None:
    """As MKL itself reports them when the stages run: in its strict mode, and of shapes that add as defined."""
    set_params(digits_project, "train.epochs=1", *changes)
    if any(change.startswith("preprocess") for change in changes):
        sh(sys.executable, "stages/preprocess.py", cwd=digits_project)
    for stage in ("train", "evaluate"):
        found = list(products_of(sh(sys.executable, f"stages/{stage}.py", cwd=digits_project, MKL_VERBOSE="1")))
        if stage == "evaluate":
            # Of one row are those of the table of layers, for an image of zeros: exact in any order.
            found = [product for product in found if product[0] > 1]
        assert len(found) >= 5, stage
        assert {mode.partition(",")[2] for *_, mode in found} == {"STRICT"}
        assert [
            shape for *shape, _ in found if shape[0] < ROWS or shape[2] < COLUMNS or BLOCK < shape[1] < 2 * BLOCK
        ] == []


@needs_avx2
@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_users_own_setting_is_respected_or_refused(digits_project: Path, stage: str) -> None:
    """It is never silently mixed with the others."""
    before = tree(digits_project)
    command = [sys.executable, f"stages/{stage}.py"]
    for name, value in PORTABLE.items():
        text = sh(*command, cwd=digits_project, status=1, **{name: "COMPATIBLE"})
        assert text == (
            f"error: {name} is COMPATIBLE in the environment, but train.arithmetic portable needs {value}; "
            f"unset {name}, or set train.arithmetic to native\n"
        )
    sh(*command, cwd=digits_project, **PORTABLE)  # type: ignore[arg-type]
    assert tree(digits_project) == before
    set_params(digits_project, "train.arithmetic=native")
    text = sh(*command, cwd=digits_project, MKL_CBWR="COMPATIBLE", MKL_VERBOSE="1")
    assert {mode for *_, mode in products_of(text)} == {"COMPATIBLE"}


STARTED = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(sys.modules["torch"].backends.cpu.get_cpu_capability())
"""


@needs_avx2
@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_pytorchs_own_kernels_are_those_for_avx2(digits_project: Path, stage: str) -> None:
    command = [sys.executable, "-c", f"import sys; sys.argv = ['stages/{stage}.py']; sys.path[0] = 'stages'\n{STARTED}"]
    assert sh(*command, cwd=digits_project).splitlines()[-1] == "AVX2"


@needs_avx2
def test_native_arithmetic_is_the_libraries_own(digits_project: Path) -> None:
    set_params(digits_project, "train.arithmetic=native", "train.epochs=1")
    text = sh(sys.executable, "stages/train.py", cwd=digits_project, MKL_VERBOSE="1")
    assert {mode for *_, mode in products_of(text)} == {"OFF"}


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "x86_64 without AVX2"])
def test_where_arithmetic_cannot_be_portable(
    digits_project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    """Results are made all the same, and a line says what they are."""
    read = Path.read_text

    def without(path: Path, *args: Any, **kwargs: Any) -> str:
        text = read(path, *args, **kwargs)
        return text.replace("avx2", "") if path == Path("/proc/cpuinfo") else text

    if machine.endswith("AVX2"):
        monkeypatch.setattr(Path, "read_text", without)
    else:
        monkeypatch.setattr(platform, "machine", lambda: machine)
    for stage in ("train", "evaluate"):
        outcome = run_stage(digits_project, stage)
        assert outcome.status == 0
        assert outcome.error == (
            "warning: train.arithmetic portable needs an x86-64 processor with AVX2; "
            "on this one the results may differ in the last digits\n"
        )
    assert not os.environ.keys() & PORTABLE.keys()
    assert environment(torch.device("cpu"), "portable")["arithmetic"].startswith("native, ")


def test_native_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PORTABLE:
        monkeypatch.delenv(name, raising=False)
    set_arithmetic("native")
    assert not os.environ.keys() & PORTABLE.keys()
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert environment(torch.device("cpu"), "native")["arithmetic"].endswith(", MKL_CBWR=COMPATIBLE")


def test_more_threads_are_not_portable(digits_project: Path, run_stage: RunStage) -> None:
    set_params(digits_project, "train.threads=3")
    assert_refused(run_stage(digits_project, "train"), "train.threads is 3", "use 2, or arithmetic native")


@needs_avx2
def test_one_thread_gives_the_default_network_the_same_bytes(digits_project: Path) -> None:
    model = (digits_project / "models/lenet.pt").read_bytes()
    set_params(digits_project, "train.threads=1")
    sh(sys.executable, "stages/train.py", cwd=digits_project)
    assert (digits_project / "models/lenet.pt").read_bytes() == model


EMULATOR = portability.EMULATORS["Intel Haswell, QEMU"]


@needs_avx2
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(EMULATOR[0]), reason="needs qemu-x86_64 (on Debian: apt-get install qemu-user)")
def test_an_emulated_processor_gives_the_same_bytes() -> None:
    """The default network on `digits`, all stages; `make portability` has every preset and option."""
    here = portability.start([], "pipeline", "default", {})
    there = portability.start(EMULATOR, "pipeline", "default", {})
    assert len(here) == 25
    assert there == here


def test_the_committed_comparison_found_no_difference() -> None:
    """benchmarks/portability.csv, which `make portability` writes."""
    rows = records("benchmarks/portability.csv")
    rows = [row for row in rows if row["settings"] == "portable" and row["program"] != "products: torch.mm"]
    kinds = ("operations", "pipeline")
    programs = {"products: products.mm", *kinds, *(f"{kind}, augmented" for kind in kinds)}
    assert {row["program"] for row in rows} == programs
    assert {row["processor"] for row in rows} == set(portability.EMULATORS)
    assert all(row["equal"] == row["compared"] > 0 for row in rows)


MADE = {"models/lenet.pt": "a", "metrics/test.json": "b"}
TORCH = {"torch": "0.1; here: 2.0"}
PROCESSOR = {"processor": "a Pentium; here: another"}
NEAR, FAR = Change("metrics/test.json accuracy", 0.99, 0.991), Change("metrics/test.json accuracy", 0.99, 0.5)


@needs_avx2
@pytest.mark.parametrize(
    ("stale", "changes", "metrics", "status", "words"),
    [
        ([], TORCH | PROCESSOR, [NEAR], 3, "by no more than another arithmetic explains (torch)"),
        ([], TORCH, [], 3, "by no more"),
        ([], {"arithmetic": "portable; here: native, NEON"} | PROCESSOR, [NEAR], 3, "(arithmetic, processor)"),
        ([], TORCH, [NEAR, FAR], 1, "by more than another arithmetic explains"),
        ([], PROCESSOR, [NEAR], 1, "although the arithmetic is the same"),
        ([], {}, [], 1, "although the arithmetic is the same"),
        (["stages/train.py"], TORCH, [NEAR], 1, "which was not made from the committed sources"),
        ([], {"unknown": "environment.lock is missing"}, [NEAR], 1, "is unknown: environment.lock is missing"),
    ],
)
def test_verdict(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stale: list[str],
    changes: dict[str, str],
    metrics: list[Change],
    status: int,
    words: str,
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    line, found = verdict(MADE, ["models/lenet.pt"], stale, changes, metrics)
    assert found == status
    assert line.startswith(
        f"{'explained' if status == 3 else 'different'}: 1 of 2 outputs differ from those of dvc.lock, "
    )
    assert words in line
    assert verdict(MADE, [], stale, changes, []) == ("equal: all 2 outputs have the bytes of dvc.lock", 0)


@pytest.mark.slow
def test_verify_where_another_arithmetic_explains_a_difference(digits_project: Path) -> None:
    made = outputs(digits_project)
    lock = digits_project / "dvc.lock"
    lock.write_text(lock.read_text().replace(made["models/lenet.pt"], "ab" * 16))
    there = environment(torch.device("cpu"), "portable") | {"torch": "0.1"}
    record = {"environment": there, "outputs": made | {"models/lenet.pt": "ab" * 16}}
    (digits_project / RECORD).write_text(json.dumps(record))
    commit(digits_project, "from elsewhere")
    text = sh("lenet", "verify", cwd=digits_project, status=3)
    assert text.startswith("explained: 1 of 19 outputs differ from those of dvc.lock, by no more than ")
    assert f"  torch: 0.1; here: {torch.__version__}\n" in text
