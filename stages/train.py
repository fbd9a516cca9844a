"""Stage 3, train: the network on the training set, monitored on the validation set."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lenet.cli import Debug, Option, ParamsFile, one_line_errors, run
from lenet.processor import set_arithmetic

if TYPE_CHECKING:
    from torch import Tensor


def train(
    params: ParamsFile = Path("params.yaml"),
    data: Annotated[Path, Option(help="Folder with training.pt and validation.pt.")] = Path("data/processed"),
    dataset: Annotated[Path, Option(help="What there is to know of the data set.")] = Path("data/raw/dataset.json"),
    model: Annotated[Path, Option(help="Where the trained model goes.")] = Path("models/lenet.pt"),
    metrics: Annotated[Path, Option(help="Where the last epoch's metrics go.")] = Path("metrics/train.json"),
    history: Annotated[Path, Option(help="Where each epoch's metrics go.")] = Path("plots/training.csv"),
    checkpoints: Annotated[Path, Option(help="Folder for checkpoints, from which an interrupted run resumes.")] = Path(
        "models/checkpoints"
    ),
    debug: Debug = False,
) -> None:
    """Train the network in the parameters' section `model`, with the settings in the section `train`.

    The normalisation is the data set's where model.mean and model.std are auto. It runs on the first available device
    of CUDA, MPS and the CPU, unless train.device names one. The history gains a row at the end of each epoch; the model
    is written after the last. If the run is interrupted, the same command resumes after the last finished epoch,
    provided nothing that decides the result has changed, and gives the same bytes. The test set is not read.
    """
    with one_line_errors(debug):
        from lenet.params import load_params

        settings = load_params(params)  # Before the slow imports, so that a mistake is reported at once.
        options = settings.train
        set_arithmetic(options.arithmetic)

        import torch
        from tqdm import tqdm

        from lenet.data.info import read_info
        from lenet.data.tensors import load_dataset
        from lenet.environment import be_deterministic, find_device
        from lenet.files import write_csv, write_json
        from lenet.network.lenet import build
        from lenet.network.saved import save_model
        from lenet.training import loop
        from lenet.training.checkpoints import identity, load, only_one, remove, save

        device = find_device(options.device)
        be_deterministic()
        torch.set_num_threads(options.threads)
        # With a delay, so that it is not drawn before the first epoch.
        bar = tqdm(unit="batch", leave=False, delay=0.1, disable=not sys.stderr.isatty())
        with only_one(checkpoints), bar:
            info = read_info(dataset)
            training_set = load_dataset(data / "training.pt", len(info.classes))
            held_out = load_dataset(data / "validation.pt", len(info.classes), may_be_empty=True)
            validation_set = held_out if len(held_out.labels) else None

            torch.manual_seed(loop.generator(options.seed, epoch=0).initial_seed())
            section = settings.model.normalised(info.mean, info.std)
            network = build(section, info.classes)
            parameters = sum(parameter.numel() for parameter in network.parameters())
            images = len(training_set.labels)
            print(f"{section.architecture}: {parameters} parameters, {images} images, on {device}", flush=True)

            chosen = {"model": section.model_dump(), "classes": info.classes, "train": options.model_dump()}
            name = identity(chosen, (training_set, validation_set), device, options.arithmetic)
            checkpoint = checkpoints / f"{name}.checkpoint"
            reached = load(checkpoint)
            rows = [loop.Epoch(int(number), *row) for number, *row in reached["rows"].tolist()] if reached else []
            if rows:
                print(f"resuming after epoch {len(rows)} of {options.epochs}", flush=True)
                write_csv(history, loop.Epoch._fields, rows)

            def progress(batches: "tuple[Tensor, ...]") -> "Iterator[Tensor]":
                bar.reset(total=len(batches))
                bar.set_description(f"epoch {len(rows) + 1}/{options.epochs}")
                for batch in batches:
                    yield batch
                    bar.update()
                bar.clear()

            started = time.monotonic()
            epochs = loop.train(network, training_set, validation_set, options, device, reached, progress)
            for row, state in epochs:
                rows.append(row)
                save(checkpoint, state | {"rows": torch.tensor(rows, dtype=torch.float64)})
                write_csv(history, loop.Epoch._fields, rows)
                line = f"loss {row.train_loss:.4f}, accuracy {row.train_accuracy:.2%}"
                if validation_set:
                    line += f"; validation loss {row.validation_loss:.4f}, accuracy {row.validation_accuracy:.2%}"
                print(f"epoch {row.epoch}/{options.epochs}: {line} ({time.monotonic() - started:.1f} s)", flush=True)

            save_model(model, section, info.classes, network)
            write_json(metrics, {"parameters": parameters, **rows[-1].figures()})
            remove(checkpoint)


if __name__ == "__main__":
    run("python stages/train.py", train)
