"""Named experiments: partial parameter files in presets/, each what differs from params.yaml as it is committed."""

import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from lenet.errors import InputError
from lenet.params import Params, check, parse_yaml

FOLDER = Path("presets")
PARAMS = Path("params.yaml")

# section -> key -> value
Values = dict[str, dict[str, Any]]


class Preset(NamedTuple):
    """What a preset's file says.

    Attributes
    ----------
    claimed : float or None
        The test accuracy, a fraction of 1, that the document claims from which the settings are; None if it has none.
    changes : dict
        The parameters that differ from the committed ones.
    """

    claimed: float | None
    changes: Values


def names() -> list[str]:
    """The presets that there are, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """Read presets/NAME.yaml. Whether its parameters are valid shows when they are laid over others (`overlaid`).

    Raises
    ------
    InputError
        There is no such preset, or its file is not a mapping of sections.
    """
    if name not in names():
        known = ", ".join(names()) or "none here; run this in the project's root"
        raise InputError(f"{name} is no preset; known: {known}")
    path = FOLDER / f"{name}.yaml"
    values = parse_yaml(path.read_bytes(), str(path))
    if not isinstance(values, dict) or not all(isinstance(values[key], dict) for key in values.keys() - {"claimed"}):
        raise InputError(f"{path}: must be a mapping of sections, as params.yaml is, and may have a number `claimed`")
    claimed = values.pop("claimed", None)
    if claimed is not None and (type(claimed) is not float or not 0 < claimed < 1):
        raise InputError(f"{path}: claimed is {claimed!r}; it must be a test accuracy between 0 and 1")
    return Preset(claimed, values)


def workspace() -> Values:
    """The values of params.yaml, checked.

    They and those below stay as they are written, 0 where 0.0 is meant: to DVC's cache these are two values.
    """
    return _checked(parse_yaml(PARAMS.read_bytes(), str(PARAMS)), str(PARAMS))


def foundation() -> Values:
    """The values that a preset is laid over: params.yaml, but `model` and `train` as the last commit has them.

    An experiment that is in the workspace, `dvc exp run` leaves it there, must not be mixed into a preset.
    """
    source = f"{PARAMS} of the last commit"
    shown = subprocess.run(["git", "show", f"HEAD:./{PARAMS}"], capture_output=True, check=False)
    if shown.returncode:
        raise InputError(f"{source}: {shown.stderr.decode().strip()}; presets need a Git repository that has it")
    committed = _checked(parse_yaml(shown.stdout, source), source)
    return workspace() | {"model": committed["model"], "train": committed["train"]}


def _checked(values: Any, source: str) -> Values:
    check(Params, values, source)
    return dict(values)


def parse_settings(settings: list[str]) -> Values:
    """Turn `section.key=value` texts, their values in YAML, into section -> key -> value; a later one counts."""
    changes: Values = {}
    for text in settings:
        name, equals, value = text.partition("=")
        section, dot, key = name.partition(".")
        if not (equals and dot and section and key):
            raise InputError(f"--set {text}: must be SECTION.KEY=VALUE, train.epochs=1 for example")
        changes.setdefault(section, {})[key] = parse_yaml(value.encode(), f"--set {text}")
    return changes


def overlaid(values: Values, *layers: tuple[str, Values]) -> Values:
    """Lay changes over values, one layer after the other; `(source, changes)` each, the source named in errors.

    Raises
    ------
    InputError
        A layer has an unknown key or a value that is not allowed, alone or beside the others.
    """
    for _, changes in layers:
        values = {section: values.get(section, {}) | changes.get(section, {}) for section in values | changes}
    return _checked(values, " and ".join(source for source, changes in layers if changes))


def differences(values: Values, base: Values) -> Values:
    """What of `values` is not as in `base`, without sections that are the same."""
    changed = {
        section: {key: value for key, value in keys.items() if value != base[section][key]}
        for section, keys in values.items()
    }
    return {section: keys for section, keys in changed.items() if keys}
