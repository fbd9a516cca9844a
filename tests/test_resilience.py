"""Runs that are killed, stopped, starved or doubled: they cost minutes, not results."""

import errno
import fcntl
import gzip
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pytest
from conftest import assert_refused, commit, set_params, sh, tree
from kill import kill, state

from lenet.training import checkpoints

STAGES = ["download", "preprocess", "train", "evaluate", "plot"]


class Running:
    """A program in a project, its output and errors together read as they come."""

    def __init__(self, project: Path, *command: str) -> None:
        self.process = subprocess.Popen(
            command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def until(self, words: str) -> None:
        """Read on to the line that has these words."""
        assert self.process.stdout is not None
        assert any(words in line for line in self.process.stdout), f"ended without: {words}"

    def end(self) -> tuple[int, str]:
        """Wait for the end; the exit status, and what has not been read yet."""
        rest, _ = self.process.communicate(timeout=120)
        return self.process.returncode, rest


TRAIN = [sys.executable, "stages/train.py"]


def test_killed_at_random_moments(digits_project: Path) -> None:
    """`python tests/kill.py` makes more of them."""
    assert kill(digits_project, kills=3, seed=1)["kills"] == 3


class Interrupted(NamedTuple):
    project: Path
    checkpoint: Path
    expected: dict[str, bytes]


@pytest.fixture(scope="module")
def killed(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A training of six epochs that was killed in its third, by SIGKILL, and what it gives when it is not."""
    project = shutil.copytree(digits_run, tmp_path_factory.mktemp("killed") / "project")
    set_params(project, "train.epochs=6")
    sh(*TRAIN, cwd=project)
    expected = tree(project)
    training = Running(project, *TRAIN)
    training.until("epoch 2/6")
    training.process.kill()
    assert training.end()[0] == -signal.SIGKILL
    return project, expected


@pytest.fixture
def interrupted(killed: tuple[Path, dict[str, bytes]], tmp_path: Path) -> Interrupted:
    """A copy of it for one test."""
    original, expected = killed
    project = shutil.copytree(original, tmp_path / "project")
    [checkpoint] = (project / "models/checkpoints").glob("*.checkpoint")
    return Interrupted(project, checkpoint, expected)


def test_a_killed_training_is_resumed(interrupted: Interrupted) -> None:
    project, checkpoint, expected = interrupted
    # As a program leaves it that was killed while it wrote.
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


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_a_damaged_checkpoint_is_reported_and_not_used(interrupted: Interrupted, damage: str) -> None:
    project, checkpoint, expected = interrupted
    content = bytearray(checkpoint.read_bytes())
    match damage:
        case "flipped":
            content[len(content) // 2] ^= 1
        case "truncated":
            del content[-1:]
        case "empty":
            content.clear()
    checkpoint.write_bytes(content)
    text = sh(*TRAIN, cwd=project)
    assert f"warning: models/checkpoints/{checkpoint.name} is damaged and not used; the training begins anew" in text
    assert "epoch 1/6: " in text
    assert tree(project) == expected


@pytest.mark.parametrize("change", ["parameter", "data", "code"])
def test_a_stale_checkpoint_is_not_used(interrupted: Interrupted, change: str) -> None:
    project = interrupted.project
    match change:
        case "parameter":
            set_params(project, "train.learning_rate=0.011")
        case "data":
            set_params(project, "preprocess.seed=1")
            sh(sys.executable, "stages/preprocess.py", cwd=project)
        case "code":
            source = project / "stages/lenet/training/augmentation.py"
            source.write_text(source.read_text() + "# Who knows what this does.\n")
    text = sh(*TRAIN, cwd=project)
    assert "resuming" not in text
    assert "damaged" not in text
    assert "epoch 1/6: " in text
    # The one of what was interrupted is still there; the one of what has ended is not.
    assert list((project / "models/checkpoints").glob("*.checkpoint")) == [interrupted.checkpoint]


def test_a_short_training_in_between_costs_an_interrupted_one_nothing(interrupted: Interrupted) -> None:
    project, checkpoint, expected = interrupted
    set_params(project, "train.epochs=1")
    sh(*TRAIN, cwd=project)
    assert checkpoint.exists()
    set_params(project, "train.epochs=6")
    assert "resuming after epoch" in sh(*TRAIN, cwd=project)
    assert tree(project) == expected


def test_checkpoints_are_kept_within_a_bound(tmp_path: Path) -> None:
    for number in range(30):
        checkpoints.save(tmp_path / f"{number}.checkpoint", {"epoch": number})
        os.utime(tmp_path / f"{number}.checkpoint", ns=(0, number))
    checkpoints.save(tmp_path / "0.checkpoint", {"epoch": 0})
    kept = {int(path.stem) for path in tmp_path.glob("*.checkpoint")}
    assert kept == {0, *range(30 - checkpoints.KEPT, 30)}
    assert checkpoints.load(tmp_path / "29.checkpoint") == {"epoch": 29}


def test_a_file_system_without_locks(digits_project: Path, run_stage, monkeypatch: pytest.MonkeyPatch) -> None:
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
        "warning: models/checkpoints/lock: No locks available; see that no other training runs in this folder\n"
    )
    assert tree(digits_project) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(digits_project: Path, number: signal.Signals) -> None:
    set_params(digits_project, "train.epochs=1000")
    before = tree(digits_project)
    training = Running(digits_project, *TRAIN)
    training.until("epoch 1/1000")
    training.process.send_signal(number)
    status, rest = training.end()
    assert status == 128 + number
    lines = [line for line in rest.splitlines() if not line.startswith("epoch ")]
    assert lines == [f"error: stopped by {number.name}; run the same command again"]
    left = tree(digits_project)
    assert left["models/lenet.pt"] == before["models/lenet.pt"]
    assert not [name for name in left if name.endswith(".part")]


def test_a_signal_in_the_midst_of_an_import(tmp_path: Path) -> None:
    """It waits for the import's end, because code that is imported may swallow an exception, as PyTorch's does."""
    (tmp_path / "swallower.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.2)\n"
        "except BaseException:\n"
        "    print('swallowed', flush=True)\n"
    )
    (tmp_path / "program.py").write_text(
        "import time\n"
        "from lenet.cli import run\n"
        "def main():\n"
        "    import swallower\n"
        "    print('imported', flush=True)\n"
        "    time.sleep(60)\n"
        "run('program', main)\n"
    )
    status, text = Running(tmp_path, sys.executable, "program.py").end()
    assert status == 128 + signal.SIGTERM
    assert text.splitlines() == ["imported", "error: stopped by SIGTERM; run the same command again"]


@pytest.mark.parametrize(("words", "epochs"), [("epoch 1/1000", 1000), ("Running stage 'evaluate'", 3)])
def test_a_signal_for_lenet_alone_ends_what_it_started(
    digits_project: Path, monkeypatch: pytest.MonkeyPatch, words: str, epochs: int
) -> None:
    temporary = digits_project.parent / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    set_params(digits_project, f"train.epochs={epochs}")
    commit(digits_project, "a run that is still at work when the signal comes")
    verify = Running(digits_project, "lenet", "verify")
    verify.until(words)
    verify.process.send_signal(signal.SIGTERM)
    # Its end is that of all: they share the pipe that is read here.
    status, text = verify.end()
    assert status == 128 + signal.SIGTERM
    assert text.splitlines()[-1] == "error: stopped by SIGTERM; run the same command again"
    assert not list(temporary.glob("lenet-verify-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs GNU OpenMP, which PyTorch has on Linux")
@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [(None, "", "1000"), ("GOMP_SPINCOUNT", "7", "7"), ("OMP_WAIT_POLICY", "PASSIVE", "0")],
)
def test_threads_that_wait_go_to_sleep(
    digits_project: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, value: str, expected: str
) -> None:
    """What GNU OpenMP itself says as it is loaded; what the user has set counts."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, value)
    set_params(digits_project, "train.epochs=1")
    text = sh(*TRAIN, cwd=digits_project, OMP_DISPLAY_ENV="VERBOSE")
    assert f"GOMP_SPINCOUNT = '{expected}'" in text


def test_a_second_training_waits(digits_project: Path) -> None:
    expected = tree(digits_project)
    first = Running(digits_project, *TRAIN)
    first.until("epoch 1/2")
    first.process.send_signal(signal.SIGSTOP)
    second = Running(digits_project, *TRAIN)
    second.until("models/checkpoints: another training is at work in this project; waiting for its end")
    first.process.send_signal(signal.SIGCONT)
    assert first.end()[0] == 0
    status, text = second.end()
    assert status == 0
    assert "epoch 1/2" in text
    assert tree(digits_project) == expected


def test_a_second_dvc_says_so(digits_project: Path) -> None:
    expected = state(digits_project)
    first = Running(digits_project, "dvc", "repro", "--force")
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
    """A copy of the run on `digits` on a file system of its own, of 40 MB."""
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
    """Leave no byte free; the file to remove for some."""
    path = disk / "fill"
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


def test_full_disk(small_disk: Path, run_stage) -> None:
    before = state(small_disk)
    full = fill(small_disk.parent)
    # What is there already is not written again.
    (small_disk / "data/raw/t10k-labels-idx1-ubyte.gz").rename(small_disk / "kept")
    for name in STAGES:
        if name == "preprocess":
            (small_disk / "kept").rename(small_disk / "data/raw/t10k-labels-idx1-ubyte.gz")
        assert_refused(run_stage(small_disk, name), "No space left on device; make room on the disk and run this again")
    assert state(small_disk) == before

    set_params(small_disk, "train.epochs=1")
    lock = (small_disk / "dvc.lock").read_bytes()
    text = sh("dvc", "repro", cwd=small_disk, status=255)
    assert "No space left on device" in text  # DVC's own line, or the stage's.
    assert "Traceback" not in text
    assert (small_disk / "dvc.lock").read_bytes() == lock
    full.unlink()
    # DVC may have torn its own list of locks; docs/recovery.md says what to do.
    (small_disk / ".dvc/tmp/rwlock").unlink(missing_ok=True)
    sh("git", "restore", ".", cwd=small_disk)
    sh("dvc", "checkout", cwd=small_disk)
    assert state(small_disk) == before

    set_params(small_disk, "train.epochs=1")
    sh("dvc", "repro", cwd=small_disk)
    assert "up to date" in sh("dvc", "status", cwd=small_disk)


def test_read_only(small_disk: Path, run_stage) -> None:
    before = state(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk.parent)], check=True)
    for name in STAGES:
        assert_refused(run_stage(small_disk, name), "Read-only file system; run this where it may write")
    assert state(small_disk) == before


