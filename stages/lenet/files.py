"""Files that appear whole or not at all, and the text formats of metrics and tables."""

import csv
import glob
import io
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lenet.errors import InputError

if TYPE_CHECKING:
    import pandas


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing bytes; it appears as `path` only if the block ends without an error.

    The parent folder is created if needed. The bytes go to a hidden file beside `path` (so that the rename is atomic),
    which is removed if the block fails. What killed programs left there is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        for left in leftovers(path.parent, glob.escape(path.name)):
            left.unlink(missing_ok=True)
        with aside.open("wb") as file:
            yield file
        aside.replace(path)
    except OSError as error:
        # With the name that the user knows.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        aside.unlink(missing_ok=True)


def leftovers(folder: Path, pattern: str) -> Iterator[Path]:
    """The hidden files left by killed programs that were writing files whose names match the glob pattern."""
    for path in folder.glob(f".{pattern}.*.part"):
        writer = path.name.split(".")[-2]
        try:
            os.kill(int(writer), 0)
        except ProcessLookupError:
            yield path
        except (OSError, ValueError, OverflowError):
            continue  # Another user's program, or not one of these files.


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with written_whole(path) as file:
        file.write(content)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object, one key per line, so that Git shows what changed."""
    write_bytes(path, json.dumps(values, indent=2, allow_nan=False).encode() + b"\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table: floats with six significant digits, more than any of them warrants, and NaN as an empty field."""

    def text(value: object) -> str:
        if isinstance(value, float):
            return "" if math.isnan(value) else f"{value:.6g}"
        return str(value)

    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerows([columns, *(map(text, row) for row in rows)])
    write_bytes(path, lines.getvalue().encode())


def read_csv(path: Path, columns: dict[str, str]) -> "pandas.DataFrame":
    """Read a table as `parse_csv` does; its errors name the file.

    Raises
    ------
    InputError
        The file is not such a table.
    """
    try:
        return parse_csv(path.read_bytes(), columns)
    except InputError as error:
        raise InputError(f"{path}: {error}; `dvc repro` writes it again") from None


def parse_csv(text: bytes, columns: dict[str, str]) -> "pandas.DataFrame":
    """Parse a table with exactly these columns, name -> dtype. An empty field in a float column is NaN.

    Raises
    ------
    InputError
        The text is not CSV, has other columns, has no rows, or a field is not of the column's type.
    """
    import pandas

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What numpy warns of becomes an error below.
            # Of the texts that pandas takes for a missing number, any may be a class's name.
            table = pandas.read_csv(
                io.BytesIO(text),
                dtype=columns,
                keep_default_na=False,
                na_values={name: [""] for name, dtype in columns.items() if dtype.startswith("float")},
            )
    except (ValueError, OverflowError) as error:  # pandas' own parser errors and bad UTF-8 are ValueErrors too.
        raise InputError(f"not a valid table: {error}") from None
    # If a row has more fields than the header, pandas takes the first ones for an index.
    if list(table.columns) != list(columns) or not isinstance(table.index, pandas.RangeIndex):
        raise InputError(f"its columns must be {','.join(columns)}")
    if table.empty:
        raise InputError("has no rows")
    return table
