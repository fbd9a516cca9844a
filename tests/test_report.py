"""lenet report and DVC's own pages, opened in a browser that has no network."""

import csv
import json
import re
import shutil
import tomllib
import webbrowser
from collections import Counter
from collections.abc import Callable
from contextlib import chdir
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from conftest import ROOT, RunLenet, assert_refused, commit, set_recorded, sh, shared, tree
from pages import opened, words
from playwright.sync_api import Browser, Page

from lenet.experiments import report
from lenet.experiments.dvc import md5
from lenet.files import write_bytes
from lenet.params import parse_yaml

# A page's name -> what `lenet report` was asked for. `tanh` is a tag, `mlp` an experiment.
PAGES = {"one": ["workspace"], "two": ["HEAD", "tanh"], "three": ["HEAD", "tanh", "mlp"]}
HOSTILE = "</script><script>document.title = 'taken over'</script>"


def rewrite(path: Path, change: Callable[[list[dict[str, str]]], object]) -> None:
    """Change the rows of a CSV file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def record_other_results(project: Path) -> None:
    """Results as if the network had been trained without a validation set, with one error less on the test set."""

    def without_validation(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row["validation_loss"] = row["validation_accuracy"] = ""
        rows[-1]["train_accuracy"] = "1"

    def one_error_less(rows: list[dict[str, str]]) -> None:
        wrong = next(row for row in rows if row["actual"] != row["predicted"])
        wrong["predicted"] = wrong["actual"]

    set_recorded(project, "model.activation=tanh", "preprocess.validation_size=0")
    rewrite(project / "plots/training.csv", without_validation)
    rewrite(project / "plots/predictions.csv", one_error_less)
    path = project / "metrics/test.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {"accuracy": round(metrics["accuracy"] + 1 / 360, 6)}))
    lock: Any = parse_yaml((project / "dvc.lock").read_bytes(), "dvc.lock")
    outputs = {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}
    made = {"environment": {"processor": "An abacus"}, "outputs": outputs}
    (project / "environment.lock").write_text(json.dumps(made))


@pytest.fixture(scope="session")
def reported(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project, `project`, that has several revisions, and with pages about them."""

    def make(folder: Path) -> None:
        project = shutil.copytree(digits_run, folder / "project")
        start = sh("git", "rev-parse", "HEAD", cwd=project).strip()
        record_other_results(project)
        commit(project, HOSTILE)
        sh("git", "tag", "tanh", cwd=project)
        sh("git", "reset", "--quiet", "--hard", start, cwd=project)
        set_recorded(project, "model.architecture=mlp")
        commit(project, "another network")
        sh("git", "update-ref", f"refs/exps/{start[:2]}/{start[2:]}/mlp", "HEAD", cwd=project)
        (project / "metrics/test.json").unlink()
        commit(project, "no results")
        sh("git", "tag", "empty", cwd=project)
        sh("git", "reset", "--quiet", "--hard", start, cwd=project)
        with chdir(project):
            for name, revisions in PAGES.items():
                write_bytes(folder / f"{name}.html", report.page(report.load_all(revisions)))

    return shared(tmp_path_factory, "reported", make)


@pytest.fixture
def project(reported: Path, tmp_path: Path) -> Path:
    """A copy of that project for one test."""
    return shutil.copytree(reported / "project", tmp_path / "project")


DRAWN = "[...document.querySelectorAll('.chart')].every(place => place.querySelector('svg.marks'))"
MARKS = "places => places.map(place => place.querySelectorAll('g.role-mark > path').length)"


@pytest.mark.parametrize("name", PAGES)
def test_every_chart_is_drawn_without_a_network(browser: Browser, reported: Path, name: str) -> None:
    with opened(browser, reported / f"{name}.html") as (page, problems, requests):
        page.wait_for_function(DRAWN)
        marks = page.eval_on_selector_all(".chart", MARKS)
        assert len(marks) == 5
        assert all(marks)
        assert "NaN" not in " ".join(page.locator("svg.marks").evaluate_all("all => all.map(svg => svg.outerHTML)"))
        assert not problems
        assert not requests
        policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content") or ""
        assert policy.startswith("default-src 'none';")
        assert "http" not in policy


def chart(page: Page, name: str) -> Any:
    return page.locator(f'.chart[data-chart="{name}"]')


