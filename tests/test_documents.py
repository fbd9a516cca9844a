"""README and docs: every figure in them comes from a committed table, and every command and link exists."""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas
import pytest
from conftest import FILES, ROOT, RunLenet, sh

from lenet.data.catalog import CATALOG
from lenet.experiments.presets import load_preset, names
from lenet.experiments.verify import TOLERANCE
from lenet.network.capture import LARGEST
from lenet.training.checkpoints import KEPT

sys.path.insert(0, str(ROOT / "benchmarks"))
from pytorch_example import Net

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]

# Figures that no table has, and what they are.
CONSTANTS = {
    "6 GB": "the size of .venv on Linux",
    f"{sum(resource.size for resource in FILES) / 1e6:.1f} MB": "MNIST's four files",
    "0.95%": "the paper's test error",
    "99.5%": "the goal of lenet5-best at first",
    "99.6%": "its goal today",
    "99.48%": "what it reached before",
    "92.36% ± 0.10": "what lenet5-fashion reached at first",
    "92.5%": "its further goal",
    "99.0%": "the target of the benchmark",
    "80%": "an example of a probability",
    "95%": "the level of all intervals",
    "99%": "of the validation images, all but the share that is strange",
    "86.4%": "the probability in docs/explained.png",
    "21.8%": "and of that picture itself",
    "20 minutes": "how long `make bench` runs, in the Makefile too",
    "30 s": "how long tests/faults.py cuts a host off",
}


def page(name: str) -> str:
    return (ROOT / name).read_text()


def records(name: str) -> list[dict[str, Any]]:
    """The rows of a committed CSV file."""
    rows: list[dict[str, Any]] = pandas.read_csv(ROOT / name).to_dict("records")  # type: ignore[assignment]
    return rows


def table(name: str) -> dict[str, dict[str, Any]]:
    """The rows of a committed CSV file by their first column."""
    return {str(next(iter(row.values()))): row for row in records(name)}


def spread(row: dict[str, Any], name: str, form: str = "{:.2f}", unit: str = "") -> str:
    """A median with its range, as the pages write it."""
    median, least, most = (form.format(row[f"{name}{end}"]) for end in ("", "_least", "_most"))
    return f"{median}{unit}" + (f" ({least} to {most})" if least != most else "")


def zoo(name: str = "metrics/zoo.csv") -> list[str]:
    rows = table(name)
    columns = ["preset", "parameters", "epochs", "test accuracy, mean ± deviation", "minimum to maximum"]
    has_claims = any(row["claimed"] > 0 for row in rows.values())
    lines = [columns + ["claim"] * has_claims]
    for preset, row in rows.items():
        mean = f"{row['accuracy_mean']:.2%} ± {100 * row['accuracy_std']:.2f}"
        ends = f"{row['accuracy_min']:.2%} to {row['accuracy_max']:.2%}"
        claim = f"{row['claimed']:.2%}" if row["claimed"] > 0 else ""
        cells = [f"`{preset}`", f"{row['parameters']:,}", str(row["epochs"]), mean, ends]
        lines.append(cells + [claim] * has_claims)
    header, *body = [f"| {' | '.join(cells)} |" for cells in lines]
    return [header, f"|{len(lines[0]) * '---|'}", *body]


def published() -> list[str]:
    rows = ["| network | published test accuracy |", "|---|---|"]
    return rows + [f"| {row['network']} | {row['accuracy']:.1%} |" for row in records("docs/published.csv")]


def splits() -> list[str]:
    """Errors of each kind of split over its seeds; the difference is taken run by run."""
    rows = [
        "| data | held out | validation error, mean ± deviation | test error, mean ± deviation "
        "| validation minus test, mean ± deviation |",
        "|---|---|---|---|---|",
    ]
    for (dataset, hold_out), runs in pandas.read_csv(ROOT / "benchmarks/splits.csv").groupby(
        ["dataset", "hold_out"], sort=False
    ):
        validation, test = (100 * runs[f"{kind}_error"] for kind in ("validation", "test"))
        cells = [f"{column.mean():.2f}% ± {column.std():.2f}" for column in (validation, test, validation - test)]
        rows.append(f"| `{dataset}` | {hold_out} | {' | '.join(cells)} |")
    return rows


