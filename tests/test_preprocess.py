"""preprocess: IDX files read strictly, the split, and .pt files that tutorial code can read."""

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import DEFAULTS, MNIST, RunStage, assert_refused, needs_mnist, set_params, tree

from lenet.data.idx import MAX_ITEMS, read_labelled_images
from lenet.data.info import DIGITS
from lenet.data.tensors import Dataset, hold_out

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def idx(magic: bytes, *sizes: int, content: bytes = b"") -> bytes:
    return gzip.compress(magic + struct.pack(f">{len(sizes)}I", *sizes) + content)


ONE_IMAGE = bytes(784)
BAD_FILES = {
    "empty": (IMAGES, b"", "begins with 0x"),
    "no gzip": (IMAGES, b"<!DOCTYPE html>", "is not a complete gzip file"),
    "raw IDX": (IMAGES, b"\0\0\x08\x03" + struct.pack(">3I", 1, 28, 28) + ONE_IMAGE, "is not a complete gzip file"),
    "truncated gzip": (IMAGES, idx(b"\0\0\x08\x03", 1, 28, 28, content=ONE_IMAGE)[:-10], "is not a complete gzip"),
    "damaged gzip": (
        IMAGES,
        idx(b"\0\0\x08\x03", 1, 28, 28, content=ONE_IMAGE)[:-8] + b"12345678",
        "is not a complete",
    ),
    "labels for images": (
        IMAGES,
        idx(b"\0\0\x08\x01", 1, content=b"\1"),
        "begins with 0x00000801, not with IDX's magic",
    ),
    "images for labels": (LABELS, idx(b"\0\0\x08\x03", 1, 28, 28, content=ONE_IMAGE), "begins with 0x00000803"),
    "floats": (IMAGES, idx(b"\0\0\x0d\x03", 1, 28, 28, content=4 * ONE_IMAGE), "begins with 0x00000d03"),
    "short header": (IMAGES, idx(b"\0\0\x08\x03", 1, 28), "ends within its header"),
    "32x32": (IMAGES, idx(b"\0\0\x08\x03", 1, 32, 32, content=bytes(1024)), "holds items of 32x32, not 28x28"),
    "no image": (IMAGES, idx(b"\0\0\x08\x03", 0, 28, 28), "claims 0 items"),
    "too few": (
        IMAGES,
        idx(b"\0\0\x08\x03", 2, 28, 28, content=ONE_IMAGE),
        "claims 2 items, 1568 bytes, but holds 784",
    ),
    "too many": (IMAGES, idx(b"\0\0\x08\x03", 1, 28, 28, content=2 * ONE_IMAGE), "holds more than the 1 items"),
    "fewer images than labels": (IMAGES, idx(b"\0\0\x08\x03", 1, 28, 28, content=ONE_IMAGE), "holds 1 images, but"),
    "a lie": (IMAGES, idx(b"\0\0\x08\x03", 2**32 - 1, 28, 28, content=ONE_IMAGE), "claims 4294967295 items; 1 to"),
    "label 10": (
        LABELS,
        idx(b"\0\0\x08\x01", 1437, content=bytes(700) + b"\x0a" + bytes(736)),
        "label 10 at position 700 is not a class from 0 to 9",
    ),
    "a class is missing": (
        LABELS,
        idx(b"\0\0\x08\x01", 1437, content=bytes(range(9)) + bytes(1428)),
        "has images of 9 of the 10 classes that dataset.json names, and none of '9'",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(digits_project: Path, run_stage: RunStage, case: str) -> None:
    name, content, words = BAD_FILES[case]
    (digits_project / "data/raw" / name).write_bytes(content)
    before = tree(digits_project)
    outcome = run_stage(digits_project, "preprocess")
    assert_refused(outcome, f"data/raw/{name}: ", words, "dvc repro download")
    assert tree(digits_project) == before


def test_memory_is_bounded_when_the_header_lies(tmp_path: Path) -> None:
    """A file of a few bytes whose header claims the largest size that is read: memory for it is never touched."""
    (tmp_path / IMAGES).write_bytes(idx(b"\0\0\x08\x03", MAX_ITEMS, 28, 28, content=ONE_IMAGE))
    code = (
        "import pathlib, resource, lenet, lenet.data.idx\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: lenet.data.idx.read_labelled_images(pathlib.Path('.'), 'train', '0123456789')\n"
        "except lenet.errors.InputError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    grown = int(subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True))
    unit = 1 if sys.platform == "darwin" else 1024
    assert grown * unit < 50e6, "784 MB were claimed"


@pytest.mark.parametrize("size", [1437, 5000])
def test_validation_set_as_large_as_the_data(digits_project: Path, run_stage: RunStage, size: int) -> None:
    set_params(digits_project, f"preprocess.validation_size={size}")
    before = tree(digits_project)
    outcome = run_stage(digits_project, "preprocess")
    assert_refused(outcome, f"preprocess.validation_size is {size}", "less than the 1437 images of the training file")
    assert tree(digits_project) == before


def test_the_split(digits_project: Path, run_stage: RunStage) -> None:
    images, labels = map(torch.from_numpy, read_labelled_images(digits_project / "data/raw", "train", DIGITS))

    def split() -> list[tuple[torch.Tensor, torch.Tensor]]:
        # As tutorial code reads torchvision's own processed files.
        files = [digits_project / "data/processed" / f"{name}.pt" for name in ("training", "validation")]
        return [torch.load(path) for path in files]

    (kept, kept_labels), (held_out, held_out_labels) = split()
    assert (kept.dtype, kept.shape) == (torch.uint8, (1294, 28, 28))
    assert (kept_labels.dtype, kept_labels.shape) == (torch.int64, (1294,))
    assert held_out.shape == (143, 28, 28)
    # Together they are the file, and each is in its order.
    position = {image.numpy().tobytes(): i for i, image in enumerate(images)}
    assert len(position) == len(images), "the images must differ for this test"
    places = [[position[image.numpy().tobytes()] for image in part] for part in (kept, held_out)]
    assert places == [sorted(part) for part in places]
    assert sorted(places[0] + places[1]) == list(range(1437))
    assert torch.equal(kept_labels, labels[places[0]].long())
    assert torch.equal(held_out_labels, labels[places[1]].long())

    set_params(digits_project, "preprocess.seed=1")
    assert run_stage(digits_project, "preprocess").status == 0
    assert not torch.equal(split()[1][0], held_out), "another seed draws other images"

    set_params(digits_project, "preprocess.validation_size=0")
    assert run_stage(digits_project, "preprocess").status == 0
    (everything, _), (none, no_labels) = split()
    assert torch.equal(everything, images)
    assert (none.shape, no_labels.shape) == ((0, 28, 28), (0,))


def test_same_bytes_again(digits_project: Path, run_stage: RunStage) -> None:
    before = tree(digits_project)
    assert run_stage(digits_project, "preprocess").status == 0
    assert tree(digits_project) == before


@needs_mnist
def test_mnist_as_torchvision_reads_it(tmp_path: Path) -> None:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    for part in ("train", "t10k"):
        images, labels = read_labelled_images(MNIST, part, DIGITS)
        for kind, ours, read in (("images-idx3", images, read_image_file), ("labels-idx1", labels, read_label_file)):
            (tmp_path / kind).write_bytes(gzip.decompress((MNIST / f"{part}-{kind}-ubyte.gz").read_bytes()))
            assert torch.equal(read(str(tmp_path / kind)), torch.from_numpy(ours).to(read(str(tmp_path / kind)).dtype))


@needs_mnist
def test_default_normalisation_is_mnists() -> None:
    images, _ = read_labelled_images(MNIST, "train", DIGITS)
    assert round(float(images.mean()) / 255, 4) == DEFAULTS.model.mean
    assert round(float(images.std()) / 255, 4) == DEFAULTS.model.std


def test_the_validation_set_is_drawn_from_the_whole_file() -> None:
    dataset = Dataset(torch.zeros(6000, 1), torch.arange(6000))
    for seed in (0, 1):
        kept, held_out = (part.labels for part in hold_out(dataset, 500, seed))
        assert (len(kept), len(held_out)) == (5500, 500)
        # About equally many of each 1,000, and neighbours no more often than by chance.
        assert held_out.bincount(minlength=6000).view(6, 1000).sum(dim=1).min() > 50
        assert (held_out.diff() == 1).float().mean() < 0.2
