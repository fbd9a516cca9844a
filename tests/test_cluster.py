"""lenet sweep --scheduler: a scheduler, workers, remotes, and what happens if one of them is lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from conftest import RunLenet, assert_refused, commit, sh
from faults import lose_hosts
from hosts import certificates
from test_presets import stub_stages
from test_sweep import experiments

pytest.importorskip("distributed", reason="needs the group cluster: pip install -e '.[cluster]'")

SWEEP = ["lenet", "sweep", "-S", "train.seed=range(0,3)"]


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def program(log: Path, *command: str, says: str, cwd: Path | None = None, **environment: str) -> Iterator[psutil.Popen]:
    """A program in the background that has said something; it is ended with the context, if it has not ended."""
    with log.open("w") as file:
        running = psutil.Popen(
            command, cwd=cwd, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT, text=True
        )
    try:
        until(lambda: says in log.read_text() or running.poll() is not None)
        assert says in log.read_text(), log.read_text()
        yield running
    finally:
        if running.poll() is None:
            running.terminate()
            running.wait(timeout=60)


class Loopback:
    """A scheduler and workers on addresses of this machine, each a host with a folder of its own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.scheduler = stack.enter_context(self._program("scheduler", "scheduler", "--port", "0", says="scheduler: "))
        [self.address] = re.findall("^scheduler: (.*)", (folder / "scheduler.log").read_text(), re.M)

    def _program(self, name: str, *arguments: str, says: str) -> AbstractContextManager[psutil.Popen]:
        log, home = self._folder / f"{name}.log", self._folder / name
        home.mkdir()
        return program(log, "lenet", *arguments, says=says, cwd=self._folder, LENET_FOLDER=str(home))

    def worker(self, number: int, jobs: int = 1) -> psutil.Popen:
        """Start a worker on the host 127.0.0.NUMBER; its folder is `host-NUMBER`."""
        arguments = ["worker", self.address, "--host", f"127.0.0.{number}", "--jobs", str(jobs)]
        return self._stack.enter_context(self._program(f"host-{number}", *arguments, says="worker: tcp://"))


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[Loopback]:
    if sys.platform != "linux":
        pytest.skip("needs the addresses 127.0.0.2 and 127.0.0.3, which only Linux has without being told")
    with ExitStack() as stack:
        yield Loopback(tmp_path, stack)


def with_remotes(project: Path) -> Path:
    """Give a project a Git remote and a DVC remote, beside it, and push."""
    remote = project.parent / "remote.git"
    sh("git", "init", "--quiet", "--bare", "--initial-branch", "main", str(remote), cwd=project)
    sh("git", "remote", "add", "origin", str(remote), cwd=project)
    sh("dvc", "remote", "add", "--quiet", "--default", "storage", str(project.parent / "storage"), cwd=project)
    commit(project, "the remotes")
    sh("git", "push", "--quiet", "origin", "HEAD:main", cwd=project)
    sh("dvc", "push", "--quiet", cwd=project)
    return remote


@pytest.fixture
def stubbed(digits_project: Path) -> Path:
    """A project whose stages take no time, with remotes."""
    (digits_project.parent / "hangs").touch()
    stub_stages(digits_project)
    commit(digits_project, "stubs")
    with_remotes(digits_project)
    return digits_project


def test_a_sweep_on_a_cluster_gives_what_one_machine_gives(digits_project: Path, loopback: Loopback) -> None:
    """The same bytes, in the remotes, and nothing but Git's part here."""
    remote = with_remotes(digits_project)
    loopback.worker(2)
    sweep = ["lenet", "sweep", "-S", "train.seed=2", "-S", "train.epochs=1"]
    text = sh(*sweep, "--scheduler", loopback.address, cwd=digits_project)
    assert text.startswith("epochs-1-seed2: running on 127.0.0.2\n")
    assert "epochs-1-seed2: done on 127.0.0.2" in text
    assert sh("git", "status", "--porcelain", cwd=digits_project) == ""
    landed = experiments(digits_project)
    assert landed == experiments(remote)
    assert list(landed) == ["epochs-1-seed2"]

    # With the data, which only the DVC remote has: the same as here.
    other = digits_project.parent / "other"
    sh("git", "clone", "--quiet", str(remote), str(other), cwd=remote)
    sh("dvc", "exp", "pull", "--quiet", "origin", "epochs-1-seed2", cwd=other)
    sh("dvc", "exp", "apply", "--quiet", "epochs-1-seed2", cwd=other)
    sh("git", "push", "--quiet", "origin", f":refs/exps/{reference(digits_project)}/epochs-1-seed2", cwd=digits_project)
    sh("dvc", "exp", "remove", "--quiet", "epochs-1-seed2", cwd=digits_project)
    sh(*sweep, cwd=digits_project)
    here = experiments(digits_project)
    assert all(sh("git", "diff", landed[name], here[name], cwd=digits_project) == "" for name in landed)
    sh("dvc", "exp", "apply", "--quiet", "epochs-1-seed2", cwd=digits_project)
    for path in ("models/lenet.pt", "metrics/test.json", "dvc.lock", "data/features.npz"):
        assert (other / path).read_bytes() == (digits_project / path).read_bytes()


