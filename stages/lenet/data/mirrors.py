"""Published files: fetched from the first mirror that delivers them, and checked to be the published ones."""

import hashlib
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tqdm import tqdm

from lenet.data.catalog import CATALOG, Resource, Source
from lenet.errors import InputError, printable
from lenet.files import written_whole

CONNECT_SECONDS = 5
STALL_SECONDS = 10
STALL_BYTES = 100 * 1024
"""Less than this in STALL_SECONDS counts as a stalled transfer, unless it completes the file."""


class _Stream(Protocol):
    def read1(self, size: int, /) -> bytes: ...


class _MirrorError(Exception):
    """A mirror failed; the message is the cause in a few words."""


def is_published(path: Path, resource: Resource) -> bool:
    """Whether a file exists and is, byte for byte, the published one."""
    if not path.is_file() or path.stat().st_size != resource.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == resource.sha256


def fetch_all(source: Source, own: str, kept: Path, output: Path) -> dict[str, bytes]:
    """The files of a source that are not yet in `output`, name -> content, all checked.

    Parameters
    ----------
    own : str
        A mirror that is tried before the public ones, a folder or a file:, http: or https: URL; may be empty.
    kept : Path
        A folder that keeps what was downloaded.
    output : Path
        Where the files are to go; it is not changed.

    Raises
    ------
    InputError
        `own` is another kind of URL, or no mirror delivered a file; the message gives the cause for each.
    """
    try:
        known = "://" not in own or urlsplit(own).scheme in ("file", "http", "https")
    except ValueError:
        known = False
    if not known:
        raise InputError(f"{source.variable} is {own!r}; it must be a folder or a file:, http: or https: URL")
    order = [own, *source.mirrors] if own else [*source.mirrors]
    missing = [resource for resource in source.files if not is_published(output / resource.name, resource)]
    for resource in missing:
        if not is_published(kept / resource.name, resource):
            _fetch(source, resource, order, kept / resource.name)
    return {resource.name: (kept / resource.name).read_bytes() for resource in missing}


def _fetch(source: Source, resource: Resource, order: list[str], path: Path) -> None:
    """Write one published file to `path`, from the first mirror of `order` that delivers it.

    It prints a line for each mirror that failed, and one with the rate at the end. A terminal shows a progress bar. A
    public mirror that fails is moved to the end of `order`, so that the next file is not delayed by it too.
    """
    causes = []
    for mirror in order.copy():
        try:
            started = time.monotonic()
            _fetch_from(mirror, resource, path)
        except _MirrorError as cause:
            causes.append(printable(f"{_shown(mirror)}: {cause}"))
            if mirror in source.mirrors:
                order.append(order.pop(order.index(mirror)))
            print(f"warning: {resource.name}: {causes[-1]}", file=sys.stderr)
        else:
            rate = resource.size / (time.monotonic() - started)
            print(f"{resource.name}: {resource.size / 1e6:.2f} MB from {_shown(mirror)} ({rate / 1e6:.1f} MB/s)")
            return
    raise InputError(
        f"no mirror delivered {resource.name}: {'; '.join(causes)}. Set {source.variable} to a folder or URL with "
        f"{source.title}'s .gz files, or run `make demo`, which needs no network"
    )


def _fetch_from(mirror: str, resource: Resource, path: Path) -> None:
    bar = tqdm(
        total=resource.size, desc=resource.name, unit="B", unit_scale=True, leave=False, disable=not sys.stderr.isatty()
    )
    # All data sets have files of the same names. One that is longer is read on, to say whose it is.
    alike = [
        (other, source.title)
        for entry in CATALOG.values()
        for source in entry.sources
        for other in source.files
        if other.name == resource.name
    ]
    titles, longest = {other.sha256: title for other, title in alike}, max(other.size for other, _ in alike)
    digest, received = hashlib.sha256(), 0
    with bar, written_whole(path) as file:
        for chunk in _chunks(mirror, resource.name):
            if not received and not b"\x1f\x8b".startswith(chunk[:2]):
                raise _MirrorError(f"not a gzip file: it begins with {chunk[:16]!r}")
            received += len(chunk)
            if received > longest:
                break
            digest.update(chunk)
            file.write(chunk)
            bar.update(len(chunk))
        found = digest.hexdigest()
        if received == resource.size and found == resource.sha256:
            return
        if found in titles:
            raise _MirrorError(f"the file of another data set, {titles[found]}")
        if received > resource.size:
            raise _MirrorError(f"more than the {resource.size} bytes of the published file")
        if received < resource.size:
            raise _MirrorError(f"truncated: {received} of {resource.size} bytes")
        raise _MirrorError(f"wrong checksum: SHA-256 {found[:12]}..., not {resource.sha256[:12]}...")


