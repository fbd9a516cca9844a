"""Checkpoints: the state of a training run after an epoch, in a file named after the result that it leads to."""

import fcntl
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lenet.data.tensors import Dataset, parse_pt, to_pt
from lenet.environment import environment
from lenet.errors import InputError
from lenet.files import leftovers, write_bytes

_DIGEST = hashlib.sha256().digest_size

KEPT = 10
"""How many checkpoints of other training runs are kept, so that a short run does not discard a long one's."""


def identity(
    parameters: dict[str, Any], datasets: Iterable[Dataset | None], device: torch.device, arithmetic: str
) -> str:
    """A name for the result of a training run, 16 hexadecimal digits; it changes with anything that decides the result.

    That is: the parameters, the data, the code (each source file of the project that this program has loaded), the
    packages, the processor and the device.
    """
    folder = Path(__file__).parents[2]
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    loaded = (Path(file) for file in files if file and file.startswith(f"{folder}{os.sep}"))
    facts = {
        "parameters": parameters,
        "data": [[_sha256(tensor.numpy()) for tensor in dataset] for dataset in datasets if dataset],
        "code": {str(path.relative_to(folder)): _sha256(path.read_bytes()) for path in loaded},
        "environment": environment(device, arithmetic),
        "device": str(device),
    }
    return _sha256(json.dumps(facts, sort_keys=True).encode())[:16]


def _sha256(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Lock the folder, which is created if needed; while another training run has the lock, wait."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    # Open for writing, because NFS grants an exclusive lock on no other file. The system releases the lock when the
    # process ends, however that happens.
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another training run is in progress in this project; waiting for it to end", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            print(f"warning: {path}: {error.strerror}; make sure that no other run uses this folder", file=sys.stderr)
        yield


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a training run's state, preceded by its SHA-256, whole or not at all; keep the `KEPT` newest of others."""
    content = to_pt(state)
    write_bytes(path, hashlib.sha256(content).digest() + content)
    others = [other for other in path.parent.glob("*.checkpoint") if other != path]
    for old in sorted(others, key=lambda other: other.stat().st_mtime_ns, reverse=True)[KEPT:]:
        old.unlink()


def load(path: Path) -> dict[str, Any] | None:
    """Read what `save` wrote; None if there is no file, or if it is damaged, which is reported."""
    if not path.exists():
        return None
    content = path.read_bytes()
    digest, content = content[:_DIGEST], content[_DIGEST:]
    try:
        if hashlib.sha256(content).digest() != digest:
            raise InputError(f"{path}: is damaged")
        state: dict[str, Any] = parse_pt(path, io.BytesIO(content))
    except InputError:
        print(f"warning: {path} is damaged and not used; training starts from scratch", file=sys.stderr)
        return None
    return state


def remove(path: Path) -> None:
    """Remove the checkpoint of a training run that has ended, and what killed programs left half-written."""
    for each in [path, *leftovers(path.parent, "*.checkpoint")]:
        each.unlink(missing_ok=True)