def datasets() -> list[str]:
    rows = [
        "| `data.dataset` | images for training and test | mean, standard deviation | licence | mirror of your own |",
        "|---|---|---|---|---|",
    ]
    for name, entry in CATALOG.items():
        images = f"{entry.images[0]:,} and {entry.images[1]:,}"
        mirror = f"`{entry.source.variable}`" if entry.source else "not needed: in scikit-learn's package"
        numbers = f"{entry.info.mean:.4f}, {entry.info.std:.4f}"
        rows.append(f"| `{name}` | {images} | {numbers} | {entry.licence} | {mirror} |")
    return rows


def choice() -> list[str]:
    """What is left of each preset without one of its ingredients; the difference is taken split by split."""
    rows = ["| preset | changed | split 0 | split 1 | split 2 | mean | difference ± deviation |", f"|{7 * '---|'}"]
    columns = ["split_0", "split_1", "split_2"]
    for preset, candidates in pandas.read_csv(ROOT / "benchmarks/choice.csv").groupby("preset", sort=False):
        whole = candidates.iloc[0][columns]
        for _, row in candidates.iterrows():
            accuracies = " | ".join(f"{row[name]:.2%}" for name in (*columns, "mean"))
            points = 100 * (row[columns] - whole).astype(float)
            difference = (
                f"{round(points.mean(), 2) + 0:+.2f} ± {points.std():.2f}" if row["candidate"] != "nothing" else ""
            )
            rows.append(f"| `{preset}` | {row['candidate']} | {accuracies} | {difference} |")
    return rows


def lost() -> list[str]:
    """What was tried and is not used, of benchmarks/candidates.csv."""
    rows = ["| for | epochs | splits | what was tried | with | without |", "|---|---|---|---|---|---|"]
    for row in records("benchmarks/candidates.csv"):
        if row["accuracy_without"] > 0:  # NaN where it is not one thing that was tried.
            accuracies = f"{row['accuracy']:.2%} | {row['accuracy_without']:.2%}"
            rows.append(f"| `{row['for']}` | {row['epochs']} | {row['splits']} | {row['lever']} | {accuracies} |")
    return rows


