"""Bad parameters: one line that names the key, the value and what is allowed, and nothing runs."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, STAGES, RunStage, assert_refused, set_params, sh, slow_except, tree

from lenet.data.catalog import CATALOG, OWN
from lenet.params import Params, load_params

BAD = {
    "train.epochs=1.5": "an integer, at least 1",
    "train.epochs=0": "an integer, at least 1",
    "train.epochs=-3": "an integer, at least 1",
    "train.epochs=true": "an integer, at least 1",
    "train.epochs='4'": "an integer, at least 1",
    "train.epochs=": "an integer, at least 1",
    "train.epochs=0x" + 5000 * "f": "an integer, at least 1",
    "train.batch_size=0": "an integer, at least 1",
    "train.learning_rate=.nan": "a number, greater than 0",
    "train.learning_rate=.inf": "a number, greater than 0",
    "train.learning_rate=-0.1": "a number, greater than 0",
    "train.learning_rate=0": "a number, greater than 0",
    "train.learning_rate=fast": "a number, greater than 0",
    "train.momentum=1": "a number, at least 0 and less than 1",
    "train.weight_decay=-1": "auto or a number, at least 0",
    "train.weight_decay=none": "auto or a number, at least 0",
    "train.seed=-1": "an integer, at least 0",
    "train.threads=0": "an integer, at least 1",
    "train.optimizer=adm": "sgd or adam or adamw",
    "train.schedule=cosine": "constant or one_cycle or step",
    "train.device=tpu": "auto or cpu or cuda or mps",
    "model.padding=1": "a multiple of 2, at least 0 and at most 2",
    "model.mean=1.5": "auto or a number, at least 0 and at most 1",
    "model.std=0": "auto or a number, at least 0.001",
    "model.std=none": "auto or a number, at least 0.001",
    "model.architecture=lenet5": "lenet or mlp",
    "model.activation=[relu]": "relu or tanh or scaled_tanh or sigmoid",
    "model.pooling=min": "max or average or trainable",
    "model.c3=table": "dense or sparse",
    "model.head=softmax": "linear or rbf",
    "model.dropout=1": "a number, at least 0 and less than 1",
    "model.batch_norm=1": "true or false",
    "train.loss=mse": "cross_entropy or nll or rbf",
    "train.augment=5": "a number, at least 0 and at most 4",
    "train.flip=1": "true or false",
    "train.label_smoothing=1": "a number, at least 0 and less than 1",
    "train.ema=1": "a number, at least 0 and less than 1",
    "data.dataset=cifar10": "mnist, fashion_mnist, kmnist, digits or own",
    "data.dataset=3": "a text",
    "data.folder=": "a text",
    "data.prepare=crop": "mnist or resize",
    "preprocess.hold_out=people": "images or writers",
    "preprocess.validation_size=-1": "an integer, at least 0",
    "evaluate.batch_size=.inf": "an integer, at least 1",
    "plot.mistakes=0": "an integer, at least 1",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with params.yaml and nothing else: what a stage writes there shows."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


# `make test`: the first stage refuses every value, and every stage refuses one.
CASES = [(stage, override) for stage in STAGES for override in BAD]
# Only `download` knows which data sets there are, so that none of the others runs again when there is one more.
CASES = [case for case in CASES if case[0] == "download" or case[1] != "data.dataset=cifar10"]
KEPT = [(stage, override) for stage, override in CASES if stage == "download" or override == "train.epochs=1.5"]


@pytest.mark.parametrize("case", slow_except(CASES, KEPT), ids=lambda case: "-".join(case)[:40])
def test_bad_value(folder: Path, run_stage: RunStage, case: tuple[str, str]) -> None:
    stage, override = case
    set_params(folder, override)
    outcome = run_stage(folder, stage)
    name, value = override.split("=")
    shown = {".nan": "nan", ".inf": "inf", "": "None", "true": "True"}.get(value, value.strip("[]'"))
    shown = "a huge number" if len(shown) > 4300 else shown
    assert_refused(outcome, f"params.yaml: {name} is ", shown, f"; it must be {BAD[override]}")
    assert re.search(rf"{name} is \W{{0,2}}{re.escape(shown)}\W", outcome.error)
    assert tree(folder) == {}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.loss=rbf"], "train.loss is rbf, which does not fit model.head linear; use cross_entropy or nll"),
        (
            ["model.head=rbf", "model.activation=tanh"],
            "train.loss is cross_entropy, which does not fit model.head rbf; use rbf",
        ),
        (
            ["train.loss=nll", "train.label_smoothing=0.1"],
            "train.label_smoothing is 0.1, which train.loss nll does not have; use 0, or loss cross_entropy",
        ),
        (["model.head=rbf", "train.loss=rbf"], "activation relu cannot reach; use tanh or scaled_tanh"),
        (["model.architecture=mlp", "model.c3=sparse"], "model.c3 is sparse, which architecture mlp does not have"),
        (["model.architecture=mlp", "model.pooling=trainable"], "model.pooling is trainable, which architecture mlp"),
        (["model.architecture=mlp", "model.head=rbf"], "model.head is rbf, which architecture mlp does not have"),
    ],
)
def test_combinations_without_a_meaning(folder: Path, run_stage: RunStage, overrides: list[str], words: str) -> None:
    set_params(folder, *overrides)
    for stage in ("download", "train"):
        assert_refused(run_stage(folder, stage), words)
    assert tree(folder) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  epochs:", ["train.epocs", "did you mean train.epochs?"]),
        ("train:", ["trian", "did you mean train?"]),
        ("plot:", ["plots", "did you mean plot?"]),
    ],
)
def test_misspelt_key(folder: Path, run_stage: RunStage, text: str, words: list[str]) -> None:
    misspelt = re.sub(r"\w+(?=:)", words[0].split(".")[-1], text)
    params = (folder / "params.yaml").read_text().replace(f"\n{text}", f"\n{misspelt}")
    (folder / "params.yaml").write_text(params)
    for stage in ("download", "plot"):
        assert_refused(run_stage(folder, stage), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"train: [1, 2\nmodel: 3\n", ["line 2", "not valid YAML"]),
        (b"train: {a: 1}\ntrain: {a: 2}\n", ["not valid YAML", "duplicate key"]),
        (b"\xff\xfe\x00", ["not valid YAML"]),
        (b"", ["is None", "a mapping with data, preprocess, model, train, evaluate, plot"]),
        (b"- 1\n- 2\n", ["is [1, 2]", "a mapping with"]),
        (b"[" * 5000, ["not valid YAML"]),
        (b"when: 2026-13-45\n", ["not valid YAML"]),
        (b"train: !!bool x\n", ["not valid YAML"]),
        (b"%YAML 1.1\n---\ntrain: 1e-1\n", ["data is missing"]),
        (b"1: 2\n", ["1 is not a parameter", "data is missing", "and 4 more"]),
        (b"a: &a [x,x]\nb: &b [*a,*a]\n" + b"".join(b"c%d: &c%d [*b,*b]\n" % (i, i) for i in range(9)), ["a is not"]),
        (b"!!python/object/apply:os.system [touch pwned]\n", ["not valid YAML"]),
    ],
)
def test_broken_file(tmp_path: Path, run_stage: RunStage, content: bytes, words: list[str]) -> None:
    other = tmp_path / "other.yaml"
    other.write_bytes(content)
    assert_refused(run_stage(tmp_path, "train", "--params", str(other)), str(other), *words)
    assert list(tmp_path.iterdir()) == [other]


def test_missing_file(tmp_path: Path) -> None:
    """Run from the wrong folder."""
    text = sh(sys.executable, str(ROOT / "stages" / "train.py"), cwd=tmp_path, status=1)
    assert text == "error: params.yaml: no such file; run this in the project's root\n"


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    text = sh(sys.executable, str(ROOT / "stages" / "train.py"), "--debug", cwd=tmp_path, status=1)
    assert "Traceback" in text
    assert "InputError" in text


@pytest.mark.parametrize("stage", STAGES)
def test_command_line(tmp_path: Path, run_stage: RunStage, stage: str) -> None:
    shown = run_stage(tmp_path, stage, "--help")
    assert shown.status == 0
    assert shown.output.startswith("Usage: ")
    assert "--params" in shown.output
    wrong = run_stage(tmp_path, stage, "--quick")
    assert wrong.status == 2
    assert wrong.error == f"error: No such option: --quick Try: python stages/{stage}.py --help\n"


def test_every_parameter_has_a_comment() -> None:
    """params.yaml documents the parameters: each comment says what is allowed."""
    load_params(ROOT / "params.yaml")
    text = (ROOT / "params.yaml").read_text()
    for section, field in Params.model_fields.items():
        schema = field.annotation.model_json_schema()  # type: ignore[union-attr]
        block = text.split(f"\n{section}:")[1].split("\n\n")[0]
        for key, allowed in schema["properties"].items():
            comment = next(line for line in block.splitlines() if line.startswith(f"  {key}:")).partition("#")[2]
            kinds = allowed.get("anyOf", [allowed])
            names = ("const", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
            bounds = [kind.get(name) for kind in kinds for name in names]
            if section == "preprocess" and key == "validation_size":
                bounds = [0]  # The upper bound depends on the data.
            if allowed.get("type") == "boolean":
                bounds = ["true", "false"]
            if section == "data" and key == "dataset":
                bounds = [*CATALOG, OWN]
            for value in allowed.get("enum") or [bound for bound in bounds if bound is not None]:
                assert re.search(rf"\b{value}\b", comment), f"{section}.{key}: the comment does not mention {value}"
