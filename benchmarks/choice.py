"""What each ingredient of this project's own presets brings, on validation sets. `python benchmarks/choice.py`.

Trains each preset, and the preset without one of its ingredients, three times, each time with 10,000 other images held
out (`preprocess.seed` and `train.seed` both 0, 1 or 2): on MNIST all images of some writers, on Fashion-MNIST any. They
are DVC experiments in one thread, one on each core, that end with the training, so that the test set is not read.
Prints the validation accuracies, and writes benchmarks/choice.csv. DVC's cache serves what has been trained before.
Takes about half an hour on two cores.
"""

import statistics
from pathlib import Path

import torch

from lenet.environment import environment
from lenet.experiments.presets import Values, foundation, load_preset, overlaid
from lenet.experiments.sweep import Run, all_done, started
from lenet.files import write_csv

SPLITS = range(3)
HELD_OUT = {"mnist": "writers", "fashion_mnist": "images"}
NO_BATCH_NORM: Values = {"model": {"batch_norm": False}}
MAX_POOLING: Values = {"model": {"pooling": "max"}}
NO_SMOOTHING: Values = {"train": {"label_smoothing": 0}}
CHANGES: dict[str, dict[str, Values]] = {
    "lenet5-fast": {
        "nothing": {},
        "no batch norm": NO_BATCH_NORM,
        "max pooling": MAX_POOLING,
        "no label smoothing": NO_SMOOTHING,
        "learning rate 0.01": {"train": {"learning_rate": 0.01}},
        "mini-batches of 128": {"train": {"batch_size": 128}},
        "32x32 pixels": {"model": {"padding": 2}},
    },
    "lenet5-best": {
        "nothing": {},
        "no augmentation": {"train": {"augment": 0}},
        "no batch norm": NO_BATCH_NORM,
        "max pooling": MAX_POOLING,
        "no label smoothing": NO_SMOOTHING,
        "no averaged weights": {"train": {"ema": 0}},
        "5 epochs": {"train": {"epochs": 5}},
    },
    "lenet5-fashion": {
        "nothing": {},
        "no flips": {"train": {"flip": False}},
        "no batch norm": NO_BATCH_NORM,
        "max pooling": MAX_POOLING,
        "no label smoothing": NO_SMOOTHING,
        "28x28 pixels": {"model": {"padding": 0}},
        "dense C3, more than 61,706 parameters": {"model": {"c3": "dense"}},
        "5 epochs": {"train": {"epochs": 5}},
    },
}


def main() -> None:
    """Train all candidates, and compare their validation accuracies."""
    base = foundation()
    runs: dict[tuple[str, str, int], Run] = {}
    for preset, candidates in CHANGES.items():
        loaded = load_preset(preset)
        for number, (candidate, changes) in enumerate(candidates.items()):
            for split in SPLITS:
                choice: Values = {
                    "data": {"dataset": loaded.dataset},
                    "preprocess": {"hold_out": HELD_OUT[loaded.dataset], "validation_size": 10_000, "seed": split},
                    "train": {"seed": split, "threads": 1},
                }
                values = overlaid(base, (preset, loaded.changes), (candidate, changes), ("the choice", choice))
                runs[preset, candidate, split] = Run(f"choice-{preset}-{number}-{split}", values, "train")
    with started(None, None) as sweep:
        done = all_done(sweep.run(list(runs.values()), replace=True))

    about = environment(torch.device("cpu"), "portable")
    rows = []
    for preset, candidates in CHANGES.items():
        for candidate in candidates:
            names = [runs[preset, candidate, split].name for split in SPLITS]
            accuracies = [done[name].metrics["validation_accuracy"] for name in names]
            mean = statistics.mean(accuracies)
            print(f"{preset:16} {candidate:22} {' '.join(f'{each:.2%}' for each in accuracies)}  mean {mean:.2%}")
            rows.append([preset, candidate, *accuracies, mean, f"{about['processor']}, torch {about['torch']}"])
    columns = [f"split_{split}" for split in SPLITS]
    write_csv(Path(__file__).parent / "choice.csv", ["preset", "candidate", *columns, "mean", "machine"], rows)


if __name__ == "__main__":
    main()
