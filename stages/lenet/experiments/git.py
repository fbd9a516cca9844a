"""Git, as far as the experiments need it."""

import io
import subprocess
from collections.abc import Sequence

from lenet.errors import InputError


def git(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run Git in the current folder, with a text as its input. The caller judges its exit status and output.

    Raises
    ------
    InputError
        Git is not installed.
    """
    try:
        return subprocess.run(["git", *arguments], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError("git is not installed or not on PATH; install it and run this again") from None


def content(commit: str, path: str) -> bytes | None:
    """The content of a file, whose path is relative to the current folder, in a commit; None if it has no such file."""
    shown = subprocess.run(["git", "cat-file", "blob", f"{commit}:./{path}"], capture_output=True, check=False)
    return None if shown.returncode else shown.stdout


def contents(objects: Sequence[str]) -> list[bytes | None]:
    """The contents of objects, such as `COMMIT:path` with a path from the repository's root; None where there is none.

    It is one process of Git's for all of them.
    """
    asked = "".join(f"{name}\n" for name in objects).encode()
    done = subprocess.run(["git", "cat-file", "--batch"], input=asked, capture_output=True, check=False)
    found: list[bytes | None] = []
    rest = io.BytesIO(done.stdout)
    for _ in objects:
        header = rest.readline().split()
        if len(header) == 3 and header[2].isdigit():  # Its hash, type and size.
            found.append(rest.read(int(header[2])))
            rest.read(1)
        else:
            found.append(None)
    return found
