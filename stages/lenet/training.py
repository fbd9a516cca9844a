"""The training of a network: the device, the optimiser, the learning rate's schedule, and the loop."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, nll_loss
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from lenet import InputError
from lenet.augmentation import random_affine
from lenet.capture import capture
from lenet.network import predict
from lenet.params import Train
from lenet.tensors import Dataset

# The paper has a positive constant j and does not give it.
RBF_J = 10.0

# A captured step keeps all that it computes: with 1,024 images 0.2 GB more than another, with 55,000 4 GB, and then it
# is no quicker.
LARGEST_CAPTURED = 1024

Progress = Callable[[tuple[Tensor, ...]], Iterable[Tensor]]
State = dict[str, Any]
Loss = Callable[[Tensor, Tensor], Tensor]


class Epoch(NamedTuple):
    """A row of the training history.

    Losses are means of train.loss over the images (but for `rbf` in nats), accuracies fractions of 1. The training
    figures are means over the epoch, while the weights change; the validation figures are those of the epoch's end, NaN
    without a validation set. The learning rate is that of the epoch's last step.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float

    def figures(self) -> dict[str, float]:
        """The losses and accuracies that there are, rounded to six decimals."""
        named = self._asdict().items()
        return {name: round(v, 6) for name, v in named if name.endswith(("loss", "accuracy")) and not math.isnan(v)}


def find_device(name: str) -> torch.device:
    """The device of that name; for `auto` the first of CUDA, MPS and the CPU that this machine has.

    Raises
    ------
    InputError
        The machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise InputError(f"train.device is {name}, which this machine does not have; use auto or cpu")
    return torch.device(name)


def be_deterministic() -> None:
    """Have PyTorch use the algorithms that give the same bits each time, and fail where it has none.

    On a processor they are the usual ones. CUDA's libraries need their workspace fixed before the device is first used
    (PyTorch, "Reproducibility").
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same as use_deterministic_algorithms(True), which imports PyTorch's compiler: a second of start-up.
    torch.set_deterministic_debug_mode("error")


def generator(seed: int, epoch: int) -> torch.Generator:
    """The source of an epoch's random numbers, a function of the two alone; epoch 0 is the weights' initialisation."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean negative log-likelihood after a log-softmax, in nats: cross-entropy in the tutorials' two steps."""
    return nll_loss(log_softmax(logits, dim=1), labels)


def rbf(logits: Tensor, labels: Tensor) -> Tensor:
    """The paper's loss, equation 9, of the RBF layer's logits, which are minus its y_i: float32 [N, 10] -> [].

    The mean of y_right + log(exp(-j) + sum_i exp(-y_i)): cross-entropy with an eleventh class, rubbish, whose logit is
    always -j. It keeps the distance to the right code from growing where only its lead over the others would matter.
    """
    rubbish = logits.new_full((len(logits), 1), -RBF_J)
    return cross_entropy(torch.cat([logits, rubbish], dim=1), labels)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "nll": nll, "rbf": rbf}