def test_the_charts_show_what_was_measured(browser: Browser, reported: Path) -> None:
    with opened(browser, reported / "two.html") as (page, *_):
        page.wait_for_function(DRAWN)
        # HEAD has a validation set, tanh has none, and no error after its last epoch: a logarithmic axis has no 0.
        for name in ("Loss", "Error"):
            assert chart(page, name).locator("g.mark-line > path").count() == 3
            assert chart(page, name).locator("g.mark-symbol.role-mark > path").count() == 6
        labels = [
            text for text in chart(page, "Error").locator("g.mark-text.role-mark text").all_text_contents() if text
        ]
        assert labels == ["0%"]
        legend = chart(page, "Loss").locator(".role-legend-label text").all_text_contents()
        assert legend == ["HEAD", "tanh", "training", "validation"]
        counts: list[int] = []
        for revision in ("HEAD", "tanh"):
            table = sh("git", "show", f"{revision}:plots/predictions.csv", cwd=reported / "project")
            counts += Counter(tuple(line.split(",")[:2]) for line in table.splitlines()[1:]).values()
        shown = chart(page, "plots/predictions.csv").locator("g.mark-text.role-mark text").all_text_contents()
        assert sorted(map(int, shown)) == sorted(counts)


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_scrolls_in_one_direction_only(browser: Browser, reported: Path, name: str) -> None:
    with opened(browser, reported / f"{name}.html", width=360) as (page, *_):
        page.wait_for_function(DRAWN)
        page.locator("summary").evaluate_all("all => all.forEach(each => { each.parentElement.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        # What is wider scrolls by itself, by keyboard too.
        wide = page.locator("table, .vega-embed").evaluate_all(
            "all => all.filter(each => each.scrollWidth > 328).map(each => each.closest('.scroll').tabIndex)"
        )
        assert wide
        assert set(wide) == {0}


# The least contrast of the page's and the charts' texts with what is behind them, by WCAG's formula.
CONTRAST = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = colour => {
    const [r, g, b] = numbers(colour).slice(0, 3).map(value => value / 255)
      .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    const colour = getComputedStyle(element).backgroundColor;
    return numbers(colour)[3] === 0 ? behind(element.parentElement) : colour;
  };
  const contrast = (element, property) => {
    const pair = [getComputedStyle(element)[property], behind(element)].map(luminance).sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  };
  const texts = [...document.querySelectorAll("h1, h2, h3, p, a, th, td, caption, figcaption, summary, dt, dd, li")];
  const labels = [...document.querySelectorAll("svg :is(.role-axis, .role-legend, .role-column-header) text")];
  return [texts.length, labels.length,
    Math.min(...texts.map(each => contrast(each, "color")), ...labels.map(each => contrast(each, "fill")))];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast(browser: Browser, reported: Path, scheme: str) -> None:
    with opened(browser, reported / "two.html", scheme=scheme) as (page, *_):
        page.wait_for_function(DRAWN)
        texts, labels, least = page.evaluate(CONTRAST)
        assert texts > 100
        assert labels > 50
        assert least >= 4.5
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
        assert dark == (scheme == "dark")


@pytest.mark.parametrize("name", PAGES)
def test_a_screen_reader_finds_its_way(browser: Browser, reported: Path, name: str) -> None:
    with opened(browser, reported / f"{name}.html") as (page, *_):
        page.wait_for_function(DRAWN)
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.title() == page.locator("h1").text_content()
        for landmark in ("header", "nav[aria-label]", "main"):
            assert page.locator(landmark).count() == 1
        levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(each => Number(each.tagName[1]))")
        assert levels[0] == 1
        assert 1 not in levels[1:]
        assert all(below <= above + 1 for above, below in pairwise(levels))
        alternatives = page.locator("img").evaluate_all("all => all.map(each => each.alt)")
        assert len(alternatives) == 9 * len(PAGES[name])
        assert all(len(text) > 10 for text in alternatives)
        assert page.locator("th:not([scope])").count() == 0
        assert page.locator("table:not(:has(caption))").count() == 0
        assert page.locator("[role=graphics-document][aria-label]:has(svg)").count() == 5
        named = page.locator("[aria-labelledby]").evaluate_all(
            "all => all.map(each => document.getElementById(each.getAttribute('aria-labelledby')).textContent)"
        )
        assert all(named)
        assert len(set(named)) == len(named)
        targets = page.locator("a[href]:not(.vega-actions a)").evaluate_all(
            "all => all.map(a => a.getAttribute('href'))"
        )
        assert all(page.locator(target).count() == 1 for target in targets)


def test_the_keyboard_reaches_everything(browser: Browser, reported: Path) -> None:
    focused = "document.activeElement.textContent.trim()"
    with opened(browser, reported / "one.html") as (page, *_):
        page.wait_for_function(DRAWN)
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == "Skip to the results"
        assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(focused) == "All parameters":
                break
        page.keyboard.press("Enter")
        assert page.get_by_role("rowheader", name="train.learning_rate").is_visible()


def test_one_run(browser: Browser, reported: Path) -> None:
    project = reported / "project"
    head = sh("git", "rev-parse", "HEAD", cwd=project).strip()
    accuracy = json.loads((project / "metrics/test.json").read_text())["accuracy"]
    text = words(browser, reported / "one.html")
    for part in (
        f"scikit-learn's digits: {accuracy:.2%} of 360 test images are classified correctly",
        "The 95% confidence interval is ",
        "A LeNet-5 with 61,706 parameters was trained on 1,294 images for 2 epochs.",
        f"These are the results of the workspace: commit {head[:7]} without uncommitted changes.",
        "train.batch_size 32",
        "C1 convolution, ReLU 5x5 1 0 6@28x28 156 122,304",
        "total 61,706",
        f"Commit {head} a run on digits Uncommitted changes none",
        "Environment not recorded",
        "models/lenet.pt",
    ):
        assert part in text
    with opened(browser, reported / "one.html") as (page, *_):
        pairs = [line.split(",")[:2] for line in (project / "plots/predictions.csv").read_text().splitlines()[1:]]
        wrong = [" taken for ".join(pair) for pair in pairs if pair[0] != pair[1]]
        alternative = page.locator("h3:text-is('Confusion matrix') ~ div img").first.get_attribute("alt") or ""
        found = re.fullmatch(r"(\d+) mistakes; the most frequent: (.+) \((\d+) times?\)\.", alternative)
        assert found
        assert int(found[1]) == len(wrong)
        assert int(found[3]) == wrong.count(found[2]) == max(map(wrong.count, wrong))


def test_two_runs_begin_with_their_differences(browser: Browser, reported: Path) -> None:
    text = words(browser, reported / "two.html")
    for part in (
        "HEAD and tanh differ in preprocess.validation_size and model.activation.",
        "tanh is ahead of HEAD by 0.28 points",
        "Parameters that differ Parameter HEAD tanh preprocess.validation_size 143 0 model.activation relu tanh",
        "+0.28 points",
        "Layers of the network of HEAD",
        "Layers of the network of tanh",
        "Environment of tanh, from environment.lock What Name or version processor An abacus",
        HOSTILE,
    ):
        assert part in text
    assert text.index("Parameters that differ") < text.index("Accuracy, test images")


def test_three_runs_and_an_experiment(browser: Browser, reported: Path) -> None:
    text = words(browser, reported / "three.html")
    assert "Metric HEAD tanh mlp Accuracy" in text
    assert "model.architecture lenet lenet mlp" in text
    assert "Layers of the network of mlp" in text
    assert "Difference" not in text


def test_the_same_revisions_give_the_same_bytes(reported: Path, project: Path, run_lenet: RunLenet) -> None:
    before, status = tree(project), sh("git", "status", "--porcelain", "--ignored", cwd=project)
    outcome = run_lenet(project, "report", "HEAD", "tanh", "HEAD~0")
    assert outcome.status == 0, outcome.error
    assert re.fullmatch(r"dvc_plots/report.html: 2 revisions, [\d.]+ MB\n", outcome.output)
    assert (project / "dvc_plots/report.html").read_bytes() == (reported / "two.html").read_bytes()
    assert str(project).encode() not in (reported / "two.html").read_bytes()
    assert tree(project) == before
    after = sh("git", "status", "--porcelain", "--ignored", cwd=project)
    assert after.replace("!! dvc_plots/\n", "") == status


def test_runs_that_cannot_be_compared_and_pictures_that_are_missing(
    browser: Browser, project: Path, run_lenet: RunLenet
) -> None:
    """A changed workspace, on other data, whose stage plot has not run."""
    set_recorded(project, "data.dataset=mnist")
    (project / "plots/mistakes.png").unlink()
    outcome = run_lenet(project, "report", "HEAD", "workspace")
    assert outcome.status == 0, outcome.error
    text = words(browser, project / "dvc_plots/report.html")
    assert "Test images classified correctly: HEAD (scikit-learn's digits)" in text
    assert "No test of the difference: HEAD and workspace cannot be compared: data.dataset is digits" in text
    assert "DVC could not read plots/mistakes.png of workspace" in text
    assert "Uncommitted changes M dvc.lock M params.yaml D plots/mistakes.png" in text


@pytest.mark.parametrize(
    ("revision", "words"),
    [
        ("nothing-of-that-name", ["neither a revision"]),
        ("empty", ["empty has no results: it has no metrics/test.json"]),
    ],
)
def test_a_revision_without_results(reported: Path, run_lenet: RunLenet, revision: str, words: list[str]) -> None:
    assert_refused(run_lenet(reported / "project", "report", "HEAD", revision), *words)


def test_results_of_another_layout(project: Path, run_lenet: RunLenet) -> None:
    (project / "metrics/test.json").write_text('{"accuracy": "high"}')
    assert_refused(run_lenet(project, "report"), "workspace: its results have another layout")


@pytest.fixture
def _blank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "page", lambda _: b"<!DOCTYPE html>")


