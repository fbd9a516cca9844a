"""Runs that are killed, stopped, out of disk or memory, or started twice: they cost minutes, not results."""

import errno
import fcntl
import gzip
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import pytest
import torch
from conftest import STAGES, RunStage, assert_refused, commit, set_params, sh, shared, slow_except, tree
from kill import kill, state

from lenet.data.tensors import Dataset
from lenet.files import write_bytes, written_whole
from lenet.training import checkpoints


class Running:
    """A program in a project, its output and errors read as they come."""

    def __init__(self, project: Path, *command: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=project,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.watchdog = threading.Timer(300, self.kill)
        self.watchdog.start()

    def until(self, words: str) -> str:
        """Read up to the line that has these words, and return what was read."""
        assert self.process.stdout is not None
        seen = ""
        for line in self.process.stdout:
            seen += line
            if words in line:
                return seen
        raise AssertionError(f"ended without: {words}\n{seen}")

    def end(self) -> tuple[int, str]:
        """Wait until it ends; return the exit status and what has not been read yet."""
        rest, _ = self.process.communicate()
        self.watchdog.cancel()
        return self.process.returncode, rest

    def kill(self) -> None:
        """Kill it and what it started, unless all of them have ended."""
        self.watchdog.cancel()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Start(Protocol):
    """The fixture `start`."""

    def __call__(self, project: Path, *command: str, **environment: str) -> Running: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """Start programs; those that are still running when the test ends are killed."""
    started = []

    def run(project: Path, *command: str, **environment: str) -> Running:
        started.append(Running(project, *command, **environment))
        return started[-1]

    yield run
    for program in started:
        program.kill()


TRAIN = [sys.executable, "stages/train.py"]


@pytest.mark.slow
def test_killed_at_random_moments(digits_project: Path) -> None:
    """`python tests/kill.py` kills more often."""
    assert kill(digits_project, kills=3, seed=1)["kills"] == 3


class Interrupted(NamedTuple):
    project: Path
    checkpoint: Path
    expected: dict[str, bytes]


@pytest.fixture(scope="module")
def killed(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of six epochs that was killed in its third, by SIGKILL, and beside it the same one finished."""

    def make(folder: Path) -> None:
        project = shutil.copytree(digits_run, folder / "project")
        set_params(project, "train.epochs=6")
        sh(*TRAIN, cwd=project)
        shutil.copytree(project, folder / "finished")
        training = Running(project, *TRAIN)
        training.until("epoch 2/6")
        training.process.kill()
        assert training.end()[0] == -signal.SIGKILL

    return shared(tmp_path_factory, "killed", make)


@pytest.fixture
def interrupted(killed: Path, tmp_path: Path) -> Interrupted:
    """A copy of the killed training for one test."""
    project = shutil.copytree(killed / "project", tmp_path / "project")
    [checkpoint] = (project / "models/checkpoints").glob("*.checkpoint")
    return Interrupted(project, checkpoint, tree(killed / "finished"))


def test_a_killed_training_is_resumed(interrupted: Interrupted) -> None:
    project, checkpoint, expected = interrupted
    # A program that was killed while it wrote leaves this.
    (project / f"plots/.training.csv.{dead_process()}.part").write_bytes(b"epo")
    text = sh(*TRAIN, cwd=project)
    assert "resuming after epoch 2 of 6" in text or "resuming after epoch 3 of 6" in text
    assert "epoch 2/6: " not in text
    assert tree(project) == expected
    assert not checkpoint.exists()


def dead_process() -> int:
    done = subprocess.Popen(["true"])
    done.wait()
    return done.pid


def interrupt(project: Path, run_stage: RunStage) -> Path:
    """Train until the model cannot be written, and return the checkpoint that is left."""
    model = project / "models/lenet.pt"
    model.unlink()
    model.mkdir()
    assert_refused(run_stage(project, "train"), "models/lenet.pt: Is a directory")
    model.rmdir()
    [checkpoint] = (project / "models/checkpoints").glob("*.checkpoint")
    return checkpoint


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_a_damaged_checkpoint_is_reported_and_not_used(digits_project: Path, run_stage: RunStage, damage: str) -> None:
    expected = tree(digits_project)
    checkpoint = interrupt(digits_project, run_stage)
    content = bytearray(checkpoint.read_bytes())
    match damage:
        case "flipped":
            content[len(content) // 2] ^= 1
        case "truncated":
            del content[-1:]
        case "empty":
            content.clear()
    checkpoint.write_bytes(content)
    outcome = run_stage(digits_project, "train")
    assert outcome.status == 0
    name = f"models/checkpoints/{checkpoint.name}"
    assert outcome.error == f"warning: {name} is damaged and not used; training starts from scratch\n"
    assert "epoch 1/2: " in outcome.output
    assert tree(digits_project) == expected


CHANGES = ["parameter", "data", "code", "environment"]


@pytest.mark.parametrize("change", slow_except(CHANGES, ["code", "environment"]))
def test_a_stale_checkpoint_is_not_used(
    interrupted: Interrupted, run_stage: RunStage, start: Start, change: str
) -> None:
    project, environment = interrupted.project, dict[str, str]()
    match change:
        case "parameter":
            set_params(project, "train.learning_rate=0.011")
        case "data":
            set_params(project, "preprocess.seed=1")
            assert run_stage(project, "preprocess").status == 0
        case "code":
            source = project / "stages/lenet/training/augmentation.py"
            source.write_text(source.read_text() + "# A comment could be anything.\n")
        case "environment":
            other = project.parent / "other"
            (other / "pillow-0.1.dist-info").mkdir(parents=True)
            (other / "pillow-0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 0.1\n")
            environment["PYTHONPATH"] = str(other)
    seen = start(project, *TRAIN, **environment).until(": loss ")
    assert "resuming" not in seen
    assert "damaged" not in seen
    assert "epoch 1/6: " in seen
    assert interrupted.checkpoint.exists(), "what it belongs to may still be resumed"


def test_a_checkpoint_belongs_to_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the environments are the same: on two accelerators of one kind."""
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    data = Dataset(torch.zeros(2, 28, 28, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    devices = [torch.device(name) for name in ("cpu", "mps", "cuda:0", "cuda:1")]
    assert len({checkpoints.identity({}, [data], device, "portable") for device in devices}) == len(devices)


def test_a_short_training_in_between_does_not_cost_the_checkpoint(digits_project: Path, run_stage: RunStage) -> None:
    expected = tree(digits_project)
    checkpoint = interrupt(digits_project, run_stage)
    set_params(digits_project, "train.epochs=1")
    assert run_stage(digits_project, "train").status == 0
    assert checkpoint.exists()
    set_params(digits_project, "train.epochs=2")
    assert "resuming after epoch 2 of 2" in run_stage(digits_project, "train").output
    assert tree(digits_project) == expected


def test_checkpoints_are_kept_within_a_bound(tmp_path: Path) -> None:
    for number in range(30):
        checkpoints.save(tmp_path / f"{number}.checkpoint", {"epoch": number})
        os.utime(tmp_path / f"{number}.checkpoint", ns=(0, number))
    checkpoints.save(tmp_path / "0.checkpoint", {"epoch": 0})
    kept = {int(path.stem) for path in tmp_path.glob("*.checkpoint")}
    assert kept == {0, *range(30 - checkpoints.KEPT, 30)}
    assert checkpoints.load(tmp_path / "29.checkpoint") == {"epoch": 29}


def test_a_file_system_without_locks(
    digits_project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems refuse an exclusive lock on what is not open for writing, and some refuse every lock."""

    def nfs(file: IO[bytes], operation: int) -> None:
        assert operation & fcntl.LOCK_EX
        assert fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", nfs)
    before = tree(digits_project)
    outcome = run_stage(digits_project, "train")
    assert outcome.status == 0
    assert outcome.error == (
        "warning: models/checkpoints/lock: No locks available; make sure that no other run uses this folder\n"
    )
    assert tree(digits_project) == before


@pytest.mark.parametrize("number", slow_except([signal.SIGINT, signal.SIGTERM], [signal.SIGINT]))
def test_signals(digits_project: Path, start: Start, number: signal.Signals) -> None:
    set_params(digits_project, "train.epochs=1000")
    before = tree(digits_project)
    training = start(digits_project, *TRAIN)
    training.until("epoch 1/1000")
    training.process.send_signal(number)
    status, rest = training.end()
    assert status == 128 + number
    lines = [line for line in rest.splitlines() if not line.startswith("epoch ")]
    assert lines == [f"error: stopped by {number.name}; run the same command again"]
    left = tree(digits_project)
    assert left["models/lenet.pt"] == before["models/lenet.pt"]
    assert not [name for name in left if name.endswith(".part")]


def test_a_signal_during_an_import(tmp_path: Path, start: Start) -> None:
    """It waits for the import to end: code that is being imported may swallow an exception, as PyTorch's does."""
    (tmp_path / "swallower.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.2)\n"
        "except BaseException:\n"
        "    print('swallowed', flush=True)\n"
        "print('imported', flush=True)\n"
    )
    (tmp_path / "program.py").write_text(
        "import time\n"
        "from lenet.cli import run\n"
        "def main():\n"
        "    import swallower\n"
        "    time.sleep(60)\n"
        "run('program', main)\n"
    )
    status, text = start(tmp_path, sys.executable, "program.py").end()
    assert status == 128 + signal.SIGTERM
    assert text.splitlines() == ["imported", "error: stopped by SIGTERM; run the same command again"]


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        ("Running stage 'download'", 3),
        pytest.param("epoch 1/1000", 1000, marks=pytest.mark.slow),
        pytest.param("Running stage 'evaluate'", 3, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_lenet_alone_ends_what_it_started(
    digits_project: Path, monkeypatch: pytest.MonkeyPatch, start: Start, words: str, epochs: int
) -> None:
    temporary = digits_project.parent / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    set_params(digits_project, f"train.epochs={epochs}")
    commit(digits_project, "still running when the signal arrives")
    verify = start(digits_project, "lenet", "verify")
    verify.until(words)
    verify.process.send_signal(signal.SIGTERM)
    # All that it started has ended too: they share the pipe that is read here.
    status, text = verify.end()
    assert status == 128 + signal.SIGTERM
    assert text.endswith("error: stopped by SIGTERM; run the same command again\n")
    assert not list(temporary.glob("lenet-verify-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs GNU OpenMP, which PyTorch has on Linux")
@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        (None, "", "1000"),
        pytest.param("GOMP_SPINCOUNT", "7", "7", marks=pytest.mark.slow),
        pytest.param("OMP_WAIT_POLICY", "PASSIVE", "0", marks=pytest.mark.slow),
    ],
)
def test_waiting_threads_go_to_sleep(
    digits_project: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, value: str, expected: str
) -> None:
    """As GNU OpenMP itself reports when it is loaded; a setting of the user's is left alone."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, value)
    set_params(digits_project, "train.epochs=1")
    text = sh(*TRAIN, cwd=digits_project, OMP_DISPLAY_ENV="VERBOSE")
    assert f"GOMP_SPINCOUNT = '{expected}'" in text


def test_a_second_training_waits(digits_project: Path, start: Start) -> None:
    expected = tree(digits_project)
    first = start(digits_project, *TRAIN)
    first.until("epoch 1/2")
    first.process.send_signal(signal.SIGSTOP)
    second = start(digits_project, *TRAIN)
    second.until("models/checkpoints: another training run is in progress in this project; waiting for it to end")
    first.process.send_signal(signal.SIGCONT)
    assert first.end()[0] == 0
    status, text = second.end()
    assert status == 0
    assert "epoch 1/2" in text
    assert tree(digits_project) == expected


@pytest.mark.slow
def test_a_second_dvc_is_refused(digits_project: Path, start: Start) -> None:
    expected = state(digits_project)
    first = start(digits_project, "dvc", "repro", "--force")
    first.until("epoch 1/2")
    os.killpg(first.process.pid, signal.SIGSTOP)
    text = sh("dvc", "repro", "--force", cwd=digits_project, status=255)
    assert "is busy, it is being blocked by" in text
    os.killpg(first.process.pid, signal.SIGCONT)
    status, text = first.end()
    assert status == 0, text
    assert state(digits_project) == expected


@pytest.fixture
def small_disk(tmp_path: Path, digits_run: Path) -> Iterator[Path]:
    """A copy of the run on `digits` in a file system of its own, of 40 MB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(mounted)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a tmpfs, as root on Linux can")
    try:
        yield shutil.copytree(digits_run, mounted / "project")
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte free, and return the file that takes the space."""
    path = disk / "fill"
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


def test_full_disk(small_disk: Path, run_stage: RunStage) -> None:
    before = state(small_disk)
    fill(small_disk.parent)
    # `download` writes only what is missing.
    (small_disk / "data/raw/t10k-labels-idx1-ubyte.gz").rename(small_disk / "kept")
    for name in STAGES:
        if name == "preprocess":
            (small_disk / "kept").rename(small_disk / "data/raw/t10k-labels-idx1-ubyte.gz")
        assert_refused(run_stage(small_disk, name), "No space left on device; make room on the disk and run this again")
    assert state(small_disk) == before


@pytest.mark.slow
def test_dvc_on_a_full_disk(small_disk: Path) -> None:
    before = state(small_disk)
    full = fill(small_disk.parent)
    set_params(small_disk, "train.epochs=1")
    lock = (small_disk / "dvc.lock").read_bytes()
    text = sh("dvc", "repro", cwd=small_disk, status=255)
    assert "No space left on device" in text  # DVC's own line, or the stage's.
    assert "Traceback" not in text
    assert (small_disk / "dvc.lock").read_bytes() == lock
    full.unlink()
    # DVC may have written its list of locks only in part; docs/recovery.md says what to do.
    (small_disk / ".dvc/tmp/rwlock").unlink(missing_ok=True)
    sh("git", "restore", ".", cwd=small_disk)
    sh("dvc", "checkout", cwd=small_disk)
    assert state(small_disk) == before

    set_params(small_disk, "train.epochs=1")
    sh("dvc", "repro", cwd=small_disk)
    assert "up to date" in sh("dvc", "status", cwd=small_disk)


def test_read_only(small_disk: Path, run_stage: RunStage) -> None:
    before = state(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk.parent)], check=True)
    for name in STAGES:
        assert_refused(run_stage(small_disk, name), "Read-only file system; run this where it may write")
    assert state(small_disk) == before


@pytest.mark.parametrize(
    ("stage", "missing"),
    [
        ("preprocess", "data/raw/t10k-images-idx3-ubyte.gz"),
        ("preprocess", "data/raw/dataset.json"),
        ("train", "data/processed/training.pt"),
        ("train", "data/raw/dataset.json"),
        ("evaluate", "data/processed/test.pt"),
        ("evaluate", "data/raw/dataset.json"),
        ("evaluate", "models/lenet.pt"),
        ("plot", "plots/predictions.csv"),
        ("plot", "data/raw/train-labels-idx1-ubyte.gz"),
        ("plot", "data/raw/dataset.json"),
    ],
)
def test_a_missing_input(digits_project: Path, run_stage: RunStage, stage: str, missing: str) -> None:
    (digits_project / missing).unlink()
    before = tree(digits_project)
    assert_refused(run_stage(digits_project, stage), f"{missing}: no such file; `dvc repro`")
    assert tree(digits_project) == before


LIMITED = """
import resource, runpy, sys
sys.path.insert(0, "stages")
import lenet.params, lenet.data.tensors
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
sys.argv = ["stages/preprocess.py"]
runpy.run_path("stages/preprocess.py", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits and /proc")
def test_too_little_memory(digits_project: Path) -> None:
    """With 256 MB available, a file whose header claims 784 MB of images."""
    images = digits_project / "data/raw/train-images-idx3-ubyte.gz"
    content = gzip.decompress(images.read_bytes())
    images.write_bytes(gzip.compress(content[:4] + (10**6).to_bytes(4, "big") + content[8:]))
    before = tree(digits_project)
    text = sh(sys.executable, "-c", LIMITED, cwd=digits_project, status=1)
    assert text == "error: not enough memory; end other programs or use a smaller batch_size, and run this again\n"
    assert tree(digits_project) == before


def test_a_checkpoint_is_named_after_everything_that_decides_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name differs if an image, a label, a parameter, a package or the device does."""

    def data() -> Dataset:
        return Dataset(torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))

    def name(seed: int = 0, device: str = "cpu", training: bool = True, validation: bool = True) -> str:
        sets = [first if training else None, second if validation else None]
        return checkpoints.identity({"train": {"seed": seed}}, sets, torch.device(device), "portable")

    first, second = data(), data()
    names = [name(), name(seed=1), name(device="cpu:0"), name(validation=False)]
    for dataset in (first, second):
        for tensor in dataset:
            tensor[2] += 1
            names.append(name())
            tensor[2] -= 1
    assert name() == names[0]
    monkeypatch.setattr("platform.python_version", lambda: "3.0")
    names.append(name())
    assert len(set(names)) == len(names)
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in names)


def test_a_second_run_does_nothing_until_the_first_has_ended(tmp_path: Path) -> None:
    order = []

    def second() -> None:
        with checkpoints.only_one(tmp_path / "folder"):
            order.append("second")

    waiting = threading.Thread(target=second)
    with checkpoints.only_one(tmp_path / "folder"):
        waiting.start()
        waiting.join(0.3)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_half_written_files_of_running_programs_are_left_alone(tmp_path: Path) -> None:
    """Only those that killed programs left of the same file are removed."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = {
        name: tmp_path / f".{name}.part" for name in (f"a.{ended.pid}", f"a.{os.getppid()}", "a.b", f"b.{ended.pid}")
    }
    for path in left.values():
        path.write_bytes(b"half")
    write_bytes(tmp_path / "a", b"whole")
    assert {name for name, path in left.items() if path.exists()} == {f"a.{os.getppid()}", "a.b", f"b.{ended.pid}"}
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_file_is_replaced_only_when_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail() -> None:
        with written_whole(path) as file:
            file.write(b"ne")
            file.flush()
            assert path.read_bytes() == b"old"
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"old"
