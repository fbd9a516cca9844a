"""The data set's .pt files, checked as they are read."""

import io
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lenet.data.idx import SIDE
from lenet.errors import InputError, is_out_of_memory
from lenet.files import write_bytes

# A .pt file is a zip archive with a pickle, which is a program. These are the calls that build tensors. PyTorch allows
# a few more, with which a small file could ask for any amount of memory.
_CALL = re.compile(
    r"collections (Counter|OrderedDict)|torch\._utils _rebuild_\w+|torch (Size|\w+Storage|[a-z]\w*)"
    r"|torch\.serialization _get_layout"
)
_LARGEST_PICKLE = 2**20
"""In bytes. Those written here have a few thousand, and each byte may cost microseconds."""


class Dataset(NamedTuple):
    """Images, uint8 [N, 28, 28], 0 background to 255 ink, and their labels, int64 [N], from 0."""

    images: Tensor
    labels: Tensor


def to_tensors(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Dataset:
    """Turn uint8 arrays (N, 28, 28) and (N,) into a data set."""
    return Dataset(torch.from_numpy(images), torch.from_numpy(labels).to(torch.int64))


def hold_out(dataset: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out `size` images, drawn at random without replacement: (the rest, the held-out images), in file order."""
    order = torch.randperm(len(dataset.labels), generator=torch.Generator().manual_seed(seed))
    return _parts(dataset, order[size:].sort().values, order[:size].sort().values)


def hold_out_writers(dataset: Dataset, writers: Tensor, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out all images of some writers: (the rest, the held-out images), in file order.

    `writers`, int [N], are those of the images. Writers are drawn at random until they have at least `size` images.
    """
    known, of_image, counts = writers.unique(return_inverse=True, return_counts=True)
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    images_before = counts[order].cumsum(0) - counts[order]
    held_out = torch.isin(of_image, order[images_before < size])
    return _parts(dataset, held_out.logical_not().nonzero().flatten(), held_out.nonzero().flatten())


def _parts(dataset: Dataset, kept: Tensor, held_out: Tensor) -> tuple[Dataset, Dataset]:
    """The images at these positions, int64, in two parts."""
    return (
        Dataset(dataset.images[kept], dataset.labels[kept]),
        Dataset(dataset.images[held_out], dataset.labels[held_out]),
    )


def save_dataset(path: Path, dataset: Dataset) -> None:
    """Write `(images, labels)`, the layout of torchvision's own processed files."""
    write_pt(path, tuple(dataset))


def load_dataset(path: Path, classes: int, may_be_empty: bool = False) -> Dataset:
    """Read what `save_dataset` wrote: labels from 0 to `classes` - 1, and at least one image unless it `may_be_empty`.

    Raises
    ------
    InputError
        The file is not a `.pt` file of data, or its tensors have the wrong type, shape or values.
    """
    match load_pt(path):
        case (Tensor() as images, Tensor() as labels):
            pass
        case _:
            raise refused(path, "does not hold a pair (images, labels)")
    if not (is_plain(images) and is_plain(labels)):
        raise refused(path, "holds tensors that are not dense tensors in memory")
    if images.dtype != torch.uint8 or images.shape[1:] != (SIDE, SIDE) or images.ndim != 3:
        raise refused(path, f"holds images {images.dtype} {list(images.shape)}, not uint8 [N, {SIDE}, {SIDE}]")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not (len(labels) or may_be_empty):
        raise refused(path, f"holds labels {labels.dtype} {list(labels.shape)}, not int64 [N] for N > 0 images")
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise refused(path, f"holds labels from {labels.min()} to {labels.max()}, not classes from 0 to {classes - 1}")
    return Dataset(images, labels)


def write_pt(path: Path, content: object) -> None:
    """Write a .pt file whole or not at all."""
    # Not by torch.save itself, which misreports a full disk.
    write_bytes(path, to_pt(content))


def to_pt(content: object) -> bytes:
    """The bytes of a .pt file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def is_plain(tensor: object) -> bool:
    """Whether this is an ordinary dense tensor in memory: not sparse, nested, on `meta` or of a subclass."""
    if type(tensor) is not Tensor or tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    # In a small file, a huge tensor can be a view that repeats a few bytes.
    return tensor.is_contiguous()


def load_pt(path: Path) -> Any:
    """Read any .pt file without running code from it; `InputError` if it is damaged, foreign or malicious."""
    with path.open("rb") as file:
        return parse_pt(path, file)


def parse_pt(path: Path, file: IO[bytes]) -> Any:
    """Read an open file as `load_pt` does; `path` names it in errors."""
    try:
        _check_archive(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What torch warns of in a foreign file becomes an error below.
            return torch.load(file, map_location="cpu", weights_only=True)
    # Foreign bytes make zipfile and torch fail in many ways, which all mean the same to the user.
    except Exception as error:
        if is_out_of_memory(error):
            raise  # The file asks for no more memory than its own size, so the machine has too little.
        reason = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise refused(path, f"is not a .pt file that is safe to load ({reason})") from None


def _check_archive(file: IO[bytes]) -> None:
    """Raise an exception, of any kind, if torch could write files or take more memory than the file's size."""
    # torch still reads its first format, which is no zip archive and may be unpacked into a folder.
    if file.read(4) != b"PK\3\4":
        raise ValueError("not a zip archive")
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > file.seek(0, io.SEEK_END):
            raise ValueError("its entries are compressed")
        # torch ignores the case of an entry's name.
        pickles = [entry for entry in entries if entry.filename.lower().endswith("data.pkl")]
        if any(entry.file_size > _LARGEST_PICKLE for entry in pickles):
            raise ValueError("its pickle is too large")
        programs = [archive.read(entry) for entry in pickles]
    for program in programs:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name in ("STACK_GLOBAL", "INST") or (
                opcode.name == "GLOBAL" and not _CALL.fullmatch(str(argument))
            ):
                raise ValueError(f"calls {argument}")
    file.seek(0)


def refused(path: Path, why: str) -> InputError:
    """The error for a .pt file that cannot be used."""
    return InputError(f"{path}: {why}; delete it and run `dvc repro`")
