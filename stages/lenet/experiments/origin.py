"""Where experiments come from and where they land: a commit in a Git repository, and Git references beside it.

DVC keeps a finished experiment as a commit with the reference `refs/exps/<baseline>/<name>`, whose baseline is the
commit that it was run on. So a repository that has the reference has the experiment, and nothing else needs to know.
"""

import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lenet.data.catalog import OWN
from lenet.errors import InputError
from lenet.experiments import dvc
from lenet.experiments.git import contents, git
from lenet.experiments.presets import Values
from lenet.params import parse_yaml

REMOTE = "origin"


class Origin(NamedTuple):
    """A commit, and the repository that has it, in which experiments land.

    Attributes
    ----------
    url : str
        The repository: a path, or an address that Git knows how to reach, without a password.
    commit : str
        The full hash.
    folder : str
        Of the project, from the repository's root, with a slash at its end; empty if it is the root.
    cache : str or None
        This project's DVC cache, if experiments run beside it and share it; None if their data go to a DVC remote.
    """

    url: str
    commit: str
    folder: str
    cache: str | None

    def reference(self, name: str) -> str:
        """Git's reference of an experiment."""
        return f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{name}"

    def landed(self, name: str = "*") -> dict[str, str]:
        """The experiments that have landed, name -> commit: all, or the one of that name.

        Raises
        ------
        InputError
            The repository cannot be reached.
        """
        listed = git("ls-remote", "--quiet", self.url, self.reference(name))
        if listed.returncode:
            raise InputError(f"{self.url}: {_reason(listed)}")
        rows = [line.split("\t") for line in listed.stdout.splitlines()]
        return {reference.rpartition("/")[2]: commit for commit, reference in rows}

    def kept(self) -> dict[str, str]:
        """The experiments that this repository has, name -> commit."""
        return self._replace(url=git("rev-parse", "--show-toplevel").stdout.strip()).landed()

    def fetch(self, names: Iterable[str]) -> None:
        """Bring experiments into this repository, in place of those that have their names, for `dvc exp show`.

        Their data stay in DVC's remote.

        Raises
        ------
        InputError
            The repository cannot be reached.
        """
        references = "".join(f"+{self.reference(name)}:{self.reference(name)}\n" for name in names)
        if self.cache is None and references:
            options = ["--quiet", "--no-tags", "--no-write-fetch-head", "--stdin"]
            done = git("fetch", *options, self.url, text=references)
            if done.returncode:
                raise InputError(f"{self.url}: {_reason(done)}")


def here() -> Origin:
    """The last commit, in this repository.

    Raises
    ------
    InputError
        There is none, or what the stages read has changes that are not committed.
    """
    top, folder, commit = (git("rev-parse", what) for what in ("--show-toplevel", "--show-prefix", "HEAD"))
    if commit.returncode:
        raise InputError(f"this folder has no commit: {_reason(commit)}; run this in the project's root")
    _check_committed("dvc.yaml", "stages")
    cache = dvc.command("cache", "dir", capture=True).strip()
    return Origin(top.stdout.strip(), commit.stdout.strip(), folder.stdout.strip(), str(Path(cache).absolute()))


def remote() -> Origin:
    """The last commit, in the Git remote `origin`.

    Raises
    ------
    InputError
        There is no such remote or no DVC remote, or the Git remote does not have the commit.
    """
    local = here()
    # As it is configured, and not `git remote get-url`, which shows what the user's own settings make of it.
    url = git("config", f"remote.{REMOTE}.url").stdout.strip()
    if not url:
        raise InputError(
            f"a cluster's experiments land in the Git remote {REMOTE}: add it, `git remote add {REMOTE} URL`"
        )
    if re.match(r"https?://[^/]*@|\w+://[^/@]*:[^/]*@", url):
        raise InputError(
            f"the address of the Git remote {REMOTE} has a password or a token in it, which workers would be shown; "
            "leave it to a credential helper, `git help credentials`"
        )
    if not re.match(r"\w+://|[^/]+:", url):
        url = str(Path(local.url, url).resolve())
    if not dvc.command("config", "core.remote", capture=True, check=False).strip():
        raise InputError("a cluster's data are kept in a DVC remote: add one, `dvc remote add --default storage URL`")
    _check_committed(".dvc/config")
    fetched = git("fetch", "--quiet", "--prune", REMOTE)
    if fetched.returncode:
        raise InputError(f"{url}: {_reason(fetched)}")
    if not git("for-each-ref", "--contains", local.commit, f"refs/remotes/{REMOTE}").stdout:
        raise InputError(f"the Git remote {REMOTE} does not have the commit {local.commit[:7]}; run `git push`")
    return local._replace(url=url, cache=None)


def _check_committed(*paths: str) -> None:
    changed = git("status", "--porcelain", "--", *paths).stdout.splitlines()
    if changed:
        raise InputError(
            f"{changed[0][3:]} has changes that are not committed, and experiments are made from the last commit; "
            "commit them"
        )


class Finished(NamedTuple):
    """An experiment that has landed.

    Attributes
    ----------
    commit : str
        Its own.
    values : dict
        All of params.yaml.
    metrics : dict
        name -> value, of metrics/train.json and, unless it was not evaluated, metrics/test.json.
    same_code : bool
        Whether what its stages read is that of the commit that it is an experiment of.
    """

    commit: str
    values: Values
    metrics: dict[str, float]
    same_code: bool

    def is_of(self, values: Values) -> bool:
        """Whether an experiment with these parameters would be the same."""
        return self.same_code and self.values == values


def finished(origin: Origin, commits: Mapping[str, str]) -> dict[str, Finished]:
    """Read experiments that this repository has, name -> commit."""
    paths = [f"{origin.folder}{path}" for path in _FILES]
    asked = [f"{commit}:{path}" for commit in [origin.commit, *commits.values()] for path in paths]
    read = contents(asked)
    rows = [read[start : start + len(paths)] for start in range(0, len(read), len(paths))]
    code = rows[0][:2]
    found = {}
    for (name, commit), row in zip(commits.items(), rows[1:], strict=True):
        params, lock, *metrics = row[2:]
        values: Any = parse_yaml(params or b"", f"params.yaml of {name}") or {}
        numbers = {key: value for text in metrics if text for key, value in json.loads(text).items()}
        same = row[:2] == code and _same_images(values, lock or b"")
        found[name] = Finished(commit, dict(values), numbers, same)
    return found


_FILES = ("stages", "dvc.yaml", "params.yaml", "dvc.lock", "metrics/train.json", "metrics/test.json")


def _same_images(values: Values, lock: bytes) -> bool:
    """Whether a data set of one's own has the images that an experiment was made from."""
    own = values.get("data", {})
    if own.get("dataset") != OWN:
        return True
    stages: Any = parse_yaml(lock, "dvc.lock")
    read = {dep["path"]: dep["md5"] for dep in stages["stages"]["download"]["deps"]}
    return read.get(own["folder"]) == dvc.md5(Path(own["folder"]))


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    """The line in which Git says why it failed."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:"))]
    return (said or lines or ["git failed"])[0].removeprefix("fatal: ")
