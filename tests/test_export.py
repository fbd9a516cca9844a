"""lenet export: the network as a program that runs without this project."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEFAULTS, RunLenet, assert_refused

from lenet.data.info import DIGITS
from lenet.network.backend import predict
from lenet.network.lenet import build
from lenet.results import export

onnx = pytest.importorskip("onnx", reason="needs the dependency group export")

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "published": {"pooling": "trainable", "c3": "sparse", "activation": "scaled_tanh", "head": "rbf"},
    "norm": {"padding": 0, "pooling": "average", "activation": "tanh", "batch_norm": True, "dropout": 0.2},
    "mlp": {"architecture": "mlp", "activation": "sigmoid", "batch_norm": True},
}


def network(case: str) -> torch.nn.Sequential:
    """With random weights; a norm has seen some images."""
    torch.manual_seed(0)
    built = build(DEFAULTS.model.model_copy(update=OPTIONS[case]))
    built(images())
    return built.eval()


def images() -> torch.Tensor:
    return torch.randint(0, 256, (50, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("form", export.FORMATS)
def test_every_network_computes_the_same(case: str, form: str) -> None:
    convert, check = export.FORMATS[form]
    built = network(case)
    program = convert(built, DIGITS, {})
    found = check(program, images(), predict(built, images(), 250))
    assert (found.images, found.predictions) == (50, 0)
    assert found.difference < 1e-4
    # What runs elsewhere has nothing of this machine in it, and the same network gives the same bytes.
    for part in (str(Path(__file__).parents[1]), str(Path.home()), "site-packages"):
        assert part.encode() not in program
    assert convert(built, DIGITS, {}) == program


def test_the_check_finds_another_network(
    run_lenet: RunLenet, digits_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(_: torch.nn.Sequential, classes: Any, provenance: Any) -> bytes:
        return export.to_pt2(network("mlp"), classes, provenance)

    monkeypatch.setitem(export.FORMATS, "pt2", (wrong, export.check_pt2))
    outcome = run_lenet(digits_project, "export", "model.pt2")
    assert_refused(outcome, "workspace: not exported: of 360 test images, ", "another prediction than in PyTorch")
    assert not (digits_project / "model.pt2").exists()


@pytest.mark.parametrize("form", export.FORMATS)
def test_the_check_finds_what_is_not_a_number(form: str) -> None:
    broken = network("default")
    broken[-1].bias.data.fill_(float("nan"))  # type: ignore[operator]
    convert, check = export.FORMATS[form]
    assert not check(convert(broken, DIGITS, {}), images(), predict(broken, images(), 250)).passed


def test_onnx(run_lenet: RunLenet, digits_project: Path) -> None:
    outcome = run_lenet(digits_project, "export", "model.onnx")
    assert (outcome.status, outcome.error) == (0, "")
    assert "on 360 test images the predictions are PyTorch's, logits and probabilities to within " in outcome.output
    model = onnx.load(digits_project / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 20)]
    described = {
        value.name: (
            value.type.tensor_type.elem_type,
            [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    }
    batch = described["images"][1][0]
    assert isinstance(batch, str)
    assert described == {
        "images": (onnx.TensorProto.UINT8, [batch, 28, 28]),
        "logits": (onnx.TensorProto.FLOAT, [batch, 10]),
        "probabilities": (onnx.TensorProto.FLOAT, [batch, 10]),
    }
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {name.split("/")[0] for name in names} >= {"input", "C1", "S2", "C3", "S4", "C5", "F6", "output", "softmax"}
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata.pop("classes")) == [*DIGITS]
    lock = (digits_project / "dvc.lock").read_text()
    assert metadata.pop("weights_md5") in lock
    assert metadata == {"dataset": "digits"}
    assert "commit" not in metadata
    assert run_lenet(digits_project, "export", "head.onnx", "--rev", "HEAD").status == 0
    metadata = {entry.key: entry.value for entry in onnx.load(digits_project / "head.onnx").metadata_props}
    assert len(metadata["commit"]) == 40


def test_pt2(run_lenet: RunLenet, digits_project: Path) -> None:
    assert run_lenet(digits_project, "export", "model", "--format", "pt2").status == 0
    extra = {"metadata.json": ""}
    program = torch.export.load(digits_project / "model", extra_files=extra).module()
    logits, probabilities = program(images()[:7])
    assert logits.shape == probabilities.shape == (7, 10)
    assert torch.allclose(logits.softmax(dim=1), probabilities)
    assert json.loads(json.loads(extra["metadata.json"])["classes"]) == [*DIGITS]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model.h5"], "model.h5: does not end with .onnx or .pt2; name the format with --format"),
        (["model.pt2", "--rev", "nobody"], "nobody is neither a revision"),
        (["params.yaml/model.pt2"], "params.yaml: File exists; a folder belongs there"),
    ],
)
def test_bad_arguments(run_lenet: RunLenet, digits_project: Path, arguments: list[str], words: str) -> None:
    assert_refused(run_lenet(digits_project, "export", *arguments), words)


def test_without_the_optional_packages(
    run_lenet: RunLenet, digits_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> object:
        return None if name == "onnxscript" else find_spec(name)

    monkeypatch.setattr(export, "find_spec", found)
    refused = run_lenet(digits_project, "export", "model.onnx")
    assert_refused(refused, "ONNX needs onnxscript, which is not installed; run `pip install -e '.[export]'`")


def test_results_that_are_not_those_of_the_model(run_lenet: RunLenet, digits_project: Path) -> None:
    """What is exported says where it comes from, so that has to be true."""
    model = digits_project / "models/lenet.pt"
    content = torch.load(model)
    content["state_dict"]["output.bias"] += 1
    model.chmod(0o644)
    torch.save(content, model)
    refused = run_lenet(digits_project, "export", "model.pt2")
    assert_refused(refused, "models/lenet.pt: is not the file that dvc.lock lists; run `dvc repro`")
