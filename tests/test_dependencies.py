"""dvc.yaml declares what the stages use: an omission would mean stale results, an excess needless runs.

Each stage runs under a tracer, once for each path through it that uses other modules or parameters.
"""

import gzip
import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FILES, ROOT, set_params, sh, slow_except
from PIL import Image
from ruamel.yaml import YAML

from lenet.data.catalog import CATALOG
from lenet.data.idx import read_labelled_images
from lenet.data.info import DIGITS
from lenet.data.writers import FILE
from lenet.params import Params, load_params

VARIANTS: dict[str, list[list[str]]] = {
    "download": [
        *(["data.dataset=digits"], ["data.dataset=own"], ["data.dataset=mnist"]),
        ["data.dataset=mnist", "preprocess.hold_out=writers"],
    ],
    "preprocess": [[], ["preprocess.hold_out=writers"]],
    "train": [["train.epochs=1"], ["train.epochs=1", "train.optimizer=sgd"]],
    "evaluate": [[]],
    "plot": [[]],
}
TRACER = ROOT / "tests" / "trace_stage.py"


def graph(project: Path) -> dict[str, Any]:
    """The stages in dvc.yaml, with the values of parameters that it refers to."""
    params = load_params(project / "params.yaml")
    text = re.sub(
        r"\$\{(\w+)\.(\w+)\}",
        lambda name: str(getattr(getattr(params, name[1]), name[2])),
        (project / "dvc.yaml").read_text(),
    )
    stages: dict[str, Any] = YAML(typ="safe").load(text)["stages"]
    return stages


