"""What dvc.yaml declares is what the stages use: what it omits is a stale result, what it adds a needless run.

Each stage runs under a tracer, once for each way through it that uses other modules or parameters.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, set_params, sh
from ruamel.yaml import YAML

from lenet.params import Params

WAYS = {
    "download": [["data.dataset=digits"], ["data.dataset=mnist"]],
    "preprocess": [[]],
    "train": [["train.epochs=1"], ["train.epochs=1", "train.optimizer=sgd"]],
    "evaluate": [[]],
    "plot": [[]],
}
TRACER = ROOT / "tests" / "trace_stage.py"


def graph(project: Path) -> dict[str, Any]:
    stages: dict[str, Any] = YAML(typ="safe").load(project / "dvc.yaml")["stages"]
    return stages


def paths(stage: dict[str, Any], *kinds: str) -> set[str]:
    """The paths that a stage lists under dvc.yaml's keys, with or without options behind them."""
    return {
        path
        for kind in kinds
        for entry in stage.get(kind, [])
        for path in ([entry] if isinstance(entry, str) else entry)
    }


def used(project: Path, name: str) -> dict[str, set[str]]:
    """What a stage used, over all ways through it."""
    found: dict[str, set[str]] = {"modules": set(), "opened": set(), "parameters": set()}
    for overrides in WAYS[name]:
        set_params(project, *overrides)
        report = project / "trace.json"
        # MNIST's download fails here, for there is no network: what it imported on its way is what is looked at.
        sh(sys.executable, str(TRACER), str(report), f"stages/{name}.py", cwd=project, status=None)
        for kind, items in json.loads(report.read_text()).items():
            found[kind] |= set(items)
        sh("git", "checkout", "-q", "params.yaml", cwd=project)
    return found


def problems(project: Path, name: str) -> Iterator[str]:
    """Where dvc.yaml and what the stage did disagree."""
    stage, use = graph(project)[name], used(project, name)
    dependencies, outputs = paths(stage, "deps"), paths(stage, "outs", "metrics", "plots")
    sources = {path for path in dependencies if path.startswith("stages/")}
    yield from (f"{path} is imported, not declared" for path in use["modules"] - sources)
    yield from (f"{path} is declared, not imported" for path in sources - use["modules"])

    def covered(path: str, by: set[str]) -> bool:
        return any(path == entry or path.startswith(f"{entry}/") for entry in by)

    data = {path for path in use["opened"] if path.startswith(("data/", "models/", "metrics/", "plots/"))}
    data = {path for path in data if not path.startswith("data/downloads/") and not path.endswith(".part")}
    yield from (f"{path} is opened, not declared" for path in data if not covered(path, dependencies | outputs))
    inputs = dependencies - sources
    yield from (f"{path} is declared, not read" for path in inputs if not any(covered(file, {path}) for file in data))

    declared = {f"{section}.{key}" for section in stage["params"] for key in fields(section)}
    yield from (f"{key} is read, not declared" for key in use["parameters"] - declared)
    yield from (f"{key} is declared, not read" for key in declared - use["parameters"])


def fields(section: str) -> list[str]:
    return list(Params.model_fields[section].annotation.model_fields)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", WAYS)
def test_declarations(digits_project: Path, name: str) -> None:
    assert list(problems(digits_project, name)) == []


def test_every_stage_and_parameter_is_covered() -> None:
    stages = graph(ROOT)
    assert list(stages) == list(WAYS)
    assert {section for stage in stages.values() for section in stage["params"]} == set(Params.model_fields)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_an_undeclared_import_is_found(digits_project: Path) -> None:
    edit(
        digits_project / "stages/preprocess.py", "from lenet import InputError", "from lenet import InputError, digits"
    )
    assert list(problems(digits_project, "preprocess")) == ["stages/lenet/digits.py is imported, not declared"]


def test_an_undeclared_parameter_is_found(digits_project: Path) -> None:
    script = digits_project / "stages/preprocess.py"
    edit(script, "load_params(params).preprocess", "load_params(params).preprocess; load_params(params).train.seed")
    assert list(problems(digits_project, "preprocess")) == ["train.seed is read, not declared"]


def test_an_undeclared_file_is_found(digits_project: Path) -> None:
    script = digits_project / "stages/preprocess.py"
    edit(script, "from lenet import InputError", "from lenet import InputError; open('metrics/test.json').close()")
    assert list(problems(digits_project, "preprocess")) == ["metrics/test.json is opened, not declared"]


def test_false_declarations_are_found(digits_project: Path) -> None:
    yaml = digits_project / "dvc.yaml"
    block = yaml.read_text().split("  preprocess:\n")[1].split("  train:\n")[0]
    more = block.replace("- data/raw\n", "- data/raw\n      - plots/training.csv\n      - stages/lenet/digits.py\n")
    more = more.replace("      - preprocess\n", "      - preprocess\n      - evaluate\n")
    edit(yaml, block, more)
    assert sorted(problems(digits_project, "preprocess")) == [
        "evaluate.batch_size is declared, not read",
        "plots/training.csv is declared, not read",
        "stages/lenet/digits.py is declared, not imported",
    ]


def test_a_parameter_reruns_exactly_the_stages_that_read_it(digits_project: Path, monkeypatch) -> None:
    """DVC's own word for each parameter, asked in a copy whose results are up to date."""
    from dvc.repo import Repo

    monkeypatch.chdir(digits_project)
    stages = graph(digits_project)
    original = (digits_project / "params.yaml").read_text()
    with Repo() as repo:
        assert repo.status() == {}
        for section in Params.model_fields:
            for key in fields(section):
                set_params(digits_project, f"{section}.{key}=12345")
                repo._reset()
                changed = {name for name, why in repo.status().items() if "params.yaml" in str(why)}
                assert changed == {name for name, stage in stages.items() if section in stage["params"]}
                (digits_project / "params.yaml").write_text(original)
