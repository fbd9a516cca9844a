"""How quickly LeNet is trained to 99.0% on MNIST's test set. `python benchmarks/records.py`.

Three ways, each run in a process of its own: the preset `lenet5-fast`, a whole training; the default parameters, until
an epoch ends with that accuracy; both with the seeds 0 to 9, in turn; and once PyTorch's example, which has another
network, to the same accuracy. Then once the preset `lenet5-best`, a whole training. Seconds are those of the training:
neither start-up nor evaluation on the test set counts, but the default parameters' evaluation on their validation set
does. Writes benchmarks/records.csv. MNIST comes from data/processed and data/raw: `dvc repro` first. Takes about ten
minutes on two cores.
"""

import arithmetic  # noqa: F401  PyTorch's libraries read its settings as they are loaded.

# isort: split
import gzip
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rounds import spread

from lenet.data.catalog import CATALOG
from lenet.data.idx import read_labelled_images
from lenet.data.tensors import load_dataset, to_tensors
from lenet.environment import be_deterministic, environment
from lenet.errors import InputError
from lenet.experiments.presets import load_preset, overlaid, workspace
from lenet.files import write_csv
from lenet.network.backend import predict
from lenet.network.lenet import build
from lenet.params import Params
from lenet.training import loop

HERE = Path(__file__).parent
FAST, BEST, DEFAULT, EXAMPLE = "lenet5-fast", "lenet5-best", "default parameters", "PyTorch's example"
SEEDS = range(10)
TARGET = 0.99


def train(what: str, seed: int) -> None:
    """Train, and print the epochs, the seconds and the test accuracy."""
    be_deterministic()
    info, changes = CATALOG["mnist"].info, {} if what == DEFAULT else load_preset(what).changes
    values = Params.model_validate(overlaid(workspace(), (what, changes)))
    if values.data.dataset != "mnist":
        raise InputError(f"params.yaml: data.dataset is {values.data.dataset}; this benchmark needs mnist")
    training, validation, test = (
        load_dataset(Path(f"data/processed/{name}.pt"), len(info.classes))
        for name in ("training", "validation", "test")
    )
    if not values.preprocess.validation_size:
        # In the order of the file, as `preprocess` leaves them, so that the mini-batches are the preset's.
        training = to_tensors(*read_labelled_images(Path("data/raw"), "train", info.classes))
    options = values.train.model_copy(update={"seed": seed})
    torch.set_num_threads(options.threads)
    torch.manual_seed(loop.generator(seed, epoch=0).initial_seed())
    network = build(values.model.normalised(info.mean, info.std))
    held_out = validation if values.preprocess.validation_size else None
    spent, started = 0.0, time.perf_counter()
    for row, _ in loop.train(network, training, held_out, options, torch.device("cpu")):
        spent += time.perf_counter() - started
        epochs = row.epoch
        accuracy = (predict(network, test.images, 250).argmax(dim=1) == test.labels).float().mean().item()
        if what == DEFAULT and accuracy >= TARGET:
            break
        started = time.perf_counter()
    if accuracy < TARGET:
        raise InputError(f"{what}, seed {seed}: no epoch reached {TARGET:.1%}, the last {accuracy:.2%}")
    print(epochs, spent, accuracy)


def measured(*command: str | Path) -> tuple[int, float, float]:
    """The epochs, the seconds and the accuracy that a program prints in its last line."""
    last = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1].split()
    return int(last[0]), float(last[1]), float(last[2])


def example() -> tuple[int, float, float]:
    """Run PyTorch's example on MNIST, as torchvision wants it."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "MNIST/raw")
        raw.mkdir(parents=True)
        for path in Path("data/raw").glob("*.gz"):
            (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        return measured(sys.executable, HERE / "pytorch_example.py", folder)


def main() -> None:
    """Measure all of them, print and write what was measured."""
    rows: list[tuple[str, int | str, int, float, float]] = []
    for seed in SEEDS:
        for what in (FAST, DEFAULT):
            rows.append((what, seed, *measured(sys.executable, __file__, what, str(seed))))
            print(*rows[-1], flush=True)
    rows.append((EXAMPLE, "", *example()))
    print(*rows[-1], flush=True)
    rows.append((BEST, 0, *measured(sys.executable, __file__, BEST, "0")))
    print(*rows[-1], flush=True)

    seconds = {what: [row[3] for row in rows if row[0] == what] for what in (FAST, DEFAULT, EXAMPLE)}
    accuracies = [row[4] for row in rows if row[0] == FAST]
    print(f"{FAST}: test accuracy {statistics.mean(accuracies):.2%} ± {100 * statistics.stdev(accuracies):.2f}")
    for what, other in ((DEFAULT, seconds[DEFAULT]), (EXAMPLE, seconds[EXAMPLE] * len(SEEDS))):
        ratios = [theirs / ours for ours, theirs in zip(seconds[FAST], other, strict=True)]
        print("{}: {:.1f} times as long ({:.1f} to {:.1f})".format(what, *spread(ratios)))
    about = environment(torch.device("cpu"), "portable")
    machine = f"{about['processor']}, torch {about['torch']}"
    write_csv(
        HERE / "records.csv",
        ["what", "seed", "epochs", "seconds", "accuracy", "machine"],
        [(*row, machine) for row in rows],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(sys.argv[1], int(sys.argv[2]))
    else:
        main()
