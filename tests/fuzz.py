"""Fuzz the readers of files: `python tests/fuzz.py --mutations 10000 --examples 1000 --seed 0`.

Valid files of each binary format are mutated, and hypothesis generates each text format. A reader must return or raise
`InputError`: without another exception, running or writing anything, taking more than ten seconds or 1 GB of memory.
The files of cases that fail are kept, and the exit status is 1.

A case is a function of the seed, its format and its number: a longer run begins with the cases of a shorter one.
"""

import faulthandler
import gzip
import io
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import hypothesis
import numpy as np
import torch
import typer
from conftest import DEFAULTS, ROOT
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image

from lenet.data import digits
from lenet.data.idx import read_labelled_images, to_bytes
from lenet.data.info import DIGITS, read_info
from lenet.data.own import read_folder
from lenet.data.tensors import load_dataset, save_dataset, to_tensors
from lenet.data.writers import FILE, read_writers
from lenet.errors import InputError
from lenet.experiments import verify
from lenet.experiments.presets import load_preset
from lenet.files import read_csv
from lenet.network.backend import predict
from lenet.network.lenet import build
from lenet.network.saved import load_model, save_model
from lenet.params import Params, load_params, parse_yaml
from lenet.training import checkpoints

SECONDS, MEMORY = 10, 2**30
INTERESTING = [0, 1, 2, 9, 10, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
FORBIDDEN = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "os.remove"}
FORBIDDEN |= {"os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree", "shutil.copyfile", "ctypes.dlopen"}


class Format(NamedTuple):
    """A binary format: its file, a valid content, how a mutated content is wrapped before it is written, its reader."""

    path: Path
    content: bytes
    wrap: Callable[[bytes], bytes]
    read: Callable[[], object]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A copy with one to four changes of the kinds that break parsers."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        # Headers are short, and matter most.
        at = at if rng.random() < 0.5 else min(at, rng.randrange(64))
        size = min(rng.choice([1, 2, 4, 8, 64, 1024]), len(data) - at)
        match rng.randrange(8):
            case 0 if size:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + size] = rng.randbytes(size)
            case 2:
                number = rng.choice(INTERESTING)
                width = rng.choice([width for width in (1, 2, 4, 8) if number < 256**width])
                data[at : at + width] = number.to_bytes(width, rng.choice(["little", "big"]))
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size] * rng.choice([1, 2, 100])
            case 5:
                data[at:at] = rng.randbytes(size)
            case 6:
                del data[at:]
            case _:
                other = rng.randrange(len(data) + 1)
                data[at : at + size] = data[other : other + size]
    return bytes(data)