def reference(project: Path) -> str:
    """The baseline of the experiments of the last commit, as their references have it."""
    head = sh("git", "rev-parse", "HEAD", cwd=project).strip()
    return f"{head[:2]}/{head[2:]}"


@pytest.mark.slow
def test_once_more_on_another_host(stubbed: Path, loopback: Loopback) -> None:
    """A task that fails on one host only is done by another; one that fails on both is reported.

    The DVC remote does not have what training reads: the stages make it.
    """
    shutil.rmtree(stubbed.parent / "storage")
    train = stubbed / "stages/train.py"
    bad = 'import os\nif "host-2" in os.getcwd(): raise SystemExit("error: this host is broken")\n'
    train.write_text(bad + train.read_text())
    commit(stubbed, "broken on one host")
    sh("git", "push", "--quiet", "origin", "HEAD:main", cwd=stubbed)
    for number in (2, 3):
        loopback.worker(number)
    text = sh("lenet", "sweep", "-S", "train.seed=0,2,3", "--scheduler", loopback.address, cwd=stubbed, status=1)
    assert "failed on 127.0.0.2, is tried on another host: this host is broken" in text
    done = re.findall("^(params-seed[0-9]): done on (.*) [0-9.]+%$", text, re.M)
    assert sorted(done) == [("params-seed0", "127.0.0.3"), ("params-seed2", "127.0.0.3")]
    assert sorted(experiments(stubbed)) == ["params-seed0", "params-seed2"]
    assert "error: the experiment params-seed3 failed: " in text.splitlines()[-1]


def hanging(project: Path) -> Path:
    """Let the training with seed 1 hang the first time, wherever it is; the file says that it does."""
    mark = project.parent / "hangs"
    mark.unlink(missing_ok=True)
    return mark


