"""What busy.py and steps.py share: variants of the same work, timed in turn, each compared with the first of its group.

Machines are uneven, so a variant's ratio is taken round by round, from times that were measured close together.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lenet.environment import environment
from lenet.files import write_csv


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return statistics.median(values), min(values), max(values)


def compare(
    measure: Callable[[str, str], float], groups: dict[str, list[str]], rounds: int, table: Path, columns: list[str]
) -> None:
    """Measure each variant of each group once a round; print and write the times and ratios, median, least, greatest.

    `columns` are the table's names for the group, the variant and the time, which is called by its unit.
    """
    machine = environment(torch.device("cpu"), "portable")
    taken: dict[tuple[str, str], list[float]] = {(group, name): [] for group in groups for name in groups[group]}
    for _ in range(rounds):
        for (group, name), times in taken.items():
            times.append(measure(group, name))
    unit = columns[-1]
    rows: list[list[object]] = []
    for (group, name), times in taken.items():
        ratios = [one / first for one, first in zip(times, taken[group, groups[group][0]], strict=True)]
        figures = [*spread(times), *spread(ratios)]
        text = "{:7.2f} {unit} ({:.2f} to {:.2f}); ratio {:.2f} ({:.2f} to {:.2f})".format(*figures, unit=unit)
        print(f"{f'{group}: {name}':65}{text}")
        rows.append([group, name, *figures, rounds, f"{machine['processor']}, torch {machine['torch']}"])
    ends = ("", "_least", "_most")
    header = [*columns[:-1], *(f"{name}{end}" for name in (unit, "ratio") for end in ends), "rounds", "machine"]
    write_csv(table, header, rows)
