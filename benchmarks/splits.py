"""Which validation set predicts the test error: images or writers held out? `python benchmarks/splits.py`.

Trains the network of params.yaml with five seeds (`preprocess.seed` and `train.seed` both 0 to 4) on MNIST with images
held out, on MNIST with writers held out, and on Fashion-MNIST with images held out, as DVC experiments in one
thread, one on each core. Writes the validation and test errors of each run to benchmarks/splits.csv. DVC's cache serves
what has been trained before. Takes about five minutes on two cores.
"""

import statistics
from pathlib import Path

import torch

from lenet.environment import environment
from lenet.experiments.presets import Values, foundation, overlaid
from lenet.experiments.sweep import Run, all_done, started
from lenet.files import write_csv

SEEDS = range(5)
CASES = (("mnist", "images"), ("mnist", "writers"), ("fashion_mnist", "images"))


def main() -> None:
    """Train all runs, and compare their validation errors with their test errors."""
    base = foundation()
    wanted: dict[str, Values] = {}
    for dataset, hold_out in CASES:
        for seed in SEEDS:
            choice: Values = {
                "data": {"dataset": dataset},
                "preprocess": {"hold_out": hold_out, "seed": seed},
                "train": {"seed": seed, "threads": 1},
            }
            wanted[f"splits-{dataset}-{hold_out}-{seed}"] = overlaid(base, ("the splits", choice))
    with started(None, None) as sweep:
        done = all_done(sweep.run([Run(name, values) for name, values in wanted.items()], replace=True))

    about = environment(torch.device("cpu"), "portable")
    rows: list[list[object]] = []
    for dataset, hold_out in CASES:
        errors = []
        for seed in SEEDS:
            metrics = done[f"splits-{dataset}-{hold_out}-{seed}"].metrics
            errors.append((1 - metrics["validation_accuracy"], metrics["error_rate"]))
            rows.append([dataset, hold_out, seed, *errors[-1], f"{about['processor']}, torch {about['torch']}"])
        validation, test = (statistics.mean(column) for column in zip(*errors, strict=True))
        print(f"{dataset}, {hold_out}: validation error {validation:.2%}, test error {test:.2%}")
    columns = ["dataset", "hold_out", "seed", "validation_error", "test_error", "machine"]
    write_csv(Path(__file__).parent / "splits.csv", columns, rows)


if __name__ == "__main__":
    main()
