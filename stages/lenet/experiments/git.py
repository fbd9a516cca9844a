"""Git, as far as the experiments need it."""

import subprocess

from lenet.errors import InputError


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Git in the current folder. The caller judges its exit status and output.

    Raises
    ------
    InputError
        Git is not installed.
    """
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError("git is not installed or not on PATH; install it and run this again") from None


def content(commit: str, path: str) -> bytes | None:
    """The content of a file, whose path is relative to the current folder, in a commit; None if it has no such file."""
    shown = subprocess.run(["git", "cat-file", "blob", f"{commit}:./{path}"], capture_output=True, check=False)
    return None if shown.returncode else shown.stdout
