"""benchmarks/: that they measure what they say. How fast anything is no test asks."""

import csv
import gzip
import sys
from pathlib import Path

import pytest
from conftest import MNIST, ROOT, needs_mnist, sh

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench


def test_seconds_and_memory_are_the_programs_own(tmp_path: Path) -> None:
    own = bytearray(300_000_000)  # What measures may be large itself.
    small = bench.run(sys.executable, "-c", "import time; time.sleep(0.5); print('done')", cwd=tmp_path)
    large = bench.run(sys.executable, "-c", "b'x' * 200_000_000", cwd=tmp_path)
    del own
    assert small.output == "done\n"
    assert 0.5 < small.seconds < 5
    assert small.memory < 100
    assert 200 < large.memory < 300


def test_a_program_that_fails_ends_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        bench.run(sys.executable, "-c", "raise ValueError('no such thing')", cwd=tmp_path)


def test_ratios_are_made_pair_by_pair() -> None:
    row = bench.paired("a", "b", [1.0, 2.0, 4.0], [2.0, 10.0, 12.0])
    assert (row.ours, row.theirs, row.runs) == (2.0, 10.0, 3)
    assert (row.ratio, row.ratio_least, row.ratio_most) == (3.0, 2.0, 5.0)
    assert bench.paired("a", "b", [1.0, 2.0, 4.0], [8.0]).ratio == 4.0, "one long run beside several"


@needs_mnist
def test_the_conventional_script_does_the_whole_job(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in MNIST.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    script = str(ROOT / "benchmarks" / "conventional.py")
    text = sh(sys.executable, script, str(tmp_path), "--epochs", "2", "--images", "6400", cwd=tmp_path)
    [accuracy] = [line for line in text.splitlines() if line.startswith("accuracy")]
    assert float(accuracy.split()[1].rstrip("%")) > 50
    assert text.count("  of ") == 10
    assert {path.name for path in tmp_path.glob("*.png")} == {"loss.png", "confusion.png"}


def test_the_committed_results_are_of_the_whole_benchmark() -> None:
    with (ROOT / "benchmarks/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == [*bench.Row._fields, "machine"]
    assert len({row["machine"] for row in rows}) == 1
    compared = {row["what"]: float(row["ratio"]) for row in rows if row["ratio"]}
    assert any("10 epochs" in what for what in compared), "not --quick"
    for row in rows:
        for figure in ("ours", "theirs", "ratio") if row["against"] else ("ours",):
            assert float(row[f"{figure}_least"]) <= float(row[figure]) <= float(row[f"{figure}_most"])
