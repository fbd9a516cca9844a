"""The training loop."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lenet.data.tensors import Dataset
from lenet.errors import InputError
from lenet.network.backend import backend, predict
from lenet.params import Train
from lenet.training.augmentation import augmented
from lenet.training.averaging import Average
from lenet.training.losses import Loss, training_loss
from lenet.training.optimizer import Optimizer, State, learning_rate

Progress = Callable[[tuple[Tensor, ...]], Iterable[Tensor]]


class Epoch(NamedTuple):
    """A row of the training history.

    Losses are means of train.loss over the images (in nats, except `rbf`), accuracies are in [0, 1]. Training loss
    and accuracy are means over the epoch, during which the weights change; the validation loss and accuracy are those
    at its end, NaN without a validation set. The learning rate is that of the epoch's last step.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float

    def figures(self) -> dict[str, float]:
        """The losses and accuracies that are not NaN, rounded to six decimals."""
        named = self._asdict().items()
        return {name: round(v, 6) for name, v in named if name.endswith(("loss", "accuracy")) and not math.isnan(v)}


def generator(seed: int, epoch: int) -> torch.Generator:
    """The generator of an epoch's random numbers, a function of its two arguments; epoch 0 initialises the weights."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def train(
    network: nn.Sequential,
    training: Dataset,
    validation: Dataset | None,
    options: Train,
    device: torch.device,
    state: State | None = None,
    progress: Progress = iter,
) -> Iterator[tuple[Epoch, State]]:
    """Train the network in-place; at the end of each epoch, yield a row of history and the state of the training.

    An epoch is a function of the parameters, its number and the state before it: its order, dropout and augmentation
    are drawn from `generator(train.seed, epoch)`. So a run that is resumed ends with the same weights. With `train.ema`
    the network that is validated and yielded has the averaged weights.

    The data live on the device as uint8, and a mini-batch is one gather: LeNet's arithmetic is so small that a Python
    call for each image would take several times as long as the training. `lenet.network.backend` chooses how the
    network is computed.

    Parameters
    ----------
    state : dict, optional
        The last state that an interrupted run yielded: resume after its epoch. States are not copied; save each
        one before asking for the next.
    progress : callable
        Wraps an epoch's mini-batches of indices, int64 [at most batch_size], as tqdm does, to show progress.

    Raises
    ------
    InputError
        The loss or a weight became NaN or infinite, or batch norm would get a mini-batch of one image.
    """
    network.to(device)
    images, labels = training.images.to(device), training.labels.to(device)
    criterion = training_loss(options)
    optimizer = Optimizer(network, options)
    average = Average(network, options.ema)
    last = len(labels) % options.batch_size or options.batch_size
    if last == 1 and any(isinstance(module, nn.BatchNorm1d) for module in network):
        raise InputError(
            f"train.batch_size is {options.batch_size}, which leaves one of {len(labels)} images for the last "
            "mini-batch; model.batch_norm needs at least two: use another size"
        )
    batches = math.ceil(len(labels) / options.batch_size)
    done = 0
    if state:
        done = state["epoch"]
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state(state["average"])

    forward, prepare = backend(network, device)

    @prepare
    def step(inputs: Tensor, targets: Tensor, rate: Tensor) -> tuple[Tensor, ...]:
        """Update the parameters with the gradients of a mini-batch; its mean loss and number of correct predictions."""
        logits = forward(inputs)
        loss = criterion(logits, targets)
        right = (logits.argmax(dim=1) == targets).sum()
        optimizer.step(torch.autograd.grad(loss, optimizer.parameters), rate)
        return loss.detach(), right

    for epoch in range(done + 1, options.epochs + 1):
        if epoch > 1:
            average.swap()  # The network gets back the weights that are trained.
        network.train()
        random = generator(options.seed, epoch)
        order = torch.randperm(len(labels), generator=random).to(device)
        # Dropout draws from PyTorch's global generator alone.
        torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=random)))
        total_loss = 0.0
        correct = torch.zeros((), device=device, dtype=torch.int64)
        for number, batch in enumerate(progress(order.split(options.batch_size)), 1):
            inputs, targets = augmented(images.index_select(0, batch), options, random), labels.index_select(0, batch)
            rate = learning_rate(options, (epoch - 1) * batches + number - 1, options.epochs * batches)
            loss, right = step(inputs, targets, torch.tensor(rate))
            where = f"epoch {epoch}, mini-batch {number} of {batches}"
            if not math.isfinite(value := loss.item()):
                raise diverged(where, value, rate, options)
            total_loss += value * len(batch)
            correct += right
            average.update((epoch - 1) * batches + number)

        average.swap()
        validation_loss, validation_accuracy = (
            loss_and_accuracy(network, validation, criterion, device, options.batch_size)
            if validation
            else (math.nan, math.nan)
        )
        # No loss has seen yet what the last step did to the weights.
        weights_are_finite = all(bool(parameter.isfinite().all()) for parameter in network.parameters())
        if not weights_are_finite or (validation and not math.isfinite(validation_loss)):
            raise diverged(where, validation_loss if validation else value, rate, options)
        train_loss, train_accuracy = total_loss / len(labels), correct.item() / len(labels)
        row = Epoch(epoch, train_loss, train_accuracy, validation_loss, validation_accuracy, rate)
        reached = {"epoch": epoch, "network": network.state_dict(), "average": average.other}
        yield row, reached | {"optimizer": optimizer.state_dict()}


def diverged(where: str, loss: float, rate: float, options: Train) -> InputError:
    """The error for a training run whose loss or weights became NaN or infinite."""
    return InputError(
        f"training diverged in {where}: loss {loss:.3g}, learning rate {rate:.3g}; no model is written; "
        f"try a smaller train.learning_rate, for example {options.learning_rate / 10:.2g}"
    )


def loss_and_accuracy(
    network: nn.Sequential, dataset: Dataset, criterion: Loss, device: torch.device, batch_size: int
) -> tuple[float, float]:
    """The mean loss and the fraction of images that are classified correctly."""
    logits, labels = predict(network, dataset.images.to(device), batch_size).cpu(), dataset.labels
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    return criterion(logits, labels).item(), accuracy
