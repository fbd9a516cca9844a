"""Bad parameters: one line that names the key, the value and what is allowed, and nothing runs."""

import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT, assert_refused, set_params, sh, tree

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
    "model.std=0": "a number, at least 0.001",
    "model.architecture=lenet5": "lenet or mlp",
    "model.activation=[relu]": "relu or tanh or scaled_tanh or sigmoid",
    "model.pooling=min": "max or average or trainable",
    "model.c3=table": "dense or sparse",
    "model.head=softmax": "linear or rbf",
    "model.dropout=1": "a number, at least 0 and less than 1",
    "model.batch_norm=1": "true or false",
    "train.loss=mse": "cross_entropy or nll or rbf",
    "train.augment=5": "a number, at least 0 and at most 4",
    "data.dataset=cifar10": "mnist or digits",
    "preprocess.validation_size=-1": "an integer, at least 0",
    "evaluate.batch_size=.inf": "an integer, at least 1",
    "plot.mistakes=0": "an integer, at least 1",
}


@pytest.mark.parametrize("stage", ["download", "preprocess", "train", "evaluate", "plot"])
@pytest.mark.parametrize("override", BAD, ids=lambda override: override[:40])
def test_bad_value(digits_run: Path, tmp_path: Path, run_stage, stage: str, override: str) -> None:
    (tmp_path / "params.yaml").write_text((digits_run / "params.yaml").read_text())
    set_params(tmp_path, override)
    before = tree(digits_run)
    outcome = run_stage(digits_run, stage, "--params", str(tmp_path / "params.yaml"))
    name, value = override.split("=")
    shown = {".nan": "nan", ".inf": "inf", "": "None", "true": "True"}.get(value, value.strip("[]'"))
    shown = "a huge number" if len(shown) > 4300 else shown
    assert_refused(outcome, f"{tmp_path / 'params.yaml'}: {name} is ", shown, f"; it must be {BAD[override]}")
    assert re.search(rf"{name} is \W{{0,2}}{re.escape(shown)}\W", outcome.error)
    assert tree(digits_run) == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.loss=rbf"], "train.loss is rbf, which does not fit model.head linear; use cross_entropy or nll"),
        (
            ["model.head=rbf", "model.activation=tanh"],
            "train.loss is cross_entropy, which does not fit model.head rbf; use rbf",
        ),
        (["model.head=rbf", "train.loss=rbf"], "activation relu does not reach; use tanh or scaled_tanh"),
        (["model.architecture=mlp", "model.c3=sparse"], "model.c3 is sparse, which architecture mlp does not have"),
        (["model.architecture=mlp", "model.pooling=trainable"], "model.pooling is trainable, which architecture mlp"),
        (["model.architecture=mlp", "model.head=rbf"], "model.head is rbf, which architecture mlp does not have"),
    ],
)
@pytest.mark.parametrize("stage", ["download", "train"])
def test_combinations_without_a_meaning(
    digits_run: Path, tmp_path: Path, run_stage, stage: str, overrides: list[str], words: str
) -> None:
    (tmp_path / "params.yaml").write_text((digits_run / "params.yaml").read_text())
    set_params(tmp_path, *overrides)
    before = tree(digits_run)
    assert_refused(run_stage(digits_run, stage, "--params", str(tmp_path / "params.yaml")), words)
    assert tree(digits_run) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  epochs:", ["train.epocs", "did you mean train.epochs?"]),
        ("train:", ["trian", "did you mean train?"]),
        ("plot:", ["plots", "did you mean plot?"]),
    ],
)
@pytest.mark.parametrize("stage", ["download", "plot"])
def test_misspelt_key(digits_run: Path, tmp_path: Path, run_stage, text: str, words: list[str], stage: str) -> None:
    misspelt = re.sub(r"\w+(?=:)", words[0].split(".")[-1], text)
    params = (digits_run / "params.yaml").read_text().replace(f"\n{text}", f"\n{misspelt}")
    (tmp_path / "params.yaml").write_text(params)
    assert_refused(run_stage(digits_run, stage, "--params", str(tmp_path / "params.yaml")), *words)


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
def test_broken_file(digits_run: Path, tmp_path: Path, run_stage, content: bytes, words: list[str]) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    outcome = run_stage(digits_run, "train", "--params", str(tmp_path / "params.yaml"))
    assert_refused(outcome, str(tmp_path / "params.yaml"), *words)
    assert not (digits_run / "pwned").exists()


def test_missing_file(tmp_path: Path) -> None:
    """As a user meets it, in a process of its own: from the wrong folder."""
    text = sh(sys.executable, str(ROOT / "stages" / "train.py"), cwd=tmp_path, status=1)
    assert text == ("error: params.yaml: no such file; `dvc repro`, in the project's root, makes what a stage reads\n")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    text = sh(sys.executable, str(ROOT / "stages" / "train.py"), "--debug", cwd=tmp_path, status=1)
    assert "Traceback" in text
    assert "FileNotFoundError" in text


@pytest.mark.parametrize("stage", ["download", "preprocess", "train", "evaluate", "plot"])
def test_command_line(stage: str) -> None:
    script = f"stages/{stage}.py"
    text = sh(sys.executable, script, "--help", cwd=ROOT)
    assert text.startswith("Usage: ")
    assert "--params" in text
    assert sh(sys.executable, script, "--quick", cwd=ROOT, status=2) == (
        f"error: No such option: --quick Try: python {script} --help\n"
    )


def test_every_parameter_has_a_comment() -> None:
    """params.yaml is the documentation of the parameters; each line says what is allowed."""
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
                bounds = [0]  # Its upper bound is the data's.
            if allowed.get("type") == "boolean":
                bounds = ["true", "false"]
            for value in allowed.get("enum") or [bound for bound in bounds if bound is not None]:
                assert re.search(rf"\b{value}\b", comment), f"{section}.{key}: the comment does not mention {value}"
