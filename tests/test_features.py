"""What the network sees: features.npz, the pictures drawn from it, and files that must be refused."""

import io
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from conftest import DEFAULTS, INFO, RunStage, assert_refused, set_params, tree
from sklearn.decomposition import PCA
from torch import nn

from lenet.data.catalog import CATALOG
from lenet.data.tensors import load_dataset
from lenet.network.backend import predict
from lenet.network.lenet import build
from lenet.network.saved import load_model
from lenet.results import network_figures
from lenet.results.features import Features, read_features
from lenet.results.figures import to_png
from lenet.results.observation import observe, principal_components

NETWORKS: dict[str, dict[str, Any]] = {
    "lenet": {},
    "published": {"pooling": "trainable", "c3": "sparse", "head": "rbf", "activation": "scaled_tanh"},
    "28x28": {"padding": 0},
    "norm and dropout": {"batch_norm": True, "dropout": 0.5, "activation": "sigmoid"},
    "mlp": {"architecture": "mlp"},
}
IMAGES = torch.randint(256, (40, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def network(case: str) -> nn.Sequential:
    torch.manual_seed(0)
    return build(DEFAULTS.model.model_copy(update=NETWORKS[case])).eval()


@pytest.mark.parametrize("case", NETWORKS)
def test_outputs_of_each_layer_are_those_of_the_network(case: str) -> None:
    net = network(case)
    seen = observe(net, IMAGES, 7)
    assert seen.layers.keys() == seen.operations.keys()
    assert list(seen.layers) == (
        ["input", "H1", "H2", "output"] if case == "mlp" else ["input", "C1", "S2", "C3", "S4", "C5", "F6", "output"]
    )
    x: torch.Tensor = IMAGES[:1].float()
    for name, module in net.named_children():
        x = module(x)
        if name.endswith("_activation") or name in ("input", "S2", "S4", "output"):
            assert seen.layers[name.partition("_")[0]] == pytest.approx(x[0].detach().numpy(), abs=1e-3)


@pytest.mark.parametrize("case", NETWORKS)
def test_kernels_are_the_first_weights(case: str) -> None:
    net = network(case)
    [first] = [module for module in net if isinstance(module, nn.Conv2d | nn.Linear)][:1]
    kernels = observe(net, IMAGES, 40).kernels
    weights = first.weight.detach().numpy()
    assert kernels.shape == ((32, 32, 32) if case == "mlp" else (6, 5, 5))
    assert kernels.ravel() == pytest.approx(weights[: len(kernels)].ravel(), abs=1e-4)


@pytest.mark.parametrize("case", ["lenet", "mlp"])
def test_the_embedding_is_that_of_principal_components(case: str) -> None:
    """As scikit-learn computes them, but for their signs."""
    net = network(case)
    seen = observe(net, IMAGES, 40)
    hidden = predict(net[:-1], IMAGES, 40).double().numpy()
    pca = PCA(2, svd_solver="full").fit(hidden)
    places = pca.transform(hidden)
    assert np.abs(seen.embedding) == pytest.approx(np.abs(places), abs=1e-3)
    assert seen.variance == pytest.approx(pca.explained_variance_ratio_, abs=1e-3)


def test_principal_components_of_what_does_not_vary() -> None:
    components, variance = principal_components(torch.ones(5, 3, dtype=torch.float64), 2)
    assert components.isfinite().all()
    assert variance.tolist() == [0, 0]


def test_the_network_is_left_as_it_was() -> None:
    net = network("norm and dropout")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    observe(net, IMAGES, 40)
    after = net.state_dict()
    assert all(after[name].dtype == tensor.dtype and after[name].equal(tensor) for name, tensor in before.items())


def test_features_of_the_run_on_digits(digits_run: Path) -> None:
    test = load_dataset(digits_run / "data/processed/test.pt", 10)
    seen = read_features(digits_run / "data/features.npz", len(test.labels))
    net, _ = load_model(digits_run / "models/lenet.pt")
    assert seen.layers["input"].shape == (1, 32, 32)
    assert seen.layers["output"] == pytest.approx(net.eval()(test.images[:1]).detach()[0].numpy(), abs=1e-3)
    assert seen.operations["C1"] == "convolution, ReLU"
    # Digits of a class lie together: nearer to their own middle than to that of all, in the mean.
    labels = test.labels.numpy()
    middles = np.array([seen.embedding[labels == label].mean(axis=0) for label in range(10)])
    spread = np.linalg.norm(seen.embedding - middles[labels], axis=1).mean()
    assert spread < 0.7 * np.linalg.norm(seen.embedding - seen.embedding.mean(axis=0), axis=1).mean()


def features(**changes: Any) -> Features:
    layers = OrderedDict(
        input=np.zeros((1, 4, 4)), C1=np.ones((2, 2, 2)), F6=np.arange(300.0), output=np.array([0.0, 2, 1])
    )
    seen = Features(
        {name: values.astype(np.float32) for name, values in layers.items()},
        dict.fromkeys(layers, "dense"),
        np.array([[[-1, 0], [1, 2]], [[0, 0], [0, 0]]], np.float32),
        np.array([[0, 0], [1, 1], [2, 2]], np.float32),
        np.array([0.6, 0.3], np.float32),
    )
    return seen._replace(**changes)


def test_kernels_on_one_scale_around_zero() -> None:
    figure = network_figures.kernels(features(), INFO)
    [axes] = figure.axes
    [picture] = axes.images
    assert picture.get_clim() == (-2, 2)
    sheet = np.asarray(picture.get_array())
    assert sheet[:, :2].tolist() == [[-1, 0], [1, 2]]
    assert sheet[:, -2:].tolist() == [[0, 0], [0, 0]]
    assert "the weights of C1's 2 outputs" in figure.get_suptitle()


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_feature_maps_are_to_scale_and_in_order(dataset: str) -> None:
    info = CATALOG[dataset].info
    layers = features().layers | {"output": np.arange(10, dtype=np.float32)}
    figure = network_figures.feature_maps(features(layers=layers), info, 3, 9)
    assert to_png(figure).startswith(b"\x89PNG")
    [axes] = figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert [text for text in texts if "\n" in text] == ["input\n1@4x4", "C1\n2@2x2", "F6\n300", "output\n10"]
    assert [name for name in info.classes if name in texts] == list(info.classes)
    assert [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"][-1] == info.classes[9]
    extents = [picture.get_extent() for picture in axes.images]
    assert extents == sorted(extents)
    assert [right - left for left, right, *_ in extents[:2]] == [4, 2], "a pixel of a map is as large as the input's"
    assert f"{info.noun} {info.classes[3]}, classified as {info.classes[9]}" in figure.get_suptitle()


def test_the_embedding_marks_the_mistakes() -> None:
    rows = pandas.DataFrame({"actual": [0, 1, 2], "predicted": [0, 1, 7], "probability": 1.0})
    figure = network_figures.embedding(features(), rows, INFO, "t")
    [axes] = figure.axes
    everything, mistakes = axes.collections
    assert np.asarray(everything.get_offsets()).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert np.asarray(mistakes.get_offsets()).tolist() == [[2, 2]]
    legend = axes.get_legend()
    assert legend
    assert legend.get_texts()[0].get_text() == "1 mistake"
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2"], "no name without an image"
    assert axes.get_xlabel() == "First principal component (60% of the variance)"


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def spoilt(path: Path, case: str) -> bytes:
    content = path.read_bytes()
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    match case:
        case "empty":
            return b""
        case "text":
            return b"kernels"
        case "cut":
            return content[: len(content) // 2]
        case "a bit":
            at = len(content) // 3
            return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        case "one array":
            buffer = io.BytesIO()
            np.save(buffer, arrays["kernels"])
            return buffer.getvalue()
        case "pickle":
            return npz(**arrays | {"kernels": np.array([{}], dtype=object)})
        case "no embedding":
            del arrays["embedding"]
        case "other images":
            arrays["embedding"] = arrays["embedding"][1:]
        case "other types":
            arrays["kernels"] = arrays["kernels"].astype("U")
        case "NaN":
            arrays["layers/C1"][:] = np.nan
        case "no output":
            del arrays["layers/output"]
    return npz(**arrays)


CASES = ["empty", "text", "cut", "a bit", "one array", "pickle", "no embedding", "other images", "other types", "NaN"]


@pytest.mark.parametrize("case", [*CASES, "no output"])
def test_a_bad_file_is_refused(digits_project: Path, run_stage: RunStage, case: str) -> None:
    path = digits_project / "data/features.npz"
    path.write_bytes(spoilt(path, case))
    before = tree(digits_project)
    outcome = run_stage(digits_project, "plot")
    assert_refused(outcome, "data/features.npz: does not belong to these test images; run `dvc repro evaluate`")
    assert tree(digits_project) == before


def test_a_missing_file_is_reported(digits_project: Path, run_stage: RunStage) -> None:
    (digits_project / "data/features.npz").unlink()
    assert_refused(run_stage(digits_project, "plot"), "data/features.npz: no such file", "dvc repro")


def test_the_perceptron_has_all_pictures(digits_project: Path, run_stage: RunStage) -> None:
    set_params(digits_project, "model.architecture=mlp", "train.epochs=1")
    shutil.rmtree(digits_project / "models/checkpoints", ignore_errors=True)
    for stage in ("train", "evaluate", "plot"):
        outcome = run_stage(digits_project, stage)
        assert outcome.status == 0, outcome.error
