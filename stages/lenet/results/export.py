"""A trained network as a program that runs without this project: raw images in, logits and probabilities out.

Padding, normalisation and softmax are inside, so that nobody has to repeat them. Names, shapes and types are the same
in both formats: `images`, uint8 [N, 28, 28], for any N; `logits` and `probabilities`, float32 [N, classes].
"""

import io
import json
import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lenet.data.idx import SIDE
from lenet.errors import InputError
from lenet.network.lenet import SparseC3, Subsampling

OPSET = 20
"""The version of ONNX's operators: that of ONNX 1.15, 2023, which today's runtimes have."""

OUTPUTS = ("logits", "probabilities")


class Classifier(nn.Module):
    """A network with its softmax: uint8 [N, 28, 28] -> logits and probabilities, float32 [N, classes]."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(images)
        return logits, logits.softmax(dim=1)


class Check(NamedTuple):
    """How an exported program's outputs for some images compare with PyTorch's.

    Attributes
    ----------
    images : int
        How many were compared.
    difference : float
        The largest absolute difference of a logit or a probability.
    predictions : int
        How many images have another prediction.
    """

    images: int
    difference: float
    predictions: int

    @property
    def passed(self) -> bool:
        """Whether the outputs are PyTorch's, up to rounding in float32."""
        return self.predictions == 0 and self.difference < 1e-3


def to_onnx(network: nn.Sequential, classes: Sequence[str], provenance: Mapping[str, str]) -> bytes:
    """The network as an ONNX model. The same network gives the same bytes.

    The nodes have the names of their layers, such as `C1/Conv`. The model's metadata has `classes`, a JSON list of the
    names of the outputs in their order, and all of `provenance`.

    Raises
    ------
    InputError
        ONNX is not installed.
    """
    _require("onnx", "onnxscript")
    with _quietly():
        program = torch.onnx.export(
            Classifier(_exportable(network)).eval(),
            (_example(),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=[*OUTPUTS],
            dynamic_shapes=_any_batch(),
            verbose=False,
        )
    assert program
    model: Any = program.model_proto
    for node in model.graph.node:
        scopes = {prop.key: prop.value for prop in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
        layer = next((scope.split(".")[1] for scope in scopes.split("'") if scope.startswith("network.")), "softmax")
        node.name = f"{layer}/{node.op_type}"
        # It has the paths of this machine.
        del node.metadata_props[:]
    _number(model.graph.node)
    del model.graph.metadata_props[:]
    for value in model.graph.value_info:
        del value.metadata_props[:]
    model.doc_string = (
        f"images: uint8 [N, {SIDE}, {SIDE}], 0 background to 255 ink; logits, probabilities: float32 [N, classes]"
    )
    for key, value in _metadata(classes, provenance).items():
        model.metadata_props.add(key=key, value=value)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def to_pt2(network: nn.Sequential, classes: Sequence[str], provenance: Mapping[str, str]) -> bytes:
    """The network as a program for `torch.export.load`. The same network gives the same bytes.

    The metadata that `to_onnx` describes is in the extra file `metadata.json`.
    """
    with _quietly():
        program = torch.export.export(Classifier(network).eval(), (_example(),), dynamic_shapes=_any_batch())
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # It has the paths of this machine.
        buffer = io.BytesIO()
        torch.export.save(
            program, buffer, extra_files={"metadata.json": json.dumps(_metadata(classes, provenance), indent=2)}
        )
    return buffer.getvalue()


def check_onnx(model: bytes, images: Tensor, logits: Tensor) -> Check:
    """Run a model in ONNX Runtime on images, uint8 [N, 28, 28], and compare it with PyTorch's logits for them.

    Raises
    ------
    InputError
        ONNX Runtime is not installed.
    """
    _require("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = [session.run([*OUTPUTS], {"images": batch.numpy()}) for batch in images.split(1000)]
    here, probabilities = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*found, strict=True))
    return _compared(here, probabilities, logits)


def check_pt2(model: bytes, images: Tensor, logits: Tensor) -> Check:
    """Load a program as its users do, run it on images, uint8 [N, 28, 28], and compare it with PyTorch's logits."""
    program = torch.export.load(io.BytesIO(model)).module()
    with torch.inference_mode():
        found = [program(batch) for batch in images.split(1000)]
    here, probabilities = (torch.cat(parts) for parts in zip(*found, strict=True))
    return _compared(here, probabilities, logits)


FORMATS = {"onnx": (to_onnx, check_onnx), "pt2": (to_pt2, check_pt2)}
"""Format -> how a network is converted to it, and how the result is checked."""


class MeanSubsampling(nn.Module):
    """`Subsampling` by the mean of each square: PyTorch's exporter loses the divisor that makes its sum."""

    def __init__(self, layer: Subsampling) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(4 * layer.coefficient)
        self.bias, self.activation = layer.bias, layer.activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.coefficient * functional.avg_pool2d(x, kernel_size=2) + self.bias)
        return y


@torch.no_grad()
def _exportable(network: nn.Sequential) -> nn.Sequential:
    """The same function in layers that ONNX's exporter translates, and plainly."""
    layers = OrderedDict(network.named_children())
    for name, layer in layers.items():
        match layer:
            case Subsampling():
                layers[name] = MeanSubsampling(layer)
            case SparseC3():
                layers[name] = dense = nn.Conv2d(6, 16, kernel_size=5)
                dense.weight.copy_(layer.kernels())
                dense.bias = layer.bias
    return nn.Sequential(layers)


def _compared(here: Tensor, probabilities: Tensor, logits: Tensor) -> Check:
    different = int((here.argmax(dim=1) != logits.argmax(dim=1)).sum())
    differences = torch.stack([here - logits, probabilities - logits.softmax(dim=1)]).abs()
    return Check(len(logits), float(differences.max()), different)


def _example() -> Tensor:
    # Of two images: the exporter takes a size of one for fixed.
    return torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)


def _any_batch() -> dict[str, Any]:
    return {"images": {0: torch.export.Dim("N")}}


def _metadata(classes: Sequence[str], provenance: Mapping[str, str]) -> dict[str, str]:
    return {"classes": json.dumps([*classes]), **provenance}


def _number(nodes: Any) -> None:
    """Make names unique: of several nodes of one name, all but the first get a number."""
    seen: dict[str, int] = {}
    for node in nodes:
        seen[node.name] = seen.get(node.name, 0) + 1
        if seen[node.name] > 1:
            node.name = f"{node.name}_{seen[node.name]}"


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what PyTorch's exporters say about themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _require(*modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise InputError(f"ONNX needs {', '.join(missing)}, which is not installed; run `pip install -e '.[export]'`")
