"""Damaged and malicious files: a short run of `python tests/fuzz.py`, and files that no mutation makes."""

import io
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, RunStage, assert_refused, sh, tree

FUZZ = str(ROOT / "tests/fuzz.py")


@pytest.mark.slow
def test_no_mutation_breaks_a_reader(tmp_path: Path) -> None:
    options = ["--mutations", "300", "--examples", "30", "--seed", "1"]
    text = sh(sys.executable, FUZZ, *options, cwd=tmp_path, TMPDIR=str(tmp_path))
    assert text.count(" 300 tried") == 13
    assert text.count("    0 failures") == 21
    assert list(tmp_path.iterdir()) == []


BROKEN = """
import runpy, sys, types
from lenet.data import idx, tensors
from lenet.training import checkpoints
idx.zlib = types.SimpleNamespace(error=KeyError)
checkpoints.load = lambda path: {}
load = tensors.load_pt
tensors.load_pt = lambda path: open(f"{path}.extra", "w").close() or load(path)
sys.argv = ["fuzz.py", "--mutations", "50", "--examples", "1"]
"""


@pytest.mark.slow
def test_broken_readers_are_found(tmp_path: Path) -> None:
    """One that lets an exception through, one that accepts a damaged checkpoint, one that writes a file."""
    program = f"{BROKEN}sys.path.insert(0, {str(ROOT / 'tests')!r})\nrunpy.run_path({FUZZ!r}, run_name='__main__')\n"
    text = sh(sys.executable, "-c", program, cwd=tmp_path, status=1, TMPDIR=str(tmp_path))
    for words in (
        "zlib.error: ",
        "AssertionError: a damaged checkpoint would be used",
        "did what a reader must not do: open",
    ):
        assert words in text
    [folder] = tmp_path.iterdir()
    assert {kept.name.split("-")[0] for kept in (folder / "failures").iterdir()} >= {"gzip_images", "checkpoint"}


class Call:
    """Its pickle calls a function when it is loaded."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, ...]:
        return self.call[0], self.call[1:]


def compressed(path: Path) -> None:
    """300 MB of pixels in 300 kB."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            with archive.open(name, "w") as file:
                for _ in range(300 if name.endswith("/data/0") else 1):
                    file.write(bytes(2**20) if name.endswith("/data/0") else content)


def tar(path: Path) -> None:
    """PyTorch's oldest format, which it unpacks into a folder."""
    with tarfile.open(path, "w") as archive:
        for name in ("pickle", "storages", "tensors", "../../outside"):
            entry = tarfile.TarInfo(name)
            entry.size = 5
            archive.addfile(entry, io.BytesIO(b"12345"))


SPOILS: dict[str, Callable[[Path], object]] = {
    "compressed": compressed,
    "tar": tar,
    "bytearray": lambda path: torch.save(Call(bytearray, 3 * 10**9), path),
    "tensor": lambda path: torch.save(Call(torch.Tensor, 40000, 40000), path),
    "long": lambda path: torch.save([None] * 2**21, path),
    "eval": lambda path: torch.save(Call(eval, "open('pwned', 'w')"), path),
}


@pytest.mark.parametrize("case", SPOILS)
def test_files_that_ask_for_too_much(
    digits_project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    temporary = digits_project.parent / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    SPOILS[case](digits_project / "data/processed/training.pt")
    shutil.copy(digits_project / "data/processed/training.pt", digits_project / "models/lenet.pt")
    before = tree(digits_project)
    for stage in ("train", "evaluate"):
        assert_refused(run_stage(digits_project, stage), ".pt: is not a .pt file that is safe to load")
    assert tree(digits_project) == before
    assert list(temporary.iterdir()) == []
    assert not (digits_project / "pwned").exists()


MEASURED = """
import resource, sys
from pathlib import Path
from lenet.data.tensors import load_pt
from lenet.errors import InputError
load_pt(Path("good.pt"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        load_pt(Path(name))
    except InputError:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_files_that_ask_for_too_much_get_no_memory(tmp_path: Path) -> None:
    """In a process of its own, whose peak memory is that of reading them."""
    for name in ("good.pt", *SPOILS):
        torch.save((torch.zeros(2, 28, 28, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)), tmp_path / name)
    for name, spoil in SPOILS.items():
        spoil(tmp_path / name)
    text = sh(sys.executable, "-c", MEASURED, *SPOILS, cwd=tmp_path)
    unit = 1 if sys.platform == "darwin" else 1024
    growth = [int(line) * unit for line in text.split()]
    assert len(growth) == len(SPOILS), "all are refused"
    assert max(growth) < 100e6, "the smallest asks for 300 MB"
