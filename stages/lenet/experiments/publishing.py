"""A run as one hands it on: weights, ONNX, report, model card, checksums and provenance in one folder."""

import glob
import hashlib
import os
import re
import shutil
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from ruamel.yaml import YAML
from torch import nn

from lenet.data.catalog import CATALOG, OWN, Entry
from lenet.data.info import DIGITS
from lenet.errors import InputError
from lenet.experiments import crate, dvc, models, report
from lenet.experiments.captions import dataset_title
from lenet.experiments.crate import Origin
from lenet.experiments.git import git
from lenet.experiments.presets import flattened
from lenet.experiments.revisions import WORKSPACE, Result, Revision, load
from lenet.files import leftovers
from lenet.network.description import describe
from lenet.results.figures import wilson_interval

MODULES = ("onnx", "onnxruntime", "onnxscript", "rocrate")

# Those of the commit that a folder has if the commit has them.
_ALONGSIDE = ("LICENSE", "dvc.lock", "dvc.yaml", "params.yaml", "requirements.txt")


class Share(NamedTuple):
    """The share of images that are classified correctly, and its 95% Wilson score interval."""

    name: str
    images: int
    value: float
    low: float
    high: float


def publish(folder: Path, name: str) -> tuple[Revision, dict[str, bytes]]:
    """Write the folder of the revision of that name; return the revision and the files, path -> content.

    The same commit gives the same bytes.

    Raises
    ------
    InputError
        The revision is the workspace, has no results, or they are not those of its dvc.lock; DVC does not have its
        network; a package is missing; or the folder exists and is not empty.
    """
    if missing := [module for module in MODULES if find_spec(module) is None]:
        raise InputError(f"publishing needs {', '.join(missing)}; run `pip install -e '.[publish]'`")
    if name == WORKSPACE:
        raise InputError("nobody else can check the workspace out; commit it and publish HEAD")
    revision = models.one(name)
    result = load(revision)
    with _appears_whole(folder) as aside:
        files = _files(revision, result)
        with _under_name(folder):
            for path, content in files.items():
                (aside / path).parent.mkdir(parents=True, exist_ok=True)
                (aside / path).write_bytes(content)
    return revision, files


