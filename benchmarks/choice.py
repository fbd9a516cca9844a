"""The choice of `lenet5-best` on validation sets, its ingredients changed one at a time. `python benchmarks/choice.py`.

Trains each candidate three times for 30 epochs, each time with 5,000 other images held out (`preprocess.seed` and
`train.seed` both 0, 1 or 2), as DVC experiments in one thread, one on each core. Prints the validation accuracies, and
writes benchmarks/choice.csv. DVC's cache serves what has been trained before. Takes about twenty minutes on two cores.
"""

import statistics
from pathlib import Path

import torch

from lenet.environment import environment
from lenet.experiments.presets import Values, foundation, load_preset, overlaid
from lenet.experiments.sweep import Run, all_done, started
from lenet.files import write_csv

SPLITS = range(3)
CANDIDATES: dict[str, Values] = {
    "lenet5-best": {},
    "no augmentation": {"train": {"augment": 0}},
    "augmentation of strength 1": {"train": {"augment": 1}},
    "no dropout": {"model": {"dropout": 0}},
    "dropout 0.2": {"model": {"dropout": 0.2}},
    "batch norm": {"model": {"batch_norm": True}},
}


def main() -> None:
    """Train all candidates, and compare their validation accuracies."""
    base = foundation()
    preset = ("lenet5-best", load_preset("lenet5-best").changes)
    experiments: dict[str, dict[str, Values]] = {}
    for number, (candidate, changes) in enumerate(CANDIDATES.items()):
        experiments[candidate] = {}
        for split in SPLITS:
            choice = {"preprocess": {"validation_size": 5000, "seed": split}, "train": {"seed": split, "threads": 1}}
            values = overlaid(base, preset, (candidate, changes), ("the choice", choice))
            experiments[candidate][f"choice-{number}-{split}"] = values
    wanted = {name: values for runs in experiments.values() for name, values in runs.items()}
    with started(None, None) as sweep:
        done = all_done(sweep.run([Run(name, values) for name, values in wanted.items()], replace=True))

    about = environment(torch.device("cpu"), "portable")
    rows = []
    for candidate, runs in experiments.items():
        accuracies = [done[name].metrics["validation_accuracy"] for name in runs]
        mean = statistics.mean(accuracies)
        print(f"{candidate:26} {' '.join(f'{accuracy:.2%}' for accuracy in accuracies)}  mean {mean:.2%}")
        rows.append([candidate, *accuracies, mean, f"{about['processor']}, torch {about['torch']}"])
    columns = [f"split_{split}" for split in SPLITS]
    write_csv(Path(__file__).parent / "choice.csv", ["candidate", *columns, "mean", "machine"], rows)


if __name__ == "__main__":
    main()
