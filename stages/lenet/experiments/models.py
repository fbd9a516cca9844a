"""The trained network of any revision that Git or DVC has, and what else DVC keeps for it."""

import hashlib
import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from lenet.data.catalog import CATALOG
from lenet.data.tensors import Dataset, parse_pt
from lenet.errors import InputError
from lenet.experiments.revisions import TEST_SET, Revision, resolve
from lenet.network.backend import predict
from lenet.network.saved import load_model
from lenet.params import parse_yaml
from lenet.results.export import FORMATS, Check

MODEL = "models/lenet.pt"


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
        There is none, it is not the one that dvc.lock lists or DVC does not have that, or it is damaged or foreign.
    """
    text = revision.read("dvc.lock")
    if text is None:
        raise InputError(f"{revision.name} has no results: it has no dvc.lock; run this in the project's root")
    try:
        lock: Any = parse_yaml(text, "dvc.lock")
        data = lock["stages"]["download"]["params"]["params.yaml"]["data"]
        dataset, prepare = str(data["dataset"]), str(data.get("prepare", "mnist"))
    except (InputError, KeyError, TypeError, AttributeError):
        raise InputError(f"{revision.name}: its dvc.lock is not that of this pipeline") from None
    if dataset in CATALOG:
        prepare = CATALOG[dataset].prepare
    with tempfile.TemporaryDirectory(prefix="lenet-model-") as folder:
        copy = Path(folder, Path(MODEL).name)
        copy.write_bytes(stored(revision, MODEL))
        try:
            network, classes = load_model(copy)
        except InputError as error:
            # Its advice is about a file of the workspace.
            reason = str(error).replace(str(copy), MODEL).rpartition(";")[0]
            raise InputError(f"{revision.name}: {reason}") from None
    if not all(weights.isfinite().all() for weights in network.state_dict().values()):
        raise InputError(f"{revision.name}: {MODEL}: has weights that are not finite numbers; train it again")
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
    """
    found = {"dataset": trained.dataset, "weights_md5": _listed(trained.revision, MODEL)}
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


def exported(trained: Trained, form: str) -> tuple[bytes, Check]:
    """The network in a format of `lenet.results.export`, and how its outputs for the test set compare with PyTorch's.

    Raises
    ------
    InputError
        It would predict something else than PyTorch does, or DVC does not have the test set or these weights.
    """
    convert, check = FORMATS[form]
    images = test_set(trained.revision).images
    program = convert(trained.network, trained.classes, provenance(trained))
    found = check(program, images, predict(trained.network, images, 250))
    if not found.passed:
        raise InputError(
            f"{trained.revision.name}: not exported: of {found.images:,} test images, {found.predictions:,} have "
            f"another prediction than in PyTorch, and outputs differ by up to {found.difference:.1e}"
        )
    return program, found


def test_set(revision: Revision) -> Dataset:
    """The revision's test set; errors as `stored`."""
    return _dataset(revision, TEST_SET)


def validation_images(revision: Revision) -> Tensor:
    """The revision's validation images, uint8 [N, 28, 28]; the training images if none were held out."""
    held_out = _dataset(revision, "data/processed/validation.pt").images
    return held_out if len(held_out) else _dataset(revision, "data/processed/training.pt").images


def _dataset(revision: Revision, path: str) -> Dataset:
    return Dataset(*parse_pt(Path(path), io.BytesIO(stored(revision, path))))


def _listed(revision: Revision, path: str) -> str:
    """The MD5 of a file in the revision's dvc.lock, by the stage that writes it or one that reads it."""
    try:
        lock: Any = parse_yaml(revision.read("dvc.lock") or b"", "dvc.lock")
        for stage in lock["stages"].values():
            for entry in (*stage.get("outs", ()), *stage.get("deps", ())):
                if entry["path"] == path:
                    return str(entry["md5"])
    except (InputError, KeyError, TypeError, AttributeError):
        pass  # Not the lock of this pipeline.
    raise InputError(f"{revision.name}: its dvc.lock lists no {path}; run `dvc repro`")
