"""benchmarks/: that they measure what they say. No test asks how fast anything is."""

import csv
import gzip
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import MNIST, ROOT, needs_mnist, sh

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench
import rounds

from lenet.results.figures import to_png


def test_seconds_and_memory_are_the_programs_own(tmp_path: Path) -> None:
    own = bytearray(300_000_000)  # The measuring program may itself be large.
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


def test_variants_are_measured_in_turn_and_compared_with_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {("a", "first"): [1.0, 2.0, 3.0], ("a", "other"): [4.0, 4.0, 4.0], ("b", "first"): [5.0, 5.0, 5.0]}
    order = []

    def measure(group: str, name: str) -> float:
        order.append((group, name))
        return times[group, name][(len(order) - 1) // 3]

    groups = {"a": ["first", "other"], "b": ["first"]}
    rounds.compare(measure, groups, 3, tmp_path / "table.csv", ["group", "name", "ms"])
    assert order == [*times] * 3
    header, *rows = csv.reader((tmp_path / "table.csv").read_text().splitlines())
    assert header == [
        *["group", "name", "ms", "ms_least", "ms_most", "ratio", "ratio_least", "ratio_most", "rounds", "machine"]
    ]
    assert [row[:-1] for row in rows] == [
        ["a", "first", "2", "1", "3", "1", "1", "1", "3"],
        ["a", "other", "4", "4", "4", "2", "1.33333", "4", "3"],
        ["b", "first", "5", "5", "5", "1", "1", "1", "3"],
    ]
    assert "4.00 ms (4.00 to 4.00); ratio 2.00 (1.33 to 4.00)" in capsys.readouterr().out


@pytest.mark.slow
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


def committed() -> list[dict[str, str]]:
    with (ROOT / "benchmarks/results.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_committed_results_are_of_the_whole_benchmark() -> None:
    rows = committed()
    assert [*rows[0]] == [*bench.Row._fields, "machine"]
    assert len({row["machine"] for row in rows}) == 1
    compared = {row["what"]: float(row["ratio"]) for row in rows if row["ratio"]}
    assert any("10 epochs" in what for what in compared), "not --quick"
    for row in rows:
        for figure in ("ours", "theirs", "ratio") if row["against"] else ("ours",):
            assert float(row[f"{figure}_least"]) <= float(row[figure]) <= float(row[f"{figure}_most"])


def as_row(line: dict[str, str]) -> bench.Row:
    texts = {"what", "unit", "against"}
    values: list[Any] = [line[name] if name in texts else float(line[name] or "nan") for name in bench.Row._fields]
    return bench.Row(*values)


def test_the_picture_of_the_committed_results() -> None:
    """It has a title for each panel, and each median, with its range, is within the limits."""
    lines = committed()
    rows = [as_row(line) for line in lines]
    figure = bench.picture(rows, lines[0]["machine"])
    content = to_png(figure)
    assert content.startswith(b"\x89PNG")
    assert len(content) < 300_000
    above, images, threads, batch = (axes for part in figure.subfigs for axes in part.axes)

    compared = [row for row in rows if row.against.startswith((bench.LOOP, bench.SCRIPT, bench.EXAMPLE))]
    compared.sort(key=lambda row: row.against.startswith(bench.EXAMPLE))
    assert [row.against.split(" (")[0] for row in compared][-1] == bench.EXAMPLE
    networks = [*(len(compared) - 1) * ["the same"], "another"]
    assert [label.get_text().lower() for label in above.get_yticklabels()] == [
        f"{row.what}\nagainst {network} network: {row.against}".lower()
        for row, network in zip(compared, networks, strict=True)
    ]
    assert above.get_xscale() == "log"
    low, high = above.get_xlim()
    assert low == 1
    for row, bars, note in zip(compared, above.containers, above.texts, strict=True):
        assert low < row.ratio_least <= row.ratio_most < high
        assert bars[0].get_xdata() == pytest.approx([row.ratio])
        assert bars[2][0].get_segments()[0][:, 0] == pytest.approx([row.ratio_least, row.ratio_most])
        assert note.get_text().startswith(f"{row.ratio:.1f} (")
    assert above.containers[0][0].get_marker() != above.containers[-1][0].get_marker()

    sizes = [32, 64, 128, 256, 512, 1024]
    for axes, words, at in (
        (images, " x 15,000 images", [15_000, 30_000, 60_000, 120_000]),
        (threads, " thread", [1, 2]),
        (batch, ", batch", sizes),
    ):
        shown = [row for row in rows if row.what.startswith("an epoch") and words in row.what]
        points, _, [bars] = axes.containers[0]
        assert points.get_xdata().tolist() == at
        assert points.get_ydata() == pytest.approx([row.ours for row in shown])
        assert (points.get_linestyle() == "None") == (len(at) == 2), "no line through two points"
        assert axes.get_title().startswith("Time of an epoch")
        assert axes.get_ylabel() == "Seconds per epoch"
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] > max(row.ours_most for row in shown)
        assert axes.get_xlim()[0] < at[0]
        assert axes.get_xlim()[1] > at[-1]
        ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
        assert ends == [pytest.approx([row.ours_least, row.ours_most]) for row in shown]
    assert [label.get_text() for label in batch.get_xticklabels()] == list(map(str, sizes))


def test_the_picture_where_the_pipeline_is_slower() -> None:
    rows = [as_row(line) for line in committed()]
    slower = [
        row._replace(ratio=0.5, ratio_least=0.4, ratio_most=0.6) if row.against == bench.LOOP else row for row in rows
    ]
    axes = bench.picture(slower, "any").subfigs[0].axes[0]
    assert axes.get_xlim()[0] < 0.4