@pytest.mark.parametrize(
    ("stage", "vanished"),
    [
        ("preprocess", "data/raw/t10k-images-idx3-ubyte.gz"),
        ("train", "data/processed/training.pt"),
        ("evaluate", "data/processed/test.pt"),
        ("evaluate", "models/lenet.pt"),
        ("plot", "plots/predictions.csv"),
        ("plot", "data/raw/train-labels-idx1-ubyte.gz"),
        ("plot", "params.yaml"),
    ],
)
def test_a_vanished_input(digits_project: Path, run_stage, stage: str, vanished: str) -> None:
    (digits_project / vanished).unlink()
    before = tree(digits_project)
    assert_refused(run_stage(digits_project, stage), f"{vanished}: no such file; `dvc repro`")
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
    """With 256 MB to be had, images that claim to be 784 MB."""
    images = digits_project / "data/raw/train-images-idx3-ubyte.gz"
    content = gzip.decompress(images.read_bytes())
    images.write_bytes(gzip.compress(content[:4] + (10**6).to_bytes(4, "big") + content[8:]))
    before = tree(digits_project)
    text = sh(sys.executable, "-c", LIMITED, cwd=digits_project, status=1)
    assert text == "error: not enough memory; end other programs or use a smaller batch_size, and run this again\n"
    assert tree(digits_project) == before