def _chunks(mirror: str, name: str) -> Iterator[bytes]:
    """Yield the bytes of one file of a mirror as they arrive; whatever fails there is raised as `_MirrorError`.

    The bytes are read in a thread, because a server that sends a byte now and then, even within its headers, resets
    every time-out of the HTTP libraries. A stalled transfer is left to its thread, which ends with the program.
    """
    arrived: queue.Queue[bytes | _MirrorError] = queue.Queue(maxsize=64)

    def read() -> None:
        try:
            with _open(mirror, name) as source:
                while chunk := source.read1(2**16):
                    arrived.put(chunk)
            arrived.put(b"")
        except _MirrorError as error:
            arrived.put(error)
        except Exception as error:  # The main thread waits for this one, and has to learn of any failure.
            arrived.put(_MirrorError(_cause(error)))

    threading.Thread(target=read, daemon=True).start()
    received, mark, deadline = 0, 0, time.monotonic() + STALL_SECONDS
    while True:
        try:
            item = arrived.get(timeout=max(0, deadline - time.monotonic()))
        except queue.Empty:
            raise _MirrorError(f"stalled: {received - mark} bytes in {STALL_SECONDS} s") from None
        if isinstance(item, _MirrorError):
            raise item
        if not item:
            return
        received += len(item)
        yield item
        if received - mark >= STALL_BYTES:
            mark, deadline = received, time.monotonic() + STALL_SECONDS


@contextmanager
def _open(mirror: str, name: str) -> Iterator[_Stream]:
    scheme = urlsplit(mirror).scheme
    if scheme in ("http", "https"):
        import requests

        with requests.get(
            f"{mirror.rstrip('/')}/{name}",
            stream=True,
            timeout=(CONNECT_SECONDS, STALL_SECONDS),
            headers={"Accept-Encoding": "identity"},
        ) as response:
            if response.status_code != 200:
                raise _MirrorError(f"{response.status_code} {response.reason}")
            # The raw stream, because requests would unpack a .gz file that a server labels Content-Encoding: gzip.
            yield response.raw
    else:
        folder = Path(url2pathname(urlsplit(mirror).path)) if scheme == "file" else Path(mirror).expanduser()
        with (folder / name).open("rb") as file:
            yield file


def _shown(mirror: str) -> str:
    """A mirror's name for messages, without a user name and password."""
    parts = urlsplit(mirror)
    host = parts.netloc.rpartition("@")[2]
    return printable(parts._replace(netloc=host).geturl() if parts.netloc else mirror)


def _cause(error: BaseException) -> str:
    """The cause of a failed transfer in a few words; each HTTP library wraps the error of the one below it."""
    import http.client

    import requests
    import urllib3.exceptions

    layers = [error]
    while inner := layers[-1].__cause__ or layers[-1].__context__:
        layers.append(inner)
    for layer in layers:
        match layer:
            case requests.exceptions.ProxyError():
                return f"the proxy set in the environment failed: {layers[-1]}"
            case urllib3.exceptions.NameResolutionError():
                return "host name not found"
            case requests.ConnectTimeout():
                return f"no connection within {CONNECT_SECONDS} s"
            case requests.ReadTimeout() | urllib3.exceptions.ReadTimeoutError():
                return f"stalled: no data for {STALL_SECONDS} s"
            case urllib3.exceptions.IncompleteRead() | http.client.IncompleteRead():
                return "truncated: the connection was closed early"
    innermost = layers[-1]
    return innermost.strerror if isinstance(innermost, OSError) and innermost.strerror else str(innermost)