def with_pickle(archive: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """The pickle inside a .pt file, and a function that makes a valid archive with another one in its place."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    [name] = [name for name in parts if name.endswith("/data.pkl")]

    def wrap(program: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for part, content in parts.items():
                file.writestr(part, program if part == name else content)
        return buffer.getvalue()

    return parts[name], wrap


def formats(folder: Path) -> dict[str, Format]:
    """The binary formats, with files of only a few digits, so that a mutation is likely to hit what matters."""
    raw = folder / "raw"
    raw.mkdir()
    for name, content in digits.idx_files().items():
        (raw / name).write_bytes(content)
    images, labels = (array[:50] for array in read_labelled_images(raw, "train", DIGITS))
    paths = {kind: raw / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")}
    for path, array in zip(paths.values(), (images, labels), strict=True):
        path.write_bytes(to_bytes(array))
    writers = np.zeros((50, 8), ">i4")
    writers[:, 0] = labels
    (raw / FILE).write_bytes(gzip.compress(b"\0\0\x0c\x02" + struct.pack(">2I", 50, 8) + writers.tobytes()))
    own = folder / "own"
    for number, image in enumerate(images[:4]):
        path = own / f"class {number % 2}" / ("a.png" if number < 2 else "b.jpeg")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    data, model, state = folder / "training.pt", folder / "lenet.pt", folder / "state.checkpoint"
    dataset = to_tensors(images, labels)
    save_dataset(data, dataset)
    options = DEFAULTS.model
    save_model(model, options, DIGITS, build(options))
    checkpoints.save(state, {"epoch": 1, "rows": torch.zeros(1, 6), "network": build(options).state_dict()})

    whole = state.read_bytes()

    def read_model() -> None:
        network, _ = load_model(model)
        predict(network, dataset.images, 50)

    def read_state() -> None:
        with redirect_stderr(io.StringIO()):
            used = checkpoints.load(state)
        if used is None:
            raise InputError("reported as damaged")
        if state.read_bytes() != whole:
            raise AssertionError("a damaged checkpoint would be used")

    def as_is(content: bytes) -> bytes:
        return content

    def packed(content: bytes) -> bytes:
        return gzip.compress(content, 1)

    found = {}
    readers: dict[str, tuple[Path, Callable[[], object]]] = {
        **{kind: (path, lambda: read_labelled_images(raw, "train", DIGITS)) for kind, path in paths.items()},
        "writers": (raw / FILE, lambda: read_writers(raw, labels)),
    }
    for kind, (path, read) in readers.items():
        for name, content, wrap in (
            ("gzip", path.read_bytes(), as_is),
            ("IDX", gzip.decompress(path.read_bytes()), packed),
        ):
            found[f"{name} {kind}"] = Format(path, content, wrap, read)
    for name, file in (("PNG", "a.png"), ("JPEG", "b.jpeg")):
        path = own / "class 0" / file
        found[name] = Format(path, path.read_bytes(), as_is, lambda: read_folder(own, "mnist"))
    readers = {"data": (data, lambda: load_dataset(data, 10)), "model": (model, read_model)}
    for name, (path, read) in readers.items():
        found[f"{name} .pt"] = Format(path, path.read_bytes(), as_is, read)
        found[f"pickle in {name} .pt"] = Format(path, *with_pickle(path.read_bytes()), read)
    found["checkpoint"] = Format(state, state.read_bytes(), as_is, read_state)
    return found


def documents() -> st.SearchStrategy[Any]:
    """Nested values of JSON and YAML, with the keys and some values that the readers know."""
    known = [*Params.model_fields]
    known += [key for section in Params.model_json_schema()["$defs"].values() for key in section["properties"]]
    keys = st.sampled_from([*known, "claimed", "stages", "outs", "deps", "path", "md5", "environment"]) | st.text()
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["mnist", "lenet"])
    return st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=20)


def infos() -> st.SearchStrategy[bytes]:
    """dataset.json, with the right keys and values of the right types, and other JSON."""
    fraction = st.floats(0, 1) | st.floats()
    classes = st.lists(st.sampled_from("abcdef"), unique=True) | st.lists(st.text())
    known = {"name": st.text(), "title": st.text(), "classes": classes, "mean": fraction, "std": fraction}
    return (st.fixed_dictionaries(known) | documents()).map(lambda value: json.dumps(value).encode()) | st.binary()


def yamls() -> st.SearchStrategy[bytes]:
    """Valid and invalid YAML, and the real parameters with a line replaced."""
    real = (ROOT / "params.yaml").read_text().splitlines()
    odd = [
        "&a [*a]",
        "!!python/object/apply:os.system ['touch pwned']",
        "!!binary x",
        "? {a: b}",
        "<<: *x",
        "%YAML 9.9",
    ]
    line = st.text(max_size=40) | st.sampled_from(odd)

    def spliced(at: int, drop: int, text: str) -> bytes:
        return "\n".join([*real[:at], text, *real[at + drop :]]).encode(errors="surrogatepass")

    return st.one_of(
        documents().map(lambda value: json.dumps(value).encode()),
        st.binary(),
        st.text().map(lambda text: text.encode(errors="surrogatepass")),
        st.builds(spliced, st.integers(0, len(real)), st.integers(0, 3), line),
        st.integers(1, 400).map(lambda depth: b"[" * depth),
        st.integers(1, 40).map(lambda n: "\n".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]" for i in range(n)).encode()),
    )


def tables(header: str) -> st.SearchStrategy[bytes]:
    """CSV with this or another header, and rows of any length with any fields."""
    field = (
        st.integers().map(str) | st.floats().map(str) | st.text(max_size=10) | st.sampled_from(['"', "", "9" * 5000])
    )
    rows = st.lists(st.lists(field, max_size=8).map(",".join), max_size=8)
    headers = st.sampled_from([header, header.upper(), header + ",more", ""]) | st.text()
    text = st.builds(lambda first, others: "\n".join([first, *others]).encode(errors="surrogatepass"), headers, rows)
    return text | st.binary()


def texts(folder: Path) -> dict[str, tuple[Path, st.SearchStrategy[bytes], Callable[[], object]]]:
    """The text formats: file, strategy, reader."""
    floats = ["train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "learning_rate"]
    history = {"epoch": "int64"} | dict.fromkeys(floats, "float64")
    predictions = {"actual": "str", "predicted": "str", "probability": "float64"}
    csv = folder / "table.csv"
    (folder / "presets").mkdir()
    record = json.dumps({"environment": {}, "outputs": {}}).encode()
    return {
        "params.yaml": (folder / "params.yaml", yamls(), lambda: load_params(folder / "params.yaml")),
        "--set": (folder / "set", yamls(), lambda: parse_yaml((folder / "set").read_bytes(), "--set")),
        "preset": (folder / "presets/a.yaml", yamls(), lambda: load_preset("a")),
        "dataset.json": (folder / "dataset.json", infos(), lambda: read_info(folder / "dataset.json")),
        "dvc.lock": (folder / "dvc.lock", yamls(), lambda: verify.outputs(folder)),
        "environment.lock": (
            folder / "environment.lock",
            documents().map(lambda value: json.dumps(value).encode()) | st.binary() | st.just(record),
            lambda: verify.environment_changes({}),
        ),
        "training.csv": (csv, tables(",".join(history)), lambda: read_csv(csv, history)),
        "predictions.csv": (csv, tables(",".join(predictions)), lambda: read_csv(csv, predictions)),
    }


class Tally:
    """The cases of a format that were tried, and their failures."""

    def __init__(self) -> None:
        self.tried, self.accepted, self.slowest, self.failures = 0, 0, 0.0, list[str]()

    @contextmanager
    def case(self, label: str, path: Path, keep: Path) -> Iterator[None]:
        """Run one case, and record how it fails, if it does."""
        self.tried += 1
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
        started, before, failure = time.perf_counter(), peak(), ""
        watch.active = True
        try:
            yield
            self.accepted += 1
        except InputError:
            pass
        except Exception:
            failure = traceback.format_exc(limit=-2)
        watch.active = False
        seconds = time.perf_counter() - started
        faulthandler.cancel_dump_traceback_later()
        self.slowest = max(self.slowest, seconds)
        if watch.seen:
            failure += f"did what a reader must not do: {', '.join(watch.seen)}"
            watch.seen.clear()
        if seconds > SECONDS:
            failure += f"took {seconds:.0f} s"
        if peak() - before > MEMORY:
            failure += f"took {(peak() - before) / 2**20:.0f} MB"
        if failure:
            kept = keep / f"{label.replace(' ', '_')}-{self.tried}"
            shutil.copy(path, kept)
            self.failures.append(f"{kept}: {failure}")


def generated(
    name: str,
    path: Path,
    strategy: st.SearchStrategy[bytes],
    read: Callable[[], object],
    keep: Path,
    examples: int,
    seed: int,
) -> Tally:
    """Try what a strategy generates on a reader."""
    tally = Tally()

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        with tally.case(name, path, keep):
            read()

    checks = list(hypothesis.HealthCheck)
    settings = hypothesis.settings(max_examples=examples, database=None, deadline=None, suppress_health_check=checks)
    hypothesis.seed(seed)(settings(hypothesis.given(strategy)(attempt)))()
    return tally


class Watch:
    """Records the audit events that a reader must not cause."""

    def __init__(self) -> None:
        self.active, self.seen = False, list[str]()
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Record an event, unless it is one of reading or importing."""
        if self.active and (event in FORBIDDEN or (event == "open" and set(str(arguments[1])) & set("wax+"))):
            self.seen.append(f"{event} {arguments!r:.80}")


def peak() -> int:
    """The peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


watch = Watch()


def main(
    mutations: Annotated[int, typer.Option(help="Of each binary format.")] = 10000,
    examples: Annotated[int, typer.Option(help="Of each text format.")] = 1000,
    seed: int = 0,
) -> None:
    """Feed damaged files to every reader."""
    folder = Path(tempfile.mkdtemp(prefix="lenet-fuzz-"))
    keep = folder / "failures"
    keep.mkdir()
    torch.set_num_threads(1)
    tallies: dict[str, Tally] = {}
    base = peak()
    for name, (path, content, wrap, read) in formats(folder).items():
        tally = tallies[name] = Tally()
        for number in range(mutations):
            path.write_bytes(wrap(mutated(content, random.Random(f"{seed} {name} {number}"))))  # noqa: S311
            with tally.case(name, path, keep):
                read()
        path.write_bytes(wrap(content))
    os.chdir(folder)
    set_hypothesis_home_dir(folder)
    for name, (path, strategy, read) in texts(folder).items():
        tallies[name] = generated(name, path, strategy, read, keep, examples, seed)
    for name, tally in tallies.items():
        print(
            f"{name:25} {tally.tried:6} tried, {tally.accepted:6} accepted, {len(tally.failures):4} failures, "
            f"slowest {tally.slowest:.3f} s"
        )
    print(f"memory: {(peak() - base) / 2**20:.0f} MB more than at the start")
    failures = [failure for tally in tallies.values() for failure in tally.failures[:3]]
    print(*failures, sep="\n")
    if not failures:
        shutil.rmtree(folder)
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    typer.run(main)
