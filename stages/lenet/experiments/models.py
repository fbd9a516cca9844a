"""The trained network of any revision that Git or DVC has, and what else DVC keeps for it."""

import hashlib
import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from lenet.data.tensors import parse_pt
from lenet.errors import InputError
from lenet.experiments.revisions import TEST_SET, Revision, resolve
from lenet.network.saved import load_model
from lenet.params import parse_yaml

MODEL = "models/lenet.pt"
FROM_PHOTOS = ("fashion_mnist",)
"""The data sets whose images are of things, not of ink on paper."""


class Trained(NamedTuple):
    """A trained network, and what an image has to become for it.

    Attributes
    ----------
    network : nn.Sequential
        On the CPU, in evaluation mode.
    classes : list of str
        The names of its outputs.
    dataset : str
        What it was trained on: `data.dataset`.
    prepare : str
        `mnist` or `resize`, as `data.prepare`: what makes an image one of 28x28 pixels like those of the data set.
    """

    revision: Revision
    network: nn.Sequential
    classes: list[str]
    dataset: str
    prepare: str


def trained(revision: Revision) -> Trained:
    """Load a revision's trained network.

    Raises
    ------
    InputError
        There is none, DVC does not have it, or it is damaged or foreign.
    """
    text = revision.read("dvc.lock")
    if text is None:
        raise InputError(f"{revision.name} has no results: it has no dvc.lock")
    try:
        lock: Any = parse_yaml(text, "dvc.lock")
        data = lock["stages"]["download"]["params"]["params.yaml"]["data"]
        dataset, prepare = str(data["dataset"]), str(data.get("prepare", "mnist"))
    except (InputError, KeyError, TypeError, AttributeError):
        raise InputError(f"{revision.name}: its dvc.lock is not that of this pipeline") from None
    if dataset != "own":
        prepare = "resize" if dataset in FROM_PHOTOS else "mnist"
    if revision.commit is None:
        if not Path(MODEL).is_file():
            raise InputError(f"{MODEL}: no such file; run `dvc repro`")
        network, classes = load_model(Path(MODEL))
    else:
        with tempfile.TemporaryDirectory(prefix="lenet-model-") as folder:
            copy = Path(folder, Path(MODEL).name)
            copy.write_bytes(stored(revision, MODEL))
            try:
                network, classes = load_model(copy)
            except InputError as error:
                # Its advice is about a file of the workspace.
                reason = str(error).replace(str(copy), MODEL).rpartition(";")[0]
                raise InputError(f"{revision.name}: {reason}") from None
    return Trained(revision, network.eval(), classes, dataset, prepare)


def one(name: str) -> Revision:
    """The revision of that name, which must not be that of a group.

    Raises
    ------
    InputError
        There is none, or there are several.
    """
    found = resolve(name)
    if len(found) > 1:
        raise InputError(f"{name} stands for {len(found)} experiments, such as {found[0].name}; name one")
    return found[0]


def provenance(trained: Trained) -> dict[str, str]:
    """Where a network comes from, for the metadata of an exported one.

    `dataset`, `weights_md5`, the checksum of models/lenet.pt in dvc.lock, and of a commit its hash, `commit`.

    Raises
    ------
    InputError
        The workspace's model is not the one that its dvc.lock lists.
    """
    weights = stored(trained.revision, MODEL)
    found = {"dataset": trained.dataset, "weights_md5": hashlib.md5(weights, usedforsecurity=False).hexdigest()}
    return found | ({"commit": trained.revision.commit} if trained.revision.commit else {})


def stored(revision: Revision, path: str) -> bytes:
    """The content of a file that DVC keeps, with the checksum that the revision's dvc.lock has for it.

    It is taken from the workspace if the file there is the same, else from DVC's cache or default remote.

    Raises
    ------
    InputError
        dvc.lock does not list it, or nothing has it.
    """
    md5 = _listed(revision, path)
    here = Path(path)
    content = here.read_bytes() if here.is_file() else b""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5:
        return content
    if revision.commit is None:
        reason = "is not the file that dvc.lock lists" if here.is_file() else "no such file"
        raise InputError(f"{path}: {reason}; run `dvc repro`")
    from dvc.api import read
    from dvc.exceptions import DvcException

    try:
        found: Any = read(path, rev=revision.commit, mode="rb")
    except (DvcException, OSError):
        raise InputError(
            f"{revision.name}: DVC has its {path} neither in its cache nor in a remote; "
            "check that revision out and run `dvc repro`"
        ) from None
    return bytes(found)


def test_images(revision: Revision) -> Tensor:
    """The revision's test images, uint8 [N, 28, 28]; errors as `stored`."""
    return _images(revision, TEST_SET)


def validation_images(revision: Revision) -> Tensor:
    """The revision's validation images, uint8 [N, 28, 28]; the training images if none were held out."""
    held_out = _images(revision, "data/processed/validation.pt")
    return held_out if len(held_out) else _images(revision, "data/processed/training.pt")


def _images(revision: Revision, path: str) -> Tensor:
    found: Tensor = parse_pt(Path(path), io.BytesIO(stored(revision, path)))[0]
    return found


def _listed(revision: Revision, path: str) -> str:
    """The MD5 of a file in the revision's dvc.lock, by the stage that writes it or one that reads it."""
    lock: Any = parse_yaml(revision.read("dvc.lock") or b"", "dvc.lock")
    for stage in (lock or {}).get("stages", {}).values():
        for entry in (*stage.get("outs", ()), *stage.get("deps", ())):
            if entry["path"] == path:
                return str(entry["md5"])
    raise InputError(f"{revision.name}: its dvc.lock lists no {path}; run `dvc repro`")