def paths(stage: dict[str, Any], *keys: str) -> set[str]:
    """The paths that a stage lists under these keys, with or without options."""
    entries: list[Any] = [entry for key in keys for entry in stage.get(key, [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def provide(project: Path) -> Path:
    """Make what the variants need, from the files of `digits` that the project has: return a mirror.

    In this project's table, its files are the published ones of MNIST. Beside them is one that names writers, which is
    among the raw files too. There are images of one's own in two folders.
    """
    raw, mirror = project / "data/raw", project.parent / "mirror"
    _, labels = read_labelled_images(raw, "train", DIGITS)
    rows = np.zeros((len(labels), 8), ">i4")
    rows[:, 0], rows[:, 2] = labels, np.arange(len(labels)) // 20
    (raw / FILE).write_bytes(gzip.compress(b"\0\0\x0c\x02" + struct.pack(">2I", *rows.shape) + rows.tobytes()))
    table = project / "stages/lenet/data/catalog.py"
    text = table.read_text()
    assert CATALOG["mnist"].writers
    mirror.mkdir()
    for file in (*FILES, *CATALOG["mnist"].writers.files):
        content = (raw / file.name).read_bytes()
        (mirror / file.name).write_bytes(content)
        for old, new in ((file.sha256, hashlib.sha256(content).hexdigest()), (f"{file.size:_}", f"{len(content)}")):
            assert text.count(old) == 1
            text = text.replace(old, new)
    table.write_text(text)
    for number in range(4):
        path = project / f"data/own/class {number % 2}/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.pad(np.full((8, 4 + number), 255, np.uint8), 6)).save(path)
    return mirror


def used(project: Path, name: str) -> dict[str, set[str]]:
    """What a stage used, in all its variants together."""
    found: dict[str, set[str]] = {"modules": set(), "opened": set(), "written": set(), "parameters": set()}
    mirror, report = str(provide(project)), project.parent / "trace.json"
    for overrides in VARIANTS[name]:
        set_params(project, *overrides)
        if name == "download":  # As DVC does: a file that is there already is not fetched.
            shutil.rmtree(project / "data/raw")
        command = [sys.executable, str(TRACER), str(report), f"stages/{name}.py"]
        sh(*command, cwd=project, MNIST_MIRROR=mirror, QMNIST_MIRROR=mirror)
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

    def within(path: str, folder: str) -> bool:
        return path == folder or path.startswith(f"{folder}/")

    # Not declared as files: params.yaml and the sources, and the downloads and checkpoints, which DVC does not track.
    aside = ("data/downloads", "models/checkpoints")
    known = {"params.yaml", *aside, *sources, *use["modules"]}
    inputs = dependencies - sources
    files = {kind: {path for path in use[kind] if "__pycache__" not in path} for kind in ("opened", "written")}
    read = {path for path in files["opened"] if not any(within(path, k) for k in known)}
    written = {path for path in files["written"] if not path.endswith(".part")}
    written -= {path for path in written if any(within(path, folder) for folder in aside)}
    for path in read:
        if not any(within(path, entry) for entry in inputs | outputs):
            yield f"{path} is read, not declared"
    for path in written:
        if not any(within(path, entry) for entry in outputs):
            yield f"{path} is written, not declared"
    yield from (f"{entry} is declared, not read" for entry in inputs if not any(within(p, entry) for p in read))
    # A folder may be declared only if all of it is read.
    found = [path for entry in inputs for path in (project / entry).rglob("*") if path.is_file()]
    inside = {str(path.relative_to(project)) for path in found}
    yield from (f"{path} is declared with its folder, not read" for path in sorted(inside - read))
    yield from (f"{entry} is declared, not written" for entry in outputs if not any(within(p, entry) for p in written))

    declared = set(parameters(stage))
    whole = {f"{name}.*" for name in stage["params"]}
    yield from (f"{key} is used, not declared" for key in use["parameters"] - declared - whole)
    yield from (f"{key} is declared, not used" for key in declared - use["parameters"])


def parameters(stage: dict[str, Any]) -> list[str]:
    """The parameters that a stage declares, by themselves or with their section."""
    names = [[name] if "." in name else [f"{name}.{key}" for key in fields(name)] for name in stage["params"]]
    return [name for group in names for name in group]


def fields(section: str) -> list[str]:
    return list(Params.model_fields[section].annotation.model_fields)  # type: ignore[union-attr]


# It says what belongs in that folder, and Git would not have the folder without it.
EXCESS = {"download": ["data/own/README.md is declared with its folder, not read"]}


@pytest.mark.parametrize("name", VARIANTS)
def test_declarations(digits_project: Path, name: str) -> None:
    assert list(problems(digits_project, name)) == EXCESS.get(name, [])


def test_every_stage_and_parameter_is_covered() -> None:
    stages = graph(ROOT)
    assert list(stages) == list(VARIANTS)
    used = {name for stage in stages.values() for name in parameters(stage)}
    assert used == {f"{section}.{key}" for section in Params.model_fields for key in fields(section)}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_undeclared_and_unused_dependencies_are_found(digits_project: Path) -> None:
    script, yaml = digits_project / "stages/preprocess.py", digits_project / "dvc.yaml"
    more = (
        "from lenet.data import digits\n"
        "        from lenet.errors import InputError\n"
        "        from lenet.files import write_json\n"
        "        write_json(Path('metrics/extra.json'), {})\n"
        "        open('README.md').close()"
    )
    edit(script, "from lenet.errors import InputError", more)
    edit(script, "load_params(params).preprocess", "load_params(params).preprocess; load_params(params).train.seed")
    block = yaml.read_text().split("  preprocess:\n")[1].split("  train:\n")[0]
    unused = "- data/raw\n      - plots/training.csv\n      - stages/lenet/network/lenet.py\n"
    more = block.replace("- data/raw\n", unused)
    more = more.replace("      - preprocess\n", "      - preprocess\n      - evaluate\n")
    more = more.replace("- data/processed\n", "- data/processed\n      - data/nothing\n")
    edit(yaml, block, more)
    assert sorted(problems(digits_project, "preprocess")) == [
        "README.md is read, not declared",
        "data/nothing is declared, not written",
        "evaluate.batch_size is declared, not used",
        "metrics/extra.json is written, not declared",
        "plots/training.csv is declared, not read",
        "stages/lenet/data/digits.py is imported, not declared",
        "stages/lenet/data/images.py is imported, not declared",
        "stages/lenet/network/lenet.py is declared, not imported",
        "train.seed is used, not declared",
    ]


def test_a_stage_that_reads_all_parameters_is_found(digits_project: Path) -> None:
    script = digits_project / "stages/plot.py"
    edit(script, "load_params(params).plot", "load_params(params).plot; load_params(params).model_dump()")
    assert list(problems(digits_project, "plot")) == ["everything, as a dictionary is used, not declared"]


READ_BY = {
    "data": {"download"},
    "preprocess": {"preprocess"},
    "preprocess.hold_out": {"download", "preprocess"},
    "model": {"train"},
    "train": {"train"},
    "train.arithmetic": {"train", "evaluate"},
    "evaluate": {"evaluate"},
    "plot": {"plot"},
}


def test_a_parameter_reruns_exactly_the_stages_that_read_it(
    digits_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `dvc status`, in a copy whose results are up to date."""
    from dvc.repo import Repo

    monkeypatch.chdir(digits_project)
    original = (digits_project / "params.yaml").read_text()
    with Repo() as repo:
        assert repo.status() == {}
        for section in Params.model_fields:
            for key in fields(section):
                set_params(digits_project, f"{section}.{key}=another")
                repo._reset()
                changed = {name for name, why in repo.status().items() if "params.yaml" in str(why)}
                assert changed == READ_BY.get(f"{section}.{key}", READ_BY[section])
                (digits_project / "params.yaml").write_text(original)


HEAVY = {"matplotlib", "numpy", "pandas", "pydantic", "requests", "sklearn", "torch", "torch._dynamo"}
NEEDED = {
    "download": {"pydantic", "requests"},
    "preprocess": {"numpy", "pydantic", "torch"},
    "train": {"numpy", "pydantic", "torch"},
    "evaluate": {"numpy", "pydantic", "torch"},
    "plot": {"matplotlib", "numpy", "pandas", "pydantic"},
}


@pytest.mark.parametrize("stage", slow_except(NEEDED, ["train"]))
def test_a_stage_imports_only_the_heavy_packages_it_needs(digits_project: Path, stage: str) -> None:
    """Imports are most of what a short experiment costs; PyTorch's compiler alone takes a second."""

    def imported(*options: str) -> set[str]:
        command = [sys.executable, "-X", "importtime", f"stages/{stage}.py", *options]
        # Without a network the download of MNIST fails, after all its imports.
        done = subprocess.run(command, cwd=digits_project, capture_output=True, text=True, check=stage != "download")
        return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}

    set_params(digits_project, "data.dataset=mnist")
    assert imported() & HEAVY <= NEEDED[stage]
    assert not imported("--help") & HEAVY