@contextmanager
def _appears_whole(folder: Path) -> Iterator[Path]:
    """A hidden folder to write to, which gets the name `folder` if the block ends without an error.

    If it fails, the hidden folder is removed. What killed programs left there is removed first.
    """
    wanted = "name a folder that is empty or does not exist"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; {wanted}")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty; {wanted}")
    place = folder.resolve()  # A rename does not follow a link.
    aside = place.with_name(f".{place.name}.{os.getpid()}.part")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _under_name(folder):
            for left in leftovers(place.parent, glob.escape(place.name)):
                shutil.rmtree(left, ignore_errors=True)
            aside.mkdir()
        yield aside
        with _under_name(folder):
            aside.rename(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _under_name(folder: Path) -> Iterator[None]:
    """Let the system's errors name the folder that the user knows."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _files(revision: Revision, result: Result) -> dict[str, bytes]:
    """All files of the folder, path -> content."""
    commit = revision.commit
    assert commit
    # The user may call the commit one thing today and another tomorrow.
    result = result._replace(revision=Revision(commit[:7], commit))
    trained = models.trained(revision)
    models.validation_images(revision)  # Without them, the report would have other bytes.
    files = {path: content for path in _ALONGSIDE if (content := revision.read(path)) is not None}
    if crate.WORKFLOW not in files:
        raise InputError(f"{revision.name} has no {crate.WORKFLOW}")
    files |= _outputs(revision, result)
    environment = report.recorded_environment(result)
    if environment:
        files["environment.lock"] = revision.read("environment.lock") or b""
    origin = _origin(commit, revision, environment)
    card = Card(result, origin, trained.network)
    files |= {
        crate.WEIGHTS: models.stored(revision, models.MODEL),
        crate.ONNX: models.exported(trained, "onnx")[0],
        crate.REPORT: report.page([result]),
        crate.CARD: card.text().encode(),
    }
    files[crate.NAME] = crate.metadata(card.title, card.summary, origin, result, files)
    sums = [f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in sorted(files.items())]
    return files | {crate.CHECKSUMS: "".join(sums).encode()}


def _outputs(revision: Revision, result: Result) -> dict[str, bytes]:
    """The metrics and plots of the run that Git has, path -> content.

    Raises
    ------
    InputError
        One was changed after the run.
    """
    found = {}
    for path in sorted(path for path in result.outputs if path.startswith(("metrics/", "plots/"))):
        content = revision.read(path)
        if content is None:
            continue
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != result.outputs[path]:
            raise InputError(
                f"{revision.name}: its {path} is not the one that dvc.lock lists; run `dvc repro` and commit the result"
            )
        found[path] = content
    return found


def _origin(commit: str, revision: Revision, environment: dict[str, str]) -> Origin:
    about = git("log", "-1", "--no-show-signature", "--format=%an%n%cI", commit).stdout.splitlines()
    locked = (revision.read("requirements.txt") or b"").decode(errors="replace")
    pins = {*re.findall(r"^([\w.-]+)==([^\s;]+)", locked, re.MULTILINE)}
    # Of some packages the lock has a version for each Python: which one was used is not known.
    several = Counter(package for package, _ in pins)
    packages = {package: pin for package, pin in sorted(pins) if several[package] == 1}
    try:
        project = tomllib.loads((revision.read("pyproject.toml") or b"").decode())["project"]
    except (ValueError, KeyError, TypeError):
        project = {}
    if project.get("license", "MIT") != "MIT":
        raise InputError(f"{revision.name}: its licence is not MIT, for which card.md and crate.py are written")
    repository = str(project.get("urls", {}).get("Repository", "")).rstrip("/")
    if not re.fullmatch(r"https://[\w./~-]+", repository):
        repository = ""
    return Origin(commit, about[0], about[1], repository, packages, environment, version("lenet"))


class Card:
    """The model card, in the format of Hugging Face."""

    def __init__(self, result: Result, origin: Origin, network: nn.Sequential) -> None:
        self.result, self.origin, self.layers = result, origin, describe(network)
        architecture = str(result.params["model"].get("architecture", "lenet"))
        self.architecture = report.ARCHITECTURES.get(architecture, architecture)
        self.dataset = str(result.params["data"]["dataset"])
        self.dataset_title = dataset_title(result)
        self.title = f"{self.architecture} on {self.dataset_title}"
        actual = result.predictions["actual"]
        counts = actual.value_counts()
        self.overall = _share("all", len(actual), result.metrics["accuracy"])
        self.classes = [_share(name, int(counts.get(name, 0)), accuracy) for name, accuracy in result.per_class.items()]
        self.summary = (
            f"A {self.architecture} with {result.metrics['parameters']:,.0f} parameters, trained on "
            f"{self.dataset_title}. It classifies {self.overall.value:.2%} of {self.overall.images:,} test images "
            f"correctly (95% interval {self.overall.low:.2%} to {self.overall.high:.2%})."
        )

    def text(self) -> str:
        """The card. The same result gives the same text."""
        environment = Environment(
            loader=PackageLoader("lenet", "results"),
            autoescape=False,  # noqa: S701  It is Markdown; `plain` escapes that.
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            undefined=StrictUndefined,
        )
        environment.filters["plain"] = _plain
        entry = CATALOG.get(self.dataset)
        return environment.get_template("card.md").render(
            front=self._front(),
            card=self,
            entry=entry,
            about_data=ABOUT_DATA[self.dataset],
            noun="digit" if tuple(self.result.per_class) == DIGITS else "class",
            split=_split(self.result, entry),
            metrics=self.result.metrics,
            params=self.result.params,
            parameters={name: dvc.text(value) for name, value in flattened(self.result.params).items()},
            origin=self.origin,
        )

    def _front(self) -> str:
        """The front matter: YAML."""
        metrics = [
            {"type": "accuracy", "name": "Accuracy on the test images", "value": self.result.metrics["accuracy"]},
            {"type": "loss", "name": "Cross-entropy on the test images", "value": self.result.metrics["loss"]},
        ]
        result = {
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {"type": self.dataset, "name": self.dataset_title, "split": "test"},
            "metrics": metrics,
        }
        values = {
            "license": "mit",
            "library_name": "pytorch",
            "pipeline_tag": "image-classification",
            "tags": ["lenet", "image-classification", "onnx", "dvc", "reproducible"],
            **({"datasets": [self.dataset]} if self.dataset in CATALOG else {}),
            "metrics": ["accuracy"],
            "model-index": [{"name": self.title, "results": [result]}],
        }
        text = StringIO()
        YAML().dump(values, text)
        return text.getvalue()


def _share(name: str, images: int, value: float) -> Share:
    low, high = wilson_interval(np.array(value), np.array(images))
    return Share(name, images, value, float(low), float(high))


def _plain(text: object) -> str:
    """A text in which Markdown, its usual extensions and HTML see nothing special, on one line."""
    escaped = re.sub(r"([\\`*_\[\]<>|&~$@#!])", r"\\\1", " ".join(str(text).split()))
    return re.sub(r"://|(?<=www)\.", lambda found: f"&#{ord(found[0][0])};{found[0][1:]}", escaped)


def _split(result: Result, entry: Entry | None) -> dict[str, str]:
    """How many images there are for training, validation and test, as far as parameters and catalogue tell."""
    preprocess, test = result.params["preprocess"], f"{len(result.predictions):,}"
    held = preprocess["validation_size"]
    if preprocess.get("hold_out", "images") != "images":
        # Whole writers are held out, of whom some wrote more than others.
        return {"training": "all others", "validation": f"at least {held:,}, of some writers all", "test": test}
    training = f"{entry.images[0] - held:,}" if entry else "all others"
    return {"training": training, "validation": f"{held:,}", "test": test}


ABOUT_DATA = {
    "mnist": "The digits were written in the United States around 1990, by employees of the Census Bureau and by "
    "pupils. Elsewhere people write some digits in another way: a 1 with a long upstroke, a 7 with a bar. Each image "
    "is one digit, light on dark, scaled to 20x20 pixels and centred by its mass in 28x28.",
    "fashion_mnist": "The images are an online shop's photographs of single articles before a plain background, light "
    "on dark, scaled to 28x28 pixels.",
    "kmnist": "The characters, ten of the cursive hiragana, are from classical Japanese books. Each image "
    "is one character, light on dark, scaled to 28x28 pixels.",
    "digits": "Few people wrote the digits, and the same people wrote those for training and those for the test, so "
    "that the digits of others are recognised less often. The images had 8x8 pixels, and were enlarged to 20x20 and "
    "centred by their mass in 28x28.",
    OWN: "The images are the author's own. What they show, and whom, is not recorded here. Each was made one of 28x28 "
    "grey pixels, light on dark.",
}
