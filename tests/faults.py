"""Hosts are lost in the middle of a sweep: `python tests/faults.py [--experiments 24]`.

Three hosts, which are network namespaces, run experiments on `digits`, each with a worker of its own, with mutual TLS.
The Git remote and the DVC remote are reached over SSH. Meanwhile

- the first host's worker is killed, for good;
- the second host is cut off from the network for 30 s;
- the scheduler is killed, and another one started.

In the end all experiments must have landed in the remote, each once, and be equal, in all files, to those that
`lenet sweep` makes on this machine alone. 24 experiments take 7 minutes on two cores.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from conftest import DIGITS, clone, commit, set_params, sh
from hosts import certificates, hosts, ssh_server
from test_sweep import experiments

SECONDS_OFF = 30


def lose_hosts(folder: Path, project: Path, count: int, compared: int, say: Callable[[str], None]) -> None:
    """Run the sweep of a project that has been run and committed, lose hosts, and check what has landed.

    It has `count` experiments, of which `compared` are run once more, on this machine alone.
    """
    started = time.monotonic()

    def log(text: str) -> None:
        say(f"{time.monotonic() - started:6.1f} s  {text}")

    with contextlib.ExitStack() as stack:
        address, (first, second, third) = stack.enter_context(hosts(3))
        server = stack.enter_context(ssh_server(folder / "ssh", address))
        tls = certificates(folder)

        def start(name: str, command: list[str], says: str) -> "subprocess.Popen[bytes]":
            home = server.home(folder / f"{name}-{time.monotonic_ns()}")
            file = folder / f"{name}.log"
            before = file.read_text().count(says) if file.exists() else 0
            with file.open("ab") as out:
                program = subprocess.Popen(command, cwd=folder, env=os.environ | tls | home, stdout=out, stderr=out)
            stack.callback(_end, program)
            until(lambda: file.read_text().count(says) > before, program)
            return program

        remote = folder / "remote.git"
        me = server.home(folder / "me")
        sh("git", "init", "--quiet", "--bare", "--initial-branch", "main", str(remote), cwd=folder)
        sh("git", "remote", "add", "origin", f"store:{remote}", cwd=project)
        sh("dvc", "remote", "add", "--quiet", "--default", "storage", f"ssh://store{folder}/storage", cwd=project)
        commit(project, "the remotes")
        sh("git", "push", "--quiet", "origin", "HEAD:main", cwd=project, status=0, **me)
        sh("dvc", "push", "--quiet", cwd=project, status=0, **me)

        serve = ["lenet", "scheduler", "--host", address, "--port", "8786"]
        scheduler = start("scheduler", serve, "scheduler: tls://")
        at = f"tls://{address}:8786"
        workers = {}
        for host in (first, second, third):
            command = host.command("lenet", "worker", at, "--host", host.address, "--jobs", "1")
            workers[host] = start(f"worker-{host.address}", command, "worker: tls://")
        log(f"three workers, {count} experiments")

        # Who has no certificate is refused.
        seeds = ["-S", f"train.seed=range(0,{count // 2})"]
        sweep = ["lenet", "sweep", "-S", "model.activation=relu,tanh", *seeds]
        command = [*sweep, "--scheduler", at]
        plain = ["--scheduler", at.replace("tls", "tcp")]
        text = sh(*sweep, *plain, cwd=project, status=1, **me)
        log(f"without a certificate: {text.strip()}")

        said = folder / "sweep.log"
        with said.open("w") as out:
            running = subprocess.Popen(command, cwd=project, env=os.environ | tls | me, stdout=out, stderr=out)
        stack.callback(_end, running)

        def landed(number: int) -> Callable[[], bool]:
            return lambda: len(experiments(remote)) >= number

        until(landed(1 + count // 8), running)
        workers[first].kill()
        log(f"{len(experiments(remote))} have landed; {first.address}'s worker is killed")
        until(landed(1 + count // 4), running)
        second.cut()
        log(f"{len(experiments(remote))} have landed; {second.address} is cut off")
        time.sleep(SECONDS_OFF)
        second.mend()
        log(f"{len(experiments(remote))} have landed; {second.address} is there again")
        until(landed(1 + count // 2), running)
        scheduler.kill()
        log(f"{len(experiments(remote))} have landed; the scheduler is killed")
        scheduler.wait()
        start("scheduler", serve, "scheduler: tls://")
        log("another scheduler is started")
        assert running.wait(timeout=1800) == 0, said.read_text()
        log(f"{len(experiments(remote))} have landed; the sweep has ended")
        say(said.read_text())

        names = [f"activation-{name}-seed{seed}" for name in ("relu", "tanh") for seed in range(count // 2)]
        found = experiments(remote)
        assert sorted(found) == sorted(names)
        assert experiments(project) == found
        sh("dvc", "exp", "remove", "--quiet", *names, cwd=project)
        seeds = ["-S", f"train.seed=range(0,{compared // 2})"]
        sh("lenet", "sweep", "-S", "model.activation=relu,tanh", *seeds, cwd=project)
        here = experiments(project)
        assert len(here) == compared
        different = [name for name in here if sh("git", "diff", "--stat", found[name], here[name], cwd=project)]
        assert not different, different
        assert "not in" not in sh("dvc", "status", "--cloud", cwd=project, status=0, **me)
        log(f"each has landed once; {compared} are equal to those of one machine")


def until(condition: Callable[[], bool], program: "subprocess.Popen[bytes]", seconds: float = 900) -> None:
    """Wait for something, as long as a program runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert program.poll() is None, program.args
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _end(program: "subprocess.Popen[bytes]") -> None:
    if program.poll() is None:
        program.send_signal(signal.SIGTERM)
        program.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--experiments", type=int, default=24, help="an even number, at least 6")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lenet-faults-") as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        os.environ |= {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        (home / ".gitconfig").write_text("[user]\n\tname = A tester\n\temail = tester@example.org\n")
        project = clone(folder / "project")
        set_params(project, *DIGITS)
        sh("dvc", "repro", cwd=project)
        commit(project, "a run on digits")
        lose_hosts(folder, project, options.experiments, options.experiments, print)


if __name__ == "__main__":
    main()