@pytest.mark.usefixtures("_blank")
def test_a_page_that_cannot_be_written(project: Path, run_lenet: RunLenet) -> None:
    assert_refused(run_lenet(project, "report", "--out", "plots"), "plots: Is a directory; a file belongs there")
    assert_refused(
        run_lenet(project, "report", "--out", "README.md/x.html"), "README.md: File exists; a folder belongs there"
    )


@pytest.mark.usefixtures("_blank")
def test_opening_the_page(project: Path, run_lenet: RunLenet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def start(url: str) -> bool:
        asked.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", start)
    outcome = run_lenet(project, "report", "--open")
    assert outcome == (0, "dvc_plots/report.html: 1 revision, 0.0 MB\n", "")
    assert asked == [(project / "dvc_plots/report.html").as_uri()]


@pytest.mark.usefixtures("_blank")
@pytest.mark.parametrize("raises", [True, False])
def test_no_browser(project: Path, run_lenet: RunLenet, monkeypatch: pytest.MonkeyPatch, raises: bool) -> None:
    def refuse(_: str) -> bool:
        if raises:
            raise webbrowser.Error("could not locate runnable browser")
        return False

    monkeypatch.setattr(webbrowser, "open", refuse)
    outcome = run_lenet(project, "report", "--open")
    assert_refused(outcome, "no browser could be started; open dvc_plots/report.html yourself")
    assert (project / "dvc_plots/report.html").exists()


def test_a_revision_whose_network_is_gone(browser: Browser, project: Path, run_lenet: RunLenet) -> None:
    """The page says so; the pad is for the others."""
    model = project / "models/lenet.pt"
    shutil.rmtree(project / ".dvc/cache")
    before = md5(model)
    with model.open("ab") as file:
        file.write(b"bytes that change its checksum, and nothing else")
    lock = project / "dvc.lock"
    lock.write_text(lock.read_text().replace(str(before), str(md5(model))))
    assert run_lenet(project, "report", "workspace", "tanh").status == 0
    text = words(browser, project / "dvc_plots/report.html")
    assert "No network to draw for: tanh: DVC has its models/lenet.pt neither in its cache nor in a remote" in text
    with opened(browser, project / "dvc_plots/report.html") as (page, problems, _):
        assert page.locator("table[data-network] caption").all_text_contents() == ["workspace"]
        assert not problems
    model.unlink()
    assert run_lenet(project, "report").status == 0
    with opened(browser, project / "dvc_plots/report.html") as (page, problems, _):
        page.wait_for_function(DRAWN)
        assert page.locator("#draw ~ .note").inner_text() == (
            "No network to draw for: models/lenet.pt: no such file; run `dvc repro`."
        )
        assert page.locator("#pad").count() == 0
        assert not problems


def test_pages_of_dvc_are_drawn_without_a_network(browser: Browser, project: Path) -> None:
    """With the file that `make` puts beside the environment."""
    version = re.findall(r'javascript_bundle\(vl_version="([\d.]+)"\)', (ROOT / "Makefile").read_text())
    vega = project / ".venv/vega.js"
    vega.parent.mkdir()
    vega.write_text(vl_convert.javascript_bundle(vl_version=version[0]))  # type: ignore[call-arg]
    sh("dvc", "plots", "diff", "HEAD", "tanh", cwd=project)
    with opened(browser, project / "dvc_plots/index.html", scheme="dark", local=True) as (page, problems, requests):
        page.wait_for_function("document.querySelectorAll('svg.marks').length === 5")
        assert all(page.eval_on_selector_all("svg.marks", MARKS))
        for place in range(2):  # Loss and error: tanh has no validation set.
            assert page.locator("svg.marks").nth(place).locator("g.mark-line > path").count() == 3
        assert page.evaluate("document.documentElement.lang") == "en"
        assert not [text for text in problems if not text.startswith(("WARN", "The compiled spec uses Vega v5"))]
        assert not requests
    vega.unlink()
    with opened(browser, project / "dvc_plots/index.html", local=True) as (_, _, requests):
        assert [url.rpartition("/")[2].partition("@")[0] for url in requests] == ["vega", "vega-lite", "vega-embed"]


def test_an_installed_package_has_what_the_pages_need() -> None:
    """Not only the editable one that `make` installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["package-data"]
    for path in (ROOT / "stages/lenet").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            package = ".".join(path.relative_to(ROOT / "stages").parent.parts)
            assert any(path.match(pattern) for pattern in listed.get(package, ())), path