def quickest() -> list[str]:
    """Ratios are of pairs of runs with the same seed, or of the only run to each of lenet5-fast."""
    lines = ["| training | runs | epochs | test accuracy, mean ± deviation | seconds | ratio |", f"|{6 * '---|'}"]
    table = pandas.read_csv(ROOT / "benchmarks/records.csv")
    ours = table[table["what"] == "lenet5-fast"]["seconds"].to_numpy()
    names = {
        "lenet5-fast": "`lenet5-fast`, all of it",
        "default parameters": "default parameters, to 99.0%",
        "PyTorch's example": "another network, PyTorch's example, to 99.0%",
        "lenet5-best": "`lenet5-best`, all of it",
    }
    for what, name in names.items():
        runs = table[table["what"] == what]
        epochs, accuracy, seconds = runs["epochs"], runs["accuracy"], runs["seconds"]
        ratios = pandas.Series(seconds.to_numpy() / ours)
        cells = [
            name,
            f"{len(runs)}",
            f"{epochs.min()}" if epochs.nunique() == 1 else f"{epochs.min()} to {epochs.max()}",
            f"{accuracy.mean():.2%}" + (f" ± {100 * accuracy.std():.2f}" if len(runs) > 1 else ""),
            f"{seconds.median():.1f} s" + (f" ({seconds.min():.1f} to {seconds.max():.1f})" if len(runs) > 1 else ""),
            "" if what == "lenet5-fast" else f"{ratios.median():.1f} ({ratios.min():.1f} to {ratios.max():.1f})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def results() -> list[str]:
    rows = table("benchmarks/results.csv")

    def compared(what: str, label: str, other: str, form: str = "{:.1f}") -> str:
        row = rows[what]
        ours, theirs = spread(row, "ours", form, " s"), spread(row, "theirs", "{:.1f}", " s")
        if row["theirs_least"] == row["theirs_most"]:
            theirs = f"{row['theirs']:.0f} s, once"
        return f"| {label} | {ours} | {other}: {theirs} | {spread(row, 'ratio', '{:.1f}')} |"

    def idle(what: str) -> str:
        row, more = rows[what], rows[f"{what}, more than on five empty stages"]
        ours, theirs = spread(row, "ours", unit=" s"), spread(row, "theirs", unit=" s")
        name = what.replace("dvc repro", "`dvc repro`").replace("dvc metrics diff", "`dvc metrics diff`")
        return f"| {name} | {ours} | five empty stages: {theirs} | {more['ours']:.2f} s more |"

    stages = ("download", "preprocess", "train", "evaluate", "plot")
    scripts = [f"python stages/{name}.py{', training excepted' if name == 'train' else ''}" for name in stages]
    seconds = ", ".join(f"{rows[script]['ours']:.1f}" for script in scripts)
    memory = ", ".join(f"{rows[f'peak memory of {name}']['ours']:.0f}" for name in stages)
    torch, data = (rows[what]["ours"] for what in ("peak memory of import torch", "data/processed"))
    example = rows["training to 99.0% test accuracy, default parameters"]
    ended = re.fullmatch(r".* \((\d+) epochs, (.*)\)", str(example["against"]))
    assert ended
    evaluation = rows["evaluation of 10,000 images, start-up excepted"]
    repro = rows["dvc repro of all five stages, training excepted"]
    return [
        "| work | the pipeline | compared with | ratio |",
        "|---|---|---|---|",
        compared(
            "the first epoch of lenet5-tanh",
            "an epoch of `lenet5-tanh`, the first",
            "the same network, conventional loop",
        ),
        compared(
            "the whole job with lenet5-tanh, 10 epochs, dvc repro",
            "the whole job: `dvc repro` with `lenet5-tanh`, 10 epochs",
            "the same network, conventional script",
        ),
        compared(
            "training to 99.0% test accuracy, default parameters",
            f"training to 99.0% on the test set, default parameters, {example['runs']} seeds",
            f"another network, PyTorch's example, {ended[1]} epochs to {ended[2]}",
        ),
        f"| `dvc repro` of all five stages, training excepted | {spread(repro, 'ours', '{:.1f}', ' s')} | | |",
        f"| of which {', '.join(stages)} | {seconds} s | | |",
        idle("dvc repro with nothing to do"),
        idle("dvc metrics diff"),
        f"| evaluation of 10,000 images, start-up excepted | {spread(evaluation, 'ours', unit=' s')} | | |",
        f"| peak memory of {', '.join(stages)} | {memory} MB | "
        f"`import torch`: {torch:.0f} MB; the data: {data:.0f} MB | |",
    ]


def steps() -> list[str]:
    rows = {(row["case"], row["way"]): row for row in records("benchmarks/steps.csv")}
    cases, ways = (dict.fromkeys(key[place] for key in rows) for place in (0, 1))
    header = " | ".join(f"{case}: ms | ratio" for case in cases)
    lines = [f"| | {header} |", f"|---|{'---|' * 2 * len(cases)}"]
    for way in ways:
        cells = []
        for case in cases:
            row = rows.get((case, way))
            cells += [spread(row, "ms"), spread(row, "ratio")] if row else ["", ""]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def busy() -> list[str]:
    rows = {(row["wait"], row["at_once"]): row for row in records("benchmarks/busy.csv")}
    lines = ["| wait | alone | two at once | ratio |", "|---|---|---|---|"]
    for wait in dict.fromkeys(wait for wait, _ in rows):
        one, two = rows[wait, 1], rows[wait, 2]
        name = f"`{wait}`" if "." in wait else wait
        seconds = " | ".join(spread(row, "seconds", "{:.1f}") for row in (one, two))
        lines.append(f"| {name} | {seconds} | {spread(two, 'ratio', '{:.1f}')} |")
    return lines


def portability() -> list[str]:
    lines = ["| results | settings | emulated processor | equal |", "|---|---|---|---|"]
    for row in records("benchmarks/portability.csv"):
        program, _, way = row["program"].partition(": ")
        name = f"{program}, `{way}`" if way else program
        equal = f"{row['equal']:,} of {row['compared']:,}"
        lines.append(f"| {name} | {row['settings']} | {row['processor']} | {equal} |")
    return lines


def reading() -> list[str]:
    lines = ["| MNIST's test images | files | read right | other prediction than in `evaluate` | strange |"]
    lines.append("|---|---|---|---|---|")
    for row in records("benchmarks/reading.csv"):
        if row["right"] >= 0:  # NaN if they are no digits.
            counts = (row[name] for name in ("images", "right", "other_prediction", "strange"))
            lines.append(f"| {row['what']} | {' | '.join(f'{count:,.0f}' for count in counts)} |")
    return lines


def rejected() -> list[str]:
    lines = ["| other things | files | strange | blank | taken for a digit |", "|---|---|---|---|---|"]
    for row in records("benchmarks/reading.csv"):
        if not row["right"] >= 0:
            counts = [row[name] for name in ("images", "strange", "blank")]
            counts.append(counts[0] - counts[1] - counts[2])
            lines.append(f"| {row['what']} | {' | '.join(f'{count:,.0f}' for count in counts)} |")
    return lines


def using() -> list[str]:
    lines = ["| what | value |", "|---|---|"]
    for name, row in table("benchmarks/using.csv").items():
        match row["unit"]:
            case "kB":
                value = f"{row['value']:,.0f} kB"
            case "s" | "ms" as unit:
                value = spread(row, "value", "{:.1f}", f" {unit}")
            case _:
                value = f"{row['value']:.1e}"
        lines.append(f"| {name.replace('lenet predict', '`lenet predict`')} | {value} |")
    return lines


def cluster() -> list[str]:
    """All but what the others follow from."""
    units = {
        "s": "{:.1f} s",
        "ms": "{:.1f} ms",
        "1/s": "{:.0f} a second",
        "MB": "{:.0f} MB",
        "%": "{:.0f}%",
        "times": "{:.1f} times",
    }
    lines = ["| what | value |", "|---|---|"]
    for row in records("benchmarks/cluster.csv"):
        values = [row[name] for name in ("value", "least", "most")]
        if "at first" in row["what"] or "time for each" in row["what"]:
            continue
        if str(values[0]).startswith("over"):
            text = f"{values[0]} s"
        else:
            middle, low, high = (units[row["unit"]].format(float(value)) for value in values)
            text = middle if low == high else f"{middle} ({low.split()[0]} to {high.split()[0]})"
        lines.append(f"| {row['what']} | {text} |")
    return lines


TABLES: dict[str, tuple[Callable[[], list[str]], str]] = {
    "metrics/zoo.csv": (zoo, "docs/networks.md"),
    "metrics/zoo-fashion_mnist.csv": (partial(zoo, "metrics/zoo-fashion_mnist.csv"), "docs/networks.md"),
    "benchmarks/choice.csv": (choice, "docs/records.md"),
    "benchmarks/candidates.csv": (lost, "docs/records.md"),
    "benchmarks/records.csv": (quickest, "docs/records.md"),
    "benchmarks/splits.csv": (splits, "docs/data.md"),
    "benchmarks/results.csv": (results, "docs/performance.md"),
    "benchmarks/steps.csv": (steps, "docs/performance.md"),
    "benchmarks/busy.csv": (busy, "docs/performance.md"),
    "benchmarks/portability.csv": (portability, "docs/reproducibility.md"),
    "benchmarks/reading.csv": (reading, "docs/using.md"),
    "benchmarks/using.csv": (using, "docs/using.md"),
    "benchmarks/cluster.csv": (cluster, "docs/cluster.md"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_page_has_the_rows_of_its_table(name: str) -> None:
    rows, where = TABLES[name]
    assert "\n".join(rows()) in page(where)
    [machine] = {row["machine"] for row in records(name)}
    assert re.split(r", (?:torch|AVX)", machine)[0] in page(where).replace("\n", " "), "the page names the machine"


def test_the_pages_have_the_data_sets_and_the_published_figures() -> None:
    assert "\n".join(datasets()) in page("docs/data.md")
    assert "\n".join(published()) in page("docs/networks.md")
    assert "\n".join(rejected()) in page("docs/using.md")


def committed() -> dict[str, float]:
    """The committed metrics by their names in DVC's tables."""
    files = ("train", "test", "per_class")
    return {name: value for file in files for name, value in json.loads(page(f"metrics/{file}.json")).items()}


EXPERIMENTS = "docs/experiments.csv"  # What `dvc exp show --csv` gives after the README's commands.


def test_the_metrics_diff_of_the_readme() -> None:
    tanh, head = table(EXPERIMENTS)["tanh"], committed()
    line = r"^    metrics/\w+\.json +(\w+) +([\d.]+) +([\d.]+) +(-?[\d.]+)$"
    block = re.findall(line, page("README.md"), re.MULTILINE)
    assert {"accuracy", "loss", "validation_accuracy", "0", "9"} <= {name for name, *_ in block}
    for name, *figures in block:
        here = tanh[name]
        # DVC rounds to five decimals.
        assert [float(figure) for figure in figures] == pytest.approx([head[name], here, here - head[name]], abs=6e-6)


def test_the_grid() -> None:
    grid = {name: row for name, row in table(EXPERIMENTS).items() if row["train.threads"] == 1}
    line = r"\[([\w-]+)\] +([\d.]+) +([\d.]+) +(relu|tanh) +(\d) +1$"
    block = re.findall(line, page("docs/comparing.md"), re.MULTILINE)
    assert len(block) == len(grid) == 6
    for name, validation, test, activation, seed in block:
        row = grid[name]
        assert (activation, int(seed)) == (row["model.activation"], row["train.seed"])
        figures = [row["validation_accuracy"], row["accuracy"]]
        assert [float(validation), float(test)] == pytest.approx(figures, abs=6e-6)
    relu, tanh = (
        {row["train.seed"]: row["accuracy"] for row in grid.values() if row["model.activation"] == name}
        for name in ("relu", "tanh")
    )
    assert all(relu[seed] > tanh[seed] for seed in range(3)), "as the page says"


COMPARISONS = {name: f"docs/comparison-{name}.txt" for name in ("runs", "seeds")}  # What `lenet compare` printed.


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_comparisons_are_what_lenet_printed(name: str) -> None:
    printed = page(COMPARISONS[name]).splitlines()
    assert "".join(f"    {line}\n" if line else "\n" for line in printed) in page("docs/comparing.md")
    assert printed[0] in page("README.md").replace(";\n    ", "; ")


def test_the_search_is_what_lenet_printed() -> None:
    """At its end, without the lines of the single trials."""
    printed = page("docs/search.txt").splitlines()
    assert "".join(f"    {line}\n" if line else "\n" for line in printed) in page("docs/cluster.md")


def test_the_comparisons_are_of_the_committed_runs() -> None:
    head, tanh = committed(), table(EXPERIMENTS)["tanh"]
    runs = page(COMPARISONS["runs"])
    assert re.search(rf"^  all {100 * head['accuracy']:.2f} +{100 * tanh['accuracy']:.2f} ", runs, re.MULTILINE)
    for digit in range(10):
        both = f"{100 * head[str(digit)]:.2f} +{100 * tanh[str(digit)]:.2f}"
        assert re.search(rf"^ +{digit} {both} ", runs, re.MULTILINE)


# Numbers with a unit, in prose and tables; a range ends with its unit.
FIGURE = re.compile(r"(?<![\w.])(\d[\d,.]*(?: (?:to|±) \d[\d.]*%?)? ?(?:%|s|ms|MB|GB|minutes|times)(?![\w/]))")


def known() -> str:
    """Every figure that the tables give, in the forms in which the pages write them."""
    rows = [line for rows, _ in TABLES.values() for line in rows()] + published()
    epoch = table("benchmarks/results.csv")["the first epoch of lenet5-tanh"]
    texts = [
        *rows,
        *CONSTANTS,
        *(page(name) for name in COMPARISONS.values()),
        page("docs/search.txt"),
        *(f"{value:.2%}" for value in committed().values()),
        *(f"{epoch[name]:.1f} s {epoch[name]:.1f} times" for name in ("ours", "theirs", "ratio")),
        f"{1 - table('metrics/zoo.csv')['lenet5-1998']['accuracy_mean']:.2%}",
    ]
    return "\n".join(texts)


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_has_a_table(name: str) -> None:
    """A figure without a table is one that nothing computes, or that is out of date."""
    tables = known()
    figures = [text for line in page(name).splitlines() for text in FIGURE.findall(line)]
    assert [text for text in figures if not re.search(rf"(?<![\d.,]){re.escape(text)}", tables)] == []


def test_numbers_from_the_code() -> None:
    performance, recovery, reproducibility = (
        " ".join(page(f"docs/{name}.md").split()) for name in ("performance", "recovery", "reproducibility")
    )
    example = sum(parameter.numel() for parameter in Net().parameters())
    assert f"{example / 1e6:.1f} million parameters" in performance
    assert f"more than {LARGEST:,} images are not captured" in performance
    accuracy, loss, of_class = (TOLERANCE[name] for name in ("accuracy", "loss", "accuracy of a class"))
    assert TOLERANCE["calibration_error"] == accuracy
    tolerated = f"accuracies and the calibration error by {accuracy}, losses by {loss}, the accuracy of a class by"
    assert f"{tolerated} {of_class}" in reproducibility
    assert KEPT == 10
    assert "The ten newest checkpoints" in recovery


def test_the_comparison_that_a_reader_meets_first() -> None:
    """It compares the same network and gives the spread."""
    epoch = table("benchmarks/results.csv")["the first epoch of lenet5-tanh"]
    text = " ".join(page("README.md").split())
    seconds = f"takes {epoch['ours']:.1f} s and {epoch['theirs']:.1f} s in a conventional PyTorch script"
    ends = f"{epoch['ratio_least']:.1f} to {epoch['ratio_most']:.1f} in {epoch['runs']} pairs of runs"
    ratio = f"{epoch['ratio']:.1f} times as long ({ends}"
    assert f"An epoch of the preset `lenet5-tanh` {seconds} with the same network and settings: {ratio}" in text
    assert f"{committed()['accuracy']:.2%} of the test images" in text


def test_every_preset_and_its_source_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    [sources] = re.findall(r"^## The sources\n(.*?)^## ", page("docs/networks.md"), re.MULTILINE | re.DOTALL)
    for name in names():
        [entry] = [entry for entry in sources.split("\n- ") if f"`{name}`" in entry.split(":")[0]]
        for address in re.findall(r"https://\S+", load_preset(name).source):
            assert address in entry


@pytest.mark.parametrize("settings", [[], ["--set", "data.dataset=fashion_mnist"]])
def test_the_zoo_was_made_from_what_is_committed(run_lenet: RunLenet, settings: list[str]) -> None:
    """After a change of code or presets rerun `lenet zoo --seeds 5`, with these settings; update docs/networks.md."""
    outcome = run_lenet(ROOT, "zoo", "--check", *settings)
    assert outcome.status == 0, outcome.error


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    """Files exist, and a page has the heading that an anchor names."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page(name)):
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_readme_is_short() -> None:
    assert len(page("README.md").splitlines()) <= 150


def test_the_table_of_layers_is_what_lenet_prints() -> None:
    printed = sh("lenet", "describe", "lenet5-1998", cwd=ROOT)
    assert "".join(f"    {line}\n" for line in printed.splitlines()) in page("docs/networks.md")


def test_every_dependency_is_explained() -> None:
    """docs/dependencies.md says what each is for, and names none that pyproject.toml does not have."""
    project = page("pyproject.toml").split("[tool.")[0]
    wanted = set(re.findall(r'^    "([\w.-]+)[>=]', project, re.MULTILINE))
    rows = [line.split("|")[1] for line in page("docs/dependencies.md").splitlines() if line.startswith("| ")][1:]
    listed = {name for row in rows for name in re.split(r"[,;]\s*", row.strip()) if not name.startswith("*for")}
    types = {name for name in wanted if name.startswith("types-")}
    assert (wanted - types) | ({"types-*"} if types else set()) == listed