@pytest.mark.slow
def test_ctrl_c_ends_what_runs_and_going_away_does_not(stubbed: Path, loopback: Loopback) -> None:
    worker = loopback.worker(2, jobs=2)
    command = [*SWEEP, "--scheduler", loopback.address]

    def tasks() -> list[psutil.Process]:
        return worker.children(recursive=True)

    def submit(then: signal.Signals, status: int) -> str:
        mark = hanging(stubbed)
        running = subprocess.Popen(command, cwd=stubbed, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        until(mark.exists)
        running.send_signal(then)
        text, _ = running.communicate(timeout=60)
        assert running.returncode == status
        return text

    # Dask would let the hanging task run on.
    assert "error: stopped by SIGINT; run the same command again" in submit(signal.SIGINT, 130)
    until(lambda: not tasks())
    assert "params-seed1" not in experiments(stubbed)

    # The submitter goes away: the cluster goes on, and what is done meanwhile is found.
    for name in experiments(stubbed):
        sh("dvc", "exp", "remove", "--quiet", "--git-remote", "origin", name, cwd=stubbed)
        sh("dvc", "exp", "remove", "--quiet", name, cwd=stubbed)
    submit(signal.SIGTERM, 143)
    remote = stubbed.parent / "remote.git"
    until(lambda: sorted(experiments(remote)) == ["params-seed0", "params-seed2"])
    assert tasks(), "the one that hangs"
    [stage] = [process for process in tasks() if process.cmdline()[1:] == ["stages/train.py"]]
    again = subprocess.Popen(command, cwd=stubbed, text=True, stdout=subprocess.PIPE)
    assert again.stdout
    lines = [again.stdout.readline() for _ in range(3)]
    assert [line for line in lines if "landed before" not in line] == ["params-seed1: running on 127.0.0.2\n"]
    assert stage.is_running(), "it is not run a second time"
    stage.kill()
    text = again.stdout.read()
    assert "params-seed1: failed on 127.0.0.2: failed to reproduce 'train'" in text
    assert again.wait(timeout=60) == 1


@pytest.mark.slow
def test_a_task_ends_with_its_worker(stubbed: Path, loopback: Loopback) -> None:
    """Also if the worker is killed; another one does the task, and the experiment lands once."""
    mark = hanging(stubbed)
    first = loopback.worker(2)
    log, command = stubbed.parent / "sweep.log", [*SWEEP, "--scheduler", loopback.address]
    with program(log, *command, says="running on", cwd=stubbed) as sweep:
        until(mark.exists)
        tasks = first.children(recursive=True)
        assert tasks
        first.kill()
        assert not psutil.wait_procs(tasks, timeout=30)[1]
        until(lambda: not list((stubbed.parent / "host-2/tasks").iterdir()))
        loopback.worker(3)
        assert sweep.wait(timeout=120) == 0
    assert "params-seed1: done on 127.0.0.3 92.00%" in log.read_text()
    assert sorted(experiments(stubbed)) == ["params-seed0", "params-seed1", "params-seed2"]


def test_another_torch_is_refused(stubbed: Path, loopback: Loopback) -> None:
    """A host with other versions of what computes the results says so, and does not compute."""
    packages = stubbed.parent / "packages/torch-1.0.dist-info"
    packages.mkdir(parents=True)
    (packages / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(packages.parent))
        loopback.worker(2)
    text = sh(*SWEEP, "--scheduler", loopback.address, cwd=stubbed, status=1)
    assert "params-seed0: failed on 127.0.0.2: torch is 1.0 on this host and 2." in text
    assert not experiments(stubbed)


def test_what_a_cluster_needs(digits_project: Path, run_lenet: RunLenet) -> None:
    command = ["sweep", "-S", "train.seed=0", "--scheduler", "tcp://127.0.0.1:9"]
    assert_refused(run_lenet(digits_project, *command), "land in the Git remote origin: add it, `git remote add origin")
    sh("git", "remote", "add", "origin", "https://me:secret@example.org/x.git", cwd=digits_project)
    outcome = run_lenet(digits_project, *command)
    assert_refused(
        outcome, "the address of the Git remote origin has a password or a token in it", "git help credentials"
    )
    assert "secret" not in outcome.error
    sh("git", "remote", "remove", "origin", cwd=digits_project)
    remote = digits_project.parent / "remote.git"
    sh("git", "init", "--quiet", "--bare", str(remote), cwd=digits_project)
    sh("git", "remote", "add", "origin", str(remote), cwd=digits_project)
    assert_refused(run_lenet(digits_project, *command), "in a DVC remote: add one, `dvc remote add --default storage")
    sh("dvc", "remote", "add", "--quiet", "--default", "storage", str(digits_project.parent / "s"), cwd=digits_project)
    commit(digits_project, "a remote")
    assert_refused(
        run_lenet(digits_project, *command), "the Git remote origin does not have the commit", "run `git push`"
    )
    sh("git", "push", "--quiet", "origin", "HEAD:main", cwd=digits_project)
    outcome = run_lenet(digits_project, *command)
    assert_refused(outcome, "--scheduler tcp://127.0.0.1:9: ", "does `lenet scheduler` run there")
    shutil.rmtree(remote)
    assert_refused(run_lenet(digits_project, *command), f"{remote}: ", "does not appear to be a git repository")


@pytest.mark.parametrize("command", [["scheduler"], ["worker", "tcp://127.0.0.1:9"]])
@pytest.mark.parametrize("host", ["10.0.0.1", "::", "example.org"])
def test_other_addresses_need_tls(tmp_path: Path, run_lenet: RunLenet, command: list[str], host: str) -> None:
    words = f"--host {host}: who can connect may run any program here, so other addresses than 127.0.0.1 need TLS"
    assert_refused(run_lenet(tmp_path, *command, "--host", host), words)


def test_who_has_no_certificate_is_refused(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    ours, theirs = (certificates(tmp_path / name) for name in ("ours", "theirs"))
    connect = "import sys; from lenet.experiments.cluster import Cluster; Cluster(sys.argv[1]).close(True)"

    def refused(address: str, **environment: str) -> None:
        text = sh("python", "-c", connect, address, cwd=tmp_path, status=1, **environment)
        assert f"InputError: --scheduler {address}: " in text.splitlines()[-1]

    serve = ["lenet", "scheduler", "--port", "0"]
    with program(tmp_path / "log", *serve, says="scheduler: tls://127.0.0.1", cwd=tmp_path, **ours):
        [address] = re.findall("^scheduler: (.*)", (tmp_path / "log").read_text(), re.M)
        sh("python", "-c", connect, address, cwd=tmp_path, status=0, **ours)
        refused(address)
        refused(address, **theirs)
        refused(address.replace("tls", "tcp"))
    (tmp_path / "ours/key.pem").unlink()
    words = f"error: {tmp_path}/ours/key.pem: no such file; Dask's configuration names it, in distributed.comm.tls\n"
    assert sh(*serve, cwd=tmp_path, status=1, **ours) == words


@pytest.mark.slow
def test_hosts_and_a_scheduler_are_lost(digits_project: Path, tmp_path: Path) -> None:
    """With addresses of their own, TLS and SSH: what faults.py does with 24 experiments that train."""
    (tmp_path / "hangs").touch()
    stub_stages(digits_project)
    commit(digits_project, "stubs")
    lose_hosts(tmp_path, digits_project, 6, 2, print)
