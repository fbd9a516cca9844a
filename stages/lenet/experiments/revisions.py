"""The results of any revision that Git or DVC has, read without touching the workspace."""

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pandas

from lenet.errors import InputError
from lenet.experiments.git import content, git
from lenet.experiments.presets import Values
from lenet.files import parse_csv
from lenet.params import parse_yaml

WORKSPACE = "workspace"
TEST_SET = "data/processed/test.pt"


class Revision(NamedTuple):
    """A commit, under the name that the user gave it; None is the workspace."""

    name: str
    commit: str | None

    def read(self, path: str) -> bytes | None:
        """The content of a file that Git has, or that is in the workspace; None if there is none."""
        if self.commit is None:
            return Path(path).read_bytes() if Path(path).is_file() else None
        return content(self.commit, path)


class Result(NamedTuple):
    """What a run of the pipeline left in a revision.

    Attributes
    ----------
    params : dict
        All of params.yaml: section -> key -> value.
    metrics : dict
        name -> value, of metrics/test.json and metrics/train.json.
    per_class : dict
        class -> accuracy.
    predictions : pandas.DataFrame
        Of each test image `actual` and `predicted`, the classes' names, and `probability`.
    outputs : dict
        path -> MD5, the outputs that dvc.lock lists.
    test_set : str or None
        The MD5 of the test set that the stage evaluate read; None if dvc.lock does not say.
    """

    revision: Revision
    params: Values
    metrics: dict[str, float]
    per_class: dict[str, float]
    predictions: pandas.DataFrame
    outputs: dict[str, str]
    test_set: str | None

    @property
    def name(self) -> str:
        return self.revision.name


def resolve(name: str) -> list[Revision]:
    """The revision of that name: the workspace, anything that Git knows, or an experiment of DVC's.

    A name that is none of these may be that of `lenet seeds` or `lenet zoo`, for all of whose runs it stands:
    `tanh` for `tanh-seed0`, `tanh-seed1`, ... So does a pattern such as `tanh-seed[0-4]`. If several commits have
    experiments of that name, those of the current commit count, and without any those that were made last.

    Raises
    ------
    InputError
        There is none.
    """
    if name == WORKSPACE:
        return [Revision(name, None)]
    found = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if found.returncode == 0:
        return [Revision(name, found.stdout.strip())]
    experiments = _experiments()
    for pattern in (name, f"{name}-seed*"):
        for of_commit in experiments:
            if runs := [run for run in of_commit if fnmatchcase(run, pattern)]:
                return [Revision(run, of_commit[run]) for run in sorted(runs, key=_by_number)]
    raise InputError(
        f"{name} is neither a revision of Git's nor an experiment with results; `dvc exp show -A` lists both"
    )


def resolve_all(names: Sequence[str]) -> list[Revision]:
    """The revisions of these names; of several names for one commit, the first counts."""
    found: dict[str | None, Revision] = {}
    for revision in (revision for name in names for revision in resolve(name)):
        found.setdefault(revision.commit, revision)
    return [*found.values()]


def _experiments() -> list[dict[str, str]]:
    """The experiments that DVC has recorded, name -> commit: those of the current commit, then the latest first."""
    listed = git("for-each-ref", "--sort=-committerdate", "--format=%(refname) %(objectname)", "refs/exps/")
    head = git("rev-parse", "--verify", "--quiet", "HEAD").stdout.strip()
    found: dict[str, dict[str, str]] = {head: {}}
    for line in listed.stdout.splitlines():
        reference, commit = line.split()
        # refs/exps/12/34567.../name: the experiments of commit 1234567...; others are DVC's own.
        match reference.split("/")[2:]:
            case [start, rest, name] if len(start) == 2:
                found.setdefault(start + rest, {})[name] = commit
    return list(found.values())


def _by_number(name: str) -> tuple[str, int]:
    """Sort seed2 before seed10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)


def load(revision: Revision) -> Result:
    """Read a revision's results.

    Raises
    ------
    InputError
        It has none, they were made with other parameters than those in its params.yaml, or they have another layout
        than this version of the pipeline gives them.
    """

    def needed(path: str) -> bytes:
        found = revision.read(path)
        if found is None:
            raise InputError(f"{revision.name} has no results: it has no {path}")
        return found

    files = {path: needed(path) for path in _FILES}
    try:
        values, lock = (_mapping(parse_yaml(files[path], path)) for path in _FILES[:2])
        train, test, per_class = (_mapping(json.loads(files[path])) for path in _FILES[2:5])
        stages = lock["stages"]
        predictions = parse_csv(files[_FILES[-1]], {"actual": "str", "predicted": "str", "probability": "float64"})
        outputs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ())}
        read = {dep["path"]: dep["md5"] for dep in stages["evaluate"]["deps"]}
        result = Result(revision, values, train | test, per_class, predictions, outputs, read.get(TEST_SET))
        changed = _changed(values, stages)
        numbers = [values["train"]["seed"], values["train"]["epochs"], *result.metrics.values(), *per_class.values()]
        fits = (
            {"accuracy", "loss", "parameters"} <= result.metrics.keys()
            and {"dataset"} <= values["data"].keys()
            and {"model", "preprocess"} <= values.keys()
            and all(isinstance(number, int | float) for number in numbers)
        )
    except (InputError, ValueError, KeyError, TypeError, AttributeError):
        fits = False
    if not fits or {*predictions["actual"], *predictions["predicted"]} - per_class.keys():
        raise InputError(
            f"{revision.name}: its results have another layout than those of this version of the pipeline; "
            "they cannot be read"
        )
    if changed:
        raise InputError(
            f"{revision.name}: its results were made with another value of {', '.join(changed)} than params.yaml has; "
            "run `dvc repro`"
        )
    return result


def _changed(values: Values, stages: dict[str, Any]) -> list[str]:
    """The parameters whose values are not those with which, according to dvc.lock, the stages have run.

    Those of the stage plot change no result.
    """
    found = []
    for stage in (stage for name, stage in stages.items() if name != "plot"):
        for name, used in stage.get("params", {}).get("params.yaml", {}).items():
            section, dot, key = name.partition(".")
            for each, value in ({key: used} if dot else used).items():
                if values.get(section, {}).get(each) != value:
                    found.append(f"{section}.{each}")
    return list(dict.fromkeys(found))


_FILES = (
    *("params.yaml", "dvc.lock", "metrics/train.json", "metrics/test.json", "metrics/per_class.json"),
    "plots/predictions.csv",
)


def _mapping(values: Any) -> dict[str, Any]:
    return {str(key): value for key, value in values.items()}
