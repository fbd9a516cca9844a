"""A picture of how a network came to its answer: what it saw, layer by layer, and which pixels counted."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from lenet.results.figures import shortened
from lenet.results.network_figures import draw_layers
from lenet.results.observation import observe

_STEPS = 64


def integrated_gradients(
    network: nn.Sequential, image: NDArray[np.uint8], label: int, other: int
) -> NDArray[np.float64]:
    """How much each pixel of an image, uint8 (28, 28), counts for one class against another: float64 (28, 28).

    Source: Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", ICML 2017, equation 1, by the midpoint
    rule, from a blank image. The sum is the margin, the difference of the two logits, less that of the blank image.
    Pixels without ink count for nothing: what the network makes of their being blank is not seen.
    """
    exact = copy.deepcopy(network).double().eval()
    target = torch.tensor(image).double()
    along = (torch.arange(_STEPS, dtype=torch.float64) + 0.5) / _STEPS
    images = (along[:, None, None] * target).requires_grad_()
    logits = exact(images)
    [gradients] = torch.autograd.grad((logits[:, label] - logits[:, other]).sum(), images)
    return (gradients.mean(dim=0) * target).numpy()


def picture(network: nn.Sequential, classes: Sequence[str], image: NDArray[np.uint8], title: str) -> Figure:
    """Draw the image as the network saw it, uint8 (28, 28), the pixels that counted, and the outputs of all layers."""
    names = [shortened(name) for name in classes]
    features = observe(network, torch.tensor(image).unsqueeze(0), batch_size=1)
    logits = torch.from_numpy(features.layers["output"]).double()
    label, other = logits.topk(2).indices.tolist()
    counts = integrated_gradients(network, image, label, other)

    figure = Figure(figsize=(9.5, 9), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1, 2))
    upper, lower = parts
    seen, counted, probabilities = upper.subplots(1, 3)
    seen.imshow(image, cmap="gray_r", vmin=0, vmax=255)
    seen.set_title("What the network was shown", size=10)
    most = float(np.abs(counts).max()) or 1.0
    counted.imshow(counts, cmap="RdBu_r", vmin=-most, vmax=most)
    counted.contour(image, levels=[127], colors="grey", linewidths=0.7)
    counted.set_title(f"Which ink counted: red for {names[label]},\nblue for {names[other]}", size=10)
    for axes in (seen, counted):
        axes.set_axis_off()
    shares = logits.softmax(dim=0)
    shown = shares.topk(min(10, len(classes))).indices.sort().values.tolist()
    probabilities.barh([names[each] for each in shown], [shares[each].item() for each in shown], color="grey")
    probabilities.invert_yaxis()
    probabilities.set_xlim(0, 1)
    probabilities.set_title("Probability", size=10)
    draw_layers(lower.subplots(), features, names, label)
    lower.suptitle("The layers' outputs, dark: large, each layer on its own scale", size=10)
    figure.suptitle(title, size=12)
    return figure
