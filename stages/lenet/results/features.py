"""What a network sees: its first kernels, the outputs of its layers for an image, the embedding of its last hidden one.

`evaluate` computes them and writes them to a file, from which `plot` draws pictures without PyTorch.
"""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenet.errors import InputError
from lenet.files import write_bytes


class Features(NamedTuple):
    """What `lenet.results.observation.observe` computes, as arrays.

    Attributes
    ----------
    layers : dict
        name -> float32 [maps, height, width] or [units], the outputs of the layers for the first image, after what
        belongs to each (norm, activation); from `input` to `output`.
    operations : dict
        name -> what the layer does, in words.
    kernels : float32 [K, height, width]
        The weights of the first layer: of a convolution its kernels, of a dense one those of its first 32 units, each
        as a picture with the shape of the input.
    embedding : float32 [N, 2]
        The first two principal components of the last hidden layer's outputs, for each image.
    variance : float32 [2]
        The share of the variance that is along each of them.
    """

    layers: dict[str, NDArray[np.float32]]
    operations: dict[str, str]
    kernels: NDArray[np.float32]
    embedding: NDArray[np.float32]
    variance: NDArray[np.float32]


_SINGLE = ("kernels", "embedding", "variance")


def write_features(path: Path, features: Features) -> None:
    """Write features.npz, NumPy's archive of arrays."""
    arrays: dict[str, Any] = {name: getattr(features, name) for name in _SINGLE}
    arrays |= {f"layers/{name}": values for name, values in features.layers.items()}
    arrays |= {f"operations/{name}": np.array(text) for name, text in features.operations.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def read_features(path: Path, images: int) -> Features:
    """Read what `write_features` wrote, of so many images.

    Raises
    ------
    InputError
        The file is damaged, foreign or of other images.
    """
    try:
        with path.open("rb") as file, np.load(file) as archive:  # Without pickles, which are programs.
            arrays = {name: archive[name] for name in archive.files}
        layers, operations = _part(arrays, "layers/"), _part(arrays, "operations/")
        words = {name: str(text) for name, text in operations.items()}
        features = Features(layers, words, *(arrays[name] for name in _SINGLE))
        fit = _fit(features, images)
    except (ValueError, TypeError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        fit = False
    if not fit:
        raise InputError(f"{path}: does not belong to these test images; run `dvc repro evaluate`")
    return features


def _part(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _fit(features: Features, images: int) -> bool:
    """Whether all of it has the types and shapes that `Features` promises."""
    numbers = [*features.layers.values(), *features[2:]]
    return (
        all(values.dtype == np.float32 and values.size and np.isfinite(values).all() for values in numbers)
        and {"input", "output"} <= features.layers.keys() == features.operations.keys()
        and all(values.ndim in (1, 3) for values in features.layers.values())
        and (features.kernels.ndim, features.embedding.shape, features.variance.shape) == (3, (images, 2), (2,))
    )
