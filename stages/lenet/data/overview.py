"""Which data sets there are, and which are on this machine."""

import os
from pathlib import Path
from typing import Any

from lenet.data.catalog import CATALOG, OWN, Entry
from lenet.data.mirrors import is_published
from lenet.data.own import class_folders


def overview(raw: Path, kept: Path, own: Path) -> list[dict[str, Any]]:
    """A row for each data set, with values that JSON has.

    Parameters
    ----------
    raw, kept : Path
        Where the stage download puts the files and keeps what it has fetched.
    own : Path
        The folder of `own`.
    """
    rows = [_row(entry, [raw, kept / name]) for name, entry in CATALOG.items()]
    folders = class_folders(own) if own.is_dir() else []
    mine = {"name": OWN, "title": "your own images", "classes": [path.name for path in folders]}
    return [*rows, mine | {"here": [str(own)] if folders else []}]


def _row(entry: Entry, places: list[Path]) -> dict[str, Any]:
    info, source = entry.info, entry.source
    row = {
        "name": info.name,
        "title": info.title,
        "training_images": entry.images[0],
        "test_images": entry.images[1],
        "classes": [*info.classes],
        "mean": info.mean,
        "std": info.std,
        "licence": entry.licence,
        "citation": entry.citation,
    }
    if not source:
        return row | {"here": ["scikit-learn's package"]}
    mirror = os.environ.get(source.variable, "")
    if mirror and "://" not in mirror:
        places = [*places, Path(mirror).expanduser()]
    here = [place for place in places if all(is_published(place / file.name, file) for file in source.files)]
    return row | {
        "here": [str(place) for place in here],
        "megabytes": round(sum(file.size for file in source.files) / 1e6, 1),
        "own_mirror": source.variable,
        "mirrors": [*source.mirrors],
    }


def as_text(row: dict[str, Any]) -> str:
    """A row of `overview` in a few lines."""
    names = row["classes"] if len(row["classes"]) <= 10 else [*row["classes"][:9], "..."]
    about = [f"{row['name']}: {row['title']}"]
    if "licence" in row:
        about[0] += f", {row['training_images']:,} training and {row['test_images']:,} test images"
        about.append(f"classes: {', '.join(names)}")
    else:
        about.append(f"classes: {', '.join(names) or 'none'} (the folders in data.folder)")
    if row["here"]:
        about.append(f"here: {', '.join(row['here'])}")
    elif "megabytes" in row:
        about.append(f"here: no; {row['megabytes']} MB to download, or set {row['own_mirror']}")
    else:
        about.append("here: no; docs/data.md says how to make it")
    about += [f"{key}: {row[key]}" for key in ("licence", "citation") if key in row]
    return "\n  ".join(about)
