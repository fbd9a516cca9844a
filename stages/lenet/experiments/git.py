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
