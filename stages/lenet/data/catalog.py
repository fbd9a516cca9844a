"""The data sets: a row for each in `CATALOG`. A published one is added by adding its row, and nothing else.

Only the stage download and the command `lenet` read this table. The other stages read the file dataset.json, so that a
new row makes none of them run again.
"""

from pathlib import Path
from typing import NamedTuple

from lenet.data.info import DIGITS, FILES, DatasetInfo, read_info
from lenet.errors import InputError

OWN = "own"
"""The name of the data set that is made from a folder of images, which is in no table."""


class Resource(NamedTuple):
    """One published file: its name, its length in bytes and its SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


class Source(NamedTuple):
    """Where published files come from.

    Attributes
    ----------
    title : str
        What they are called in messages.
    variable : str
        The environment variable that names a mirror of one's own, a folder or URL, which is tried first.
    mirrors : tuple of str
        The public mirrors, in the order to try them.
    files : tuple of Resource
        Those to fetch.
    """

    title: str
    variable: str
    mirrors: tuple[str, ...]
    files: tuple[Resource, ...]


class Entry(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    info : DatasetInfo
        What the later stages have to know.
    images : tuple of int
        The numbers of training and of test images.
    licence, citation : str
        The licence as the authors state it or, if they do not, who does.
    source : Source or None
        Where the four files come from; None for `digits`, which scikit-learn's package contains.
    writers : Source or None
        A file that says who wrote each training image, if there is one: `lenet.data.writers`.
    prepare : str
        Which value of `data.prepare` makes an image one like those of the data set.
    """

    info: DatasetInfo
    images: tuple[int, int]
    licence: str
    citation: str
    source: Source | None = None
    writers: Source | None = None
    prepare: str = "mnist"

    @property
    def sources(self) -> list[Source]:
        """All published files."""
        return [source for source in (self.source, self.writers) if source]


def _four_files(*sizes_and_checksums: tuple[int, str]) -> tuple[Resource, ...]:
    return tuple(Resource(name, *rest) for name, rest in zip(FILES, sizes_and_checksums, strict=True))


# The mirrors are those of torchvision, in its order. Fashion-MNIST has one more, its authors' repository: HTTPS, and
# the same bytes by Git's hashes of the files. The checksums of MNIST, Fashion-MNIST and QMNIST were computed from files
# whose MD5 is the one in torchvision. No copy of Kuzushiji-MNIST could be had: its checksums are those that TensorFlow
# Datasets pins, its mean and standard deviation were computed by others.
_ROWS = (
    Entry(
        DatasetInfo("mnist", "MNIST", DIGITS, 0.1307, 0.3081),
        (60_000, 10_000),
        "not stated by its authors; Keras's documentation says CC BY-SA 3.0",
        "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document recognition, "
        "Proceedings of the IEEE 86(11), 1998, https://doi.org/10.1109/5.726791",
        Source(
            "MNIST",
            "MNIST_MIRROR",
            ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
            _four_files(
                (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
                (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
                (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
                (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
            ),
        ),
        Source(
            "QMNIST",
            "QMNIST_MIRROR",
            ("https://raw.githubusercontent.com/facebookresearch/qmnist/master/",),
            (
                Resource(
                    "qmnist-train-labels-idx2-int.gz",
                    463_024,
                    "2c05dc77f6b916b38e455e97ab129a42a444f3dbef09b278a366f82904e0dd9f",
                ),
            ),
        ),
    ),
    Entry(
        DatasetInfo(
            "fashion_mnist",
            "Fashion-MNIST",
            (
                *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
                *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            ),
            0.2860,
            0.3530,
        ),
        (60_000, 10_000),
        "MIT",
        "H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning "
        "algorithms, 2017, https://arxiv.org/abs/1708.07747",
        Source(
            "Fashion-MNIST",
            "FASHION_MNIST_MIRROR",
            (
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            ),
            _four_files(
                (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
                (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
                (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
                (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
            ),
        ),
        prepare="resize",
    ),
    Entry(
        DatasetInfo(
            "kmnist",
            "Kuzushiji-MNIST",
            ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
            0.1918,
            0.3483,
        ),
        (60_000, 10_000),
        "CC BY-SA 4.0",
        "T. Clanuwat, M. Bober-Irizar, A. Kitamoto, A. Lamb, K. Yamamoto, D. Ha, Deep learning for classical Japanese "
        "literature, 2018, https://arxiv.org/abs/1812.01718",
        Source(
            "Kuzushiji-MNIST",
            "KMNIST_MIRROR",
            ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
            _four_files(
                (18_165_135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
                (29_497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
                (3_041_136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
                (5_120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
            ),
        ),
        prepare="resize",
    ),
    Entry(
        DatasetInfo("digits", "scikit-learn's digits", DIGITS, 0.1574, 0.2930),
        (1_437, 360),
        "CC BY 4.0",
        "E. Alpaydin, C. Kaynak, Optical recognition of handwritten digits, UCI Machine Learning Repository, 1998, "
        "https://doi.org/10.24432/C50P49",
    ),
)

CATALOG: dict[str, Entry] = {entry.info.name: entry for entry in _ROWS}


def find(name: str, where: str = "params.yaml") -> Entry | None:
    """The row of a data set, None for `own`; `where` names the file of parameters in errors.

    Raises
    ------
    InputError
        There is none of that name.
    """
    if name != OWN and name not in CATALOG:
        known = ", ".join(CATALOG)
        raise InputError(f"{where}: data.dataset is {name!r}; it must be {known} or {OWN}")
    return CATALOG.get(name)


def info_of(name: str, raw: Path) -> DatasetInfo:
    """What there is to know of a data set; of one's own, only after the stage download has made its files in `raw`."""
    if entry := find(name):
        return entry.info
    path = raw / "dataset.json"
    if not path.exists() or (info := read_info(path)).name != OWN:
        raise InputError(f"{path}: is not of data set {OWN}, whose classes it names; run `dvc repro download`")
    return info
