"""Presets: named experiments, each a file in presets/ with the parameters that differ from the committed ones."""

from pathlib import Path
from typing import Any, NamedTuple

from lenet.data.catalog import find
from lenet.data.info import DIGITS
from lenet.errors import InputError
from lenet.experiments.git import git
from lenet.params import Params, check, parse_yaml

FOLDER = Path("presets")
PARAMS = Path("params.yaml")

# section -> key -> value
Values = dict[str, dict[str, Any]]


class Preset(NamedTuple):
    """The content of a preset's file.

    Attributes
    ----------
    about : str
        What it is, in one line.
    source : str
        Where its settings come from.
    claimed : float or None
        The test accuracy on MNIST claimed by the document that the preset was taken from, in [0, 1].
    changes : dict
        The parameters that differ from the committed ones.
    dataset : str
        The data set that it is for.
    """

    about: str
    source: str
    claimed: float | None
    changes: Values

    @property
    def dataset(self) -> str:
        named: str = self.changes.get("data", {}).get("dataset", "mnist")
        return named


def names() -> list[str]:
    """The names of all presets, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """Read presets/NAME.yaml. Its parameters are checked when they are laid over others (`overlaid`).

    Raises
    ------
    InputError
        There is no such preset, or its file does not have the form of one.
    """
    if name not in names():
        known = ", ".join(names()) or "none here; run this in the project's root"
        raise InputError(f"{name} is not a preset; known: {known}")
    path = FOLDER / f"{name}.yaml"
    values = parse_yaml(path.read_bytes(), str(path))
    match values:
        case {"about": str() as about, "source": str() as source, **others}:
            claimed = others.pop("claimed", None)
            changes = {str(section): keys for section, keys in others.items() if isinstance(keys, dict)}
        case _:
            raise InputError(f"{path}: must be a mapping that has the strings `about` and `source`")
    if len(changes) < len(others):
        raise InputError(f"{path}: besides about, source and claimed, only the sections of params.yaml are allowed")
    if claimed is not None and (type(claimed) is not float or not 0 < claimed < 1):
        raise InputError(f"{path}: claimed is {claimed!r}; it must be a test accuracy between 0 and 1")
    return Preset(about, source, claimed, changes)


def workspace() -> Values:
    """The values of params.yaml, checked.

    Values are kept as written, because DVC's cache treats 0 and 0.0 as different.
    """
    if not PARAMS.exists():
        raise InputError(f"{PARAMS}: no such file; run this in the project's root")
    return _checked(parse_yaml(PARAMS.read_bytes(), str(PARAMS)), str(PARAMS))


def foundation() -> Values:
    """The values that a preset is laid over: params.yaml, but `model` and `train` from the last commit.

    `dvc exp run` leaves its parameters in the workspace, and these must not be mixed into a preset.
    """
    last = committed()
    return workspace() | {"model": last["model"], "train": last["train"]}


def committed() -> Values:
    """The values of params.yaml in the last commit, checked."""
    source = f"{PARAMS} of the last commit"
    shown = git("show", f"HEAD:./{PARAMS}")
    if shown.returncode:
        raise InputError(f"{source}: {shown.stderr.strip()}; run this in the root of the project's Git repository")
    return _checked(parse_yaml(shown.stdout.encode(), source), source)


def _checked(values: Any, source: str) -> Values:
    find(check(Params, values, source).data.dataset, source)
    return dict(values)


def experiment_name(preset: str, values: Values) -> str:
    """The name of a preset's experiment: that of the preset or, on another data set than its own, DATASET-PRESET."""
    dataset = values["data"]["dataset"]
    return preset if dataset == load_preset(preset).dataset else f"{dataset}-{preset}"


def output_fits(values: Values) -> bool:
    """Whether the classes may be the digits, where the output layer is the paper's; of `own` they are not known yet."""
    entry = find(values["data"]["dataset"])
    return values["model"]["head"] != "rbf" or not entry or entry.info.classes == DIGITS


def parse_settings(settings: list[str]) -> Values:
    """Parse texts `section.key=value`, with values in YAML, into section -> key -> value; the last of a key counts."""
    changes: Values = {}
    for text in settings:
        name, equals, value = text.partition("=")
        section, dot, key = name.partition(".")
        if not (equals and dot and section and key):
            raise InputError(f"--set {text}: must be SECTION.KEY=VALUE, for example train.epochs=1")
        changes.setdefault(section, {})[key] = parse_yaml(value.encode(), f"--set {text}")
    return changes


def overlaid(values: Values, *layers: tuple[str, Values]) -> Values:
    """Lay changes over values, one layer after the other. A layer is `(source, changes)`; errors name the source.

    Raises
    ------
    InputError
        A layer has an unknown key or a value that is not allowed, by itself or beside the others.
    """
    for _, changes in layers:
        values = {section: values.get(section, {}) | changes.get(section, {}) for section in values | changes}
    return _checked(values, " and ".join(source for source, changes in layers if changes))


def flattened(values: Values) -> dict[str, Any]:
    """The values by their full names, section.key."""
    return {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}


def differences(values: Values, base: Values) -> Values:
    """The keys of `values` that differ from `base`; sections without any are left out."""
    changed = {
        section: {key: value for key, value in keys.items() if value != base[section].get(key)}
        for section, keys in values.items()
    }
    return {section: keys for section, keys in changed.items() if keys}
