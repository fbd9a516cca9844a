"""download: mirrors that misbehave, as real HTTP servers on loopback, folders, and files that exist already."""

import gzip
import hashlib
import http.server
import json
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    FILES,
    INFO,
    MNIST,
    ROOT,
    RunStage,
    assert_refused,
    needs_mnist,
    set_params,
    set_source,
    sh,
    slow_except,
    tree,
)
from numpy.typing import NDArray

from lenet.data import mirrors
from lenet.data.catalog import Resource
from lenet.data.idx import read_labelled_images
from lenet.data.info import DIGITS, read_info

NAMES = [resource.name for resource in FILES]
# Stand-ins for the published files, so that these tests do not need them: random, and longer than one read.
CONTENT = {name: gzip.compress(bytes(hashlib.shake_256(name.encode()).digest(200_000)), mtime=0) for name in NAMES}


class Server(http.server.ThreadingHTTPServer):
    """Serves /BEHAVIOUR/NAME; `requested` lists the paths in order."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requested: list[str] = []
        self.stopping = threading.Event()

    def url(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{behaviour}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        _, behaviour, name = self.path.replace("%20", " ").split("/")
        content = CONTENT[name]
        match behaviour:
            case "403" | "404" | "503":
                self.send_error(int(behaviour))
            case "good":
                self.reply(content)
            case "labelled":
                self.reply(content, {"Content-Encoding": "gzip"})
            case "moved":
                self.send_response(302)
                self.send_header("Location", f"/good/{name}")
                self.end_headers()
            case "truncated":
                self.reply(content[: len(content) // 2], length=len(content))
            case "short":
                self.reply(content[: len(content) // 2])
            case "long":
                self.reply(content + b"more")
            case "endless":
                self.send_response(200)
                self.end_headers()
                while not self.server.stopping.is_set():
                    self.wfile.write(content)
            case "html":
                self.reply(b"<!DOCTYPE html><title>Log in</title>", {"Content-Type": "text/html"})
            case "wrong":
                self.reply(content[:-1] + b"x")
            case "stall":
                self.reply(content[:1000], length=len(content))
                self.server.stopping.wait(30)
            case "trickle":
                self.reply(b"", length=len(content))
                while not self.server.stopping.wait(0.1):
                    self.wfile.write(content[:10])
            case "silent":
                self.server.stopping.wait(30)
            case "drip":
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
                while not self.server.stopping.wait(0.1):
                    self.wfile.write(b".")
            case "redirect drip":
                self.wfile.write(f"HTTP/1.0 302 Found\r\nLocation: /good/{name}\r\n\r\n".encode())
                while not self.server.stopping.wait(0.1):
                    self.wfile.write(b".")
            case "loop":
                self.send_response(302)
                self.send_header("Location", self.path)
                self.end_headers()
            case "chunked":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n" + content[:1000])

    def reply(self, content: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(200)
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.stopping.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with params.yaml; the published files are the stand-ins, and a second without data is a stall."""
    files = tuple(Resource(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items())
    set_source(monkeypatch, files=files, mirrors=())
    monkeypatch.setattr(mirrors, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(mirrors, "STALL_SECONDS", 1)
    monkeypatch.delenv("MNIST_MIRROR", raising=False)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def assert_complete(project: Path) -> None:
    found = {path.name: path.read_bytes() for path in (project / "data/raw").iterdir()}
    about = {"name": "mnist", "title": "MNIST", "classes": list("0123456789"), "mean": 0.1307, "std": 0.3081}
    assert json.loads(found.pop("dataset.json")) == about
    assert found == CONTENT


BAD = {
    "403": "403 Forbidden",
    "404": "404 Not Found",
    "503": "503 Service Unavailable",
    "truncated": "truncated: the connection was closed early",
    "short": "truncated: ",
    "long": "more than the",
    "endless": "more than the",
    "html": "not a gzip file: it begins with b'<!DOCTYPE html><'",
    "wrong": "wrong checksum: SHA-256",
    "chunked": "truncated: ",
    "loop": "Exceeded 30 redirects.",
    "stall": "stalled: ",
    "trickle": "stalled: ",
    "silent": "stalled: ",
    "drip": "stalled: ",
    "redirect%20drip": "stalled: ",
}


@pytest.mark.parametrize("behaviour", slow_except(BAD, BAD.keys() - {"silent", "redirect%20drip"}))
def test_next_mirror_after_a_failure(
    stand_ins: Path, run_stage: RunStage, server: Server, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    set_source(monkeypatch, mirrors=(server.url(behaviour), server.url("good")))
    outcome = run_stage(stand_ins, "download")
    assert outcome.status == 0, outcome.error
    assert_complete(stand_ins)
    assert outcome.error.count("warning: ") == 1, "the mirror that failed comes last for the other files"
    assert outcome.error.startswith(f"warning: {NAMES[0]}: {server.url(behaviour)}: ")
    assert BAD[behaviour] in outcome.error
    assert set(server.requested[: -len(NAMES)]) == {f"/{behaviour}/{NAMES[0]}"}
    assert server.requested[-len(NAMES) :] == [f"/good/{name}" for name in NAMES]


@pytest.mark.parametrize("behaviour", ["labelled", "moved"])
def test_unusual_mirrors_that_deliver(
    stand_ins: Path, run_stage: RunStage, server: Server, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    monkeypatch.setenv("MNIST_MIRROR", server.url(behaviour) + "/")
    assert run_stage(stand_ins, "download").status == 0
    assert_complete(stand_ins)


def test_no_mirror_answers(
    stand_ins: Path, run_stage: RunStage, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{free.getsockname()[1]}/"
    set_source(monkeypatch, mirrors=(refused, server.url("403"), server.url("html"), server.url("stall")))
    monkeypatch.setenv("MNIST_MIRROR", "nowhere")
    outcome = run_stage(stand_ins, "download")
    assert outcome.status == 1
    *warnings, error = outcome.error.splitlines()
    assert len(warnings) == 5
    for words in (
        f"no mirror delivered {NAMES[0]}",
        "nowhere: No such file or directory",
        f"{refused}: Connection refused",
        f"{server.url('403')}: 403 Forbidden",
        f"{server.url('html')}: not a gzip file",
        f"{server.url('stall')}: stalled",
        "MNIST_MIRROR",
        "make demo",
    ):
        assert words in error
    assert not tree(stand_ins), "nothing is written"


def test_host_that_does_not_exist(stand_ins: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("MNIST_MIRROR", "http://mirror.invalid/")
    assert "http://mirror.invalid/: host name not found" in run_stage(stand_ins, "download").error


@pytest.mark.parametrize("mirror", ["ftp://127.0.0.1/", "http://[::1/", "s3://mnist"])
def test_mirror_of_an_unknown_kind(
    stand_ins: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setenv("MNIST_MIRROR", mirror)
    outcome = run_stage(stand_ins, "download")
    assert_refused(outcome, "MNIST_MIRROR", repr(mirror), "a folder or a file:, http: or https: URL")


def test_proxy_that_does_not_answer(stand_ins: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_MIRROR", "http://example.org/mnist")
    error = run_stage(stand_ins, "download").error
    assert "http://example.org/mnist: the proxy set in the environment failed: " in error


def test_no_password_is_printed(
    stand_ins: Path, run_stage: RunStage, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for behaviour in ("404", "good"):
        monkeypatch.setenv("MNIST_MIRROR", server.url(behaviour).replace("//", "//user:secret@"))
        outcome = run_stage(stand_ins, "download")
        assert "secret" not in outcome.output + outcome.error
        assert server.url(behaviour) in outcome.output + outcome.error


@pytest.mark.parametrize("at", ["data/raw", "data/downloads/mnist"])
def test_a_place_that_cannot_be_written(
    stand_ins: Path, run_stage: RunStage, server: Server, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The error blames the place, by the name that the user knows, and not the mirror."""
    monkeypatch.setenv("MNIST_MIRROR", server.url("good"))
    (stand_ins / at / NAMES[0]).mkdir(parents=True)
    words = f"{at}/{NAMES[0]}: Is a directory; a file belongs there: move the folder away"
    assert_refused(run_stage(stand_ins, "download"), words)
    shutil.rmtree(stand_ins / "data")
    (stand_ins / at).parent.mkdir(parents=True)
    (stand_ins / at).write_text("")
    words = f"{at}: File exists; a folder belongs there: move the file away"
    assert_refused(run_stage(stand_ins, "download"), words)
    kept = [f"data/downloads/mnist/{name}" for name in NAMES] if at == "data/raw" else []
    assert sorted(tree(stand_ins)) == sorted([at, *kept])


def test_good_files_are_not_downloaded_again(
    stand_ins: Path, run_stage: RunStage, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIST_MIRROR", server.url("good"))
    assert run_stage(stand_ins, "download").status == 0
    server.requested.clear()
    assert run_stage(stand_ins, "download").status == 0
    # DVC removes a stage's outputs before it runs.
    shutil.rmtree(stand_ins / "data/raw")
    assert run_stage(stand_ins, "download").status == 0
    shutil.rmtree(stand_ins / "data/downloads")
    assert run_stage(stand_ins, "download").status == 0
    assert server.requested == []
    # A file that is damaged in both places is downloaded, and no other.
    shutil.copytree(stand_ins / "data/raw", stand_ins / "data/downloads/mnist")
    for folder in ("raw", "downloads/mnist"):
        path = stand_ins / "data" / folder / NAMES[2]
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert run_stage(stand_ins, "download").status == 0
    assert server.requested == [f"/good/{NAMES[2]}"]
    assert_complete(stand_ins)


def test_an_interrupted_download_keeps_complete_files(
    stand_ins: Path, run_stage: RunStage, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stand_ins / "two"
    folder.mkdir()
    for name in NAMES[:2]:
        (folder / name).write_bytes(CONTENT[name])
    monkeypatch.setenv("MNIST_MIRROR", folder.as_uri())
    assert run_stage(stand_ins, "download").status == 1
    assert sorted(tree(stand_ins)) == sorted(f"data/downloads/mnist/{name}" for name in NAMES[:2])
    monkeypatch.setenv("MNIST_MIRROR", server.url("good"))
    assert run_stage(stand_ins, "download").status == 0
    assert server.requested == [f"/good/{name}" for name in NAMES[2:]]


@needs_mnist
@pytest.mark.parametrize("form", slow_except(["folder", "file", "http"], ["http"]))
def test_mnist_from_a_mirror(tmp_path: Path, form: str) -> None:
    """The real files, in a process of its own, and for http from a real server."""
    shutil.copy(ROOT / "params.yaml", tmp_path)

    def quiet(*arguments: object) -> http.server.SimpleHTTPRequestHandler:
        return http.server.SimpleHTTPRequestHandler(*arguments, directory=str(MNIST))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        places = {"folder": str(MNIST), "file": MNIST.as_uri(), "http": f"http://127.0.0.1:{server.server_port}"}
        text = sh(sys.executable, str(ROOT / "stages/download.py"), cwd=tmp_path, MNIST_MIRROR=places[form])
        server.shutdown()
        thread.join()
    assert all(f"{name}: " in text for name in NAMES)
    assert "%|" not in text, "no progress bar in a log"
    for name in NAMES:
        assert (tmp_path / "data/raw" / name).read_bytes() == (MNIST / name).read_bytes()
    assert read_info(tmp_path / "data/raw/dataset.json") == INFO


def test_progress_bar_on_a_terminal(
    stand_ins: Path, run_stage: RunStage, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIST_MIRROR", server.url("good"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    outcome = run_stage(stand_ins, "download")
    assert f"{NAMES[0]}: " in outcome.error
    assert "B/s" in outcome.error


def test_digits(tmp_path: Path, run_stage: RunStage) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, "data.dataset=digits")
    assert run_stage(tmp_path, "download").status == 0
    first = tree(tmp_path)
    assert sorted(first) == sorted(f"data/raw/{name}" for name in [*NAMES, "dataset.json"])
    assert run_stage(tmp_path, "download").status == 0
    assert tree(tmp_path) == first
    # Each digit is as frequent in one part as in the other, and full ink is 255.
    images, labels = read_labelled_images(tmp_path / "data/raw", "train", DIGITS)
    test_images, test_labels = read_labelled_images(tmp_path / "data/raw", "t10k", DIGITS)
    assert (images.shape, test_images.shape) == ((1437, 28, 28), (360, 28, 28))
    for digit in range(10):
        assert abs((labels == digit).mean() - (test_labels == digit).mean()) < 0.01
    assert images.max() == 255
    assert_centred(images)


@needs_mnist
def test_mnist_is_centred_like_digits() -> None:
    assert_centred(read_labelled_images(MNIST, "train", DIGITS)[0])


def assert_centred(images: NDArray[np.uint8]) -> None:
    """Each image's centre of mass is at pixel (14, 14), within half a pixel."""
    for axis in (1, 2):
        ink = images.sum(axis=axis, dtype=np.float64)
        assert abs(ink @ np.arange(28) / ink.sum(axis=1) - 14).max() < 0.52


def test_your_own_mirror_comes_before_the_public_ones(
    stand_ins: Path, run_stage: RunStage, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_source(monkeypatch, mirrors=(server.url("good"),))
    monkeypatch.setenv("MNIST_MIRROR", server.url("labelled"))
    assert run_stage(stand_ins, "download").status == 0
    assert server.requested == [f"/labelled/{name}" for name in NAMES]
    assert_complete(stand_ins)