class Optimizer:
    """The optimiser of `train.optimizer`: SGD with momentum, Adam (L2 penalty) or AdamW (decoupled weight decay).

    It calls the functions that the classes of `torch.optim` call. The classes import PyTorch's compiler when the first
    of them is made, which takes a second and more.
    """

    def __init__(self, network: nn.Module, options: Train) -> None:
        self.parameters: list[Tensor] = list(network.parameters())
        self.options = options
        # SGD's momentum or Adam's mean of the gradients; Adam's mean of their squares; the steps done.
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [parameter.new_zeros(()) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rate: Tensor) -> None:
        """Move the parameters, once, along these gradients, one for each in their order; the rate is float32 []."""
        kept: dict[str, Any] = {
            "weight_decay": self.options.weight_decay,
            "lr": learning_rate,
            "maximize": False,
            "fused": True,
        }
        if self.options.optimizer == "sgd":
            momentum: dict[str, Any] = {"momentum": self.options.momentum, "dampening": 0, "nesterov": False}
            sgd(self.parameters, [*gradients], [*self.first], **momentum, **kept)
        else:
            move = adam if self.options.optimizer == "adam" else adamw
            betas: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
            move(self.parameters, [*gradients], self.first, self.second, [], self.steps, **betas, **kept)

    def state_dict(self) -> State:
        """What its next steps depend on besides parameters and options: those tensors themselves, not copies."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def load_state_dict(self, state: State) -> None:
        """Take over a copy of what `state_dict` gave."""
        for name, mine in self.state_dict().items():
            for tensor, value in zip(mine, state[name], strict=True):
                tensor.copy_(value)


def learning_rate(options: Train, step: int, steps: int) -> float:
    """The learning rate of step 0, 1, ... of the `steps` batches of the whole training.

    `one_cycle`: from a 25th of train.learning_rate up to it over the first 30%, then down to almost 0 (Smith, Topin,
    "Super-convergence", 2017, with the cosine shape and the constants of PyTorch's `OneCycleLR`). `step`: a tenth after
    half of the steps and a hundredth after three quarters (He et al., "Deep residual learning", 2016, section 4.2).
    `constant`, and a cycle of a single step: train.learning_rate.
    """
    peak = options.learning_rate
    match options.schedule:
        case "one_cycle" if steps > 1:
            top, last = 0.3 * steps - 1, steps - 1
            low, end = peak / 25, peak / 25e4
            if step <= top:
                return _cosine(low, peak, step / top)
            return _cosine(peak, end, (step - top) / (last - top))
        case "step":
            return peak * 0.1 ** ((step >= max(1, steps // 2)) + (step >= max(2, steps * 3 // 4)))
        case _:
            return peak


def _cosine(start: float, end: float, part: float) -> float:
    """From start to end along half a cosine, `part` of the way, 0 to 1."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def train(
    network: nn.Sequential,
    training: Dataset,
    validation: Dataset | None,
    options: Train,
    device: torch.device,
    state: State | None = None,
    progress: Progress = iter,
) -> Iterator[tuple[Epoch, State]]:
    """Train the network in place; as each epoch ends, yield a row of history and the state of the training.

    An epoch is a function of the parameters, its number and the state before it: its order, dropout and augmentation
    are drawn from `generator(train.seed, epoch)`. So a training that goes on from a state ends with the same weights.

    The data live on the device as uint8 and a batch is one gather: LeNet's arithmetic is so small that a Python call
    for each image would cost several times more than the training. On a processor a step is captured (`lenet.capture`),
    unless the batch is large.

    Parameters
    ----------
    state : dict, optional
        What an earlier, interrupted training yielded last: begin behind its last epoch. It is not copied: one that is
        yielded here is to be saved before the next is asked for.
    progress : callable
        Wraps an epoch's batches of indices, as tqdm does, to show how far it is.

    Raises
    ------
    InputError
        The loss or a weight became NaN or infinite, or a batch of one image would have to be normalised.
    """
    network.to(device)
    images, labels = training.images.to(device), training.labels.to(device)
    criterion = LOSSES[options.loss]
    optimizer = Optimizer(network, options)
    last = len(labels) % options.batch_size or options.batch_size
    if last == 1 and any(isinstance(module, nn.BatchNorm1d) for module in network):
        raise InputError(
            f"train.batch_size is {options.batch_size}, which leaves one of {len(labels)} images for the last batch; "
            "model.batch_norm needs two at least: use another size"
        )
    batches = math.ceil(len(labels) / options.batch_size)
    done = 0
    if state:
        done = state["epoch"]
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])

    def one_step(inputs: Tensor, targets: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Move the parameters along the gradients of a batch; give its mean loss and how many of it were right."""
        logits = network(inputs)
        loss = criterion(logits, targets)
        right = (logits.argmax(dim=1) == targets).sum()
        optimizer.step(torch.autograd.grad(loss, optimizer.parameters), rate)
        return loss.detach(), right

    captured = device.type == "cpu" and options.batch_size <= LARGEST_CAPTURED
    step = capture(one_step) if captured else one_step

    for epoch in range(done + 1, options.epochs + 1):
        network.train()
        random = generator(options.seed, epoch)
        order = torch.randperm(len(labels), generator=random).to(device)
        # Dropout knows no other source than PyTorch's global one.
        torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=random)))
        total_loss = 0.0
        correct = torch.zeros((), device=device, dtype=torch.int64)
        for number, batch in enumerate(progress(order.split(options.batch_size)), 1):
            inputs, targets = images.index_select(0, batch), labels.index_select(0, batch)
            if options.augment:
                inputs = random_affine(inputs, options.augment, random)
            rate = learning_rate(options, (epoch - 1) * batches + number - 1, options.epochs * batches)
            loss, right = step(inputs, targets, torch.tensor(rate))
            where = f"epoch {epoch}, batch {number} of {batches}"
            if not math.isfinite(value := loss.item()):
                raise diverged(where, value, rate, options)
            total_loss += value * len(batch)
            correct += right

        validation_loss, validation_accuracy = (
            loss_and_accuracy(network, validation, criterion, device, options.batch_size)
            if validation
            else (math.nan, math.nan)
        )
        # What the last step did to the weights no loss of a batch has seen.
        weights_are_finite = all(bool(parameter.isfinite().all()) for parameter in network.parameters())
        if not weights_are_finite or (validation and not math.isfinite(validation_loss)):
            raise diverged(where, validation_loss if validation else value, rate, options)
        train_loss, train_accuracy = total_loss / len(labels), correct.item() / len(labels)
        row = Epoch(epoch, train_loss, train_accuracy, validation_loss, validation_accuracy, rate)
        yield row, {"epoch": epoch, "network": network.state_dict(), "optimizer": optimizer.state_dict()}


def diverged(where: str, loss: float, rate: float, options: Train) -> InputError:
    """The error for a training whose numbers broke."""
    return InputError(
        f"training diverged in {where}: loss {loss:.3g}, learning rate {rate:.3g}; no model is written; "
        f"try a smaller rate, train.learning_rate={options.learning_rate / 10:.2g} say"
    )


def loss_and_accuracy(
    network: nn.Module, dataset: Dataset, criterion: Loss, device: torch.device, batch_size: int
) -> tuple[float, float]:
    """The mean loss and the fraction of images that are classified right."""
    logits, labels = predict(network, dataset.images.to(device), batch_size).cpu(), dataset.labels
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    return criterion(logits, labels).item(), accuracy
