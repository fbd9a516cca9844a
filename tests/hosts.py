"""What tests of a network need: hosts (network namespaces), certificates, an SSH server and an S3 server."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")


def _command(*words: str, status: int | None = 0) -> str:
    done = subprocess.run(words, text=True, capture_output=True, timeout=60, check=False)
    assert status is None or done.returncode == status, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def certificates(folder: Path) -> dict[str, str]:
    """Make a key and a certificate that is its own authority, as docs/cluster.md does, and Dask's settings for them."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    _command(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "365", "-subj", "/CN=lenet", "-keyout", str(key), "-out", str(certificate)),
    )
    settings = {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True"}
    settings["DASK_DISTRIBUTED__COMM__TLS__CA_FILE"] = str(certificate)
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        settings[f"DASK_DISTRIBUTED__COMM__TLS__{role}__KEY"] = str(key)
        settings[f"DASK_DISTRIBUTED__COMM__TLS__{role}__CERT"] = str(certificate)
    return settings


def free_port(address: str = "127.0.0.1") -> int:
    with socket.create_server((address, 0)) as server:
        return int(server.getsockname()[1])


def wait_for(address: str, port: int, program: "subprocess.Popen[bytes]") -> None:
    """Wait until a program listens."""
    for _ in range(200):
        assert program.poll() is None, program.args
        with socket.socket() as client:
            if client.connect_ex((address, port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"{program.args!r} does not listen")


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A program in the background, which ends with the context, or after ten minutes."""
    with log.open("ab") as file:
        program = subprocess.Popen(["timeout", "600", *command], stdout=file, stderr=file, start_new_session=True)
    try:
        yield program
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGTERM)
            program.wait(timeout=60)


class SSHServer(NamedTuple):
    """OpenSSH's server, which lets the user in who has the key."""

    folder: Path
    address: str
    port: int

    def home(self, home: Path) -> dict[str, str]:
        """Make a user's home, from which the server is reached by the name `store`; the variables of who lives there.

        OpenSSH's client reads the system's home folder whatever HOME is, so Git is told where the settings are.
        """
        settings = home / ".ssh/config"
        settings.parent.mkdir(parents=True)
        shutil.copy(self.folder / "user", home / ".ssh/id_ed25519")
        kind, key = (self.folder / "host.pub").read_text().split()[:2]
        (home / ".ssh/known_hosts").write_text(f"[{self.address}]:{self.port} {kind} {key}\n")
        settings.write_text(
            f"Host store\n  HostName {self.address}\n  Port {self.port}\n  IdentityFile {home}/.ssh/id_ed25519\n"
            f"  UserKnownHostsFile {home}/.ssh/known_hosts\n  StrictHostKeyChecking yes\n"
        )
        (home / ".gitconfig").write_text(
            "[user]\n\tname = A tester\n\temail = tester@example.org\n"
            f'[core]\n\tsshCommand = "ssh -F {settings}"\n[safe]\n\tdirectory = *\n'
        )
        return {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}


@contextmanager
def ssh_server(folder: Path, address: str = "127.0.0.1") -> Iterator[SSHServer]:
    """An SSH server at an address of this machine; without OpenSSH's, the test is skipped."""
    if sys.platform != "linux" or not SSHD:
        pytest.skip("needs Linux and OpenSSH's server: apt install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # Where it separates its privileges; it insists on it.
    folder.mkdir()
    for name in ("host", "user"):
        _command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    server = SSHServer(folder, address, free_port(address))
    settings = folder / "sshd_config"
    settings.write_text(
        f"Port {server.port}\nListenAddress {address}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile none\nMaxStartups 100\n"
        "Subsystem sftp internal-sftp\n"
    )
    with running([SSHD, "-D", "-e", "-f", str(settings)], folder / "log") as program:
        wait_for(address, server.port, program)
        yield server


class Host(NamedTuple):
    """A network namespace, joined to this one by a cable that ends in a bridge."""

    name: str
    address: str

    def command(self, *words: str) -> list[str]:
        """A command, run on this host."""
        return ["ip", "netns", "exec", self.name, *words]

    def cut(self) -> None:
        """Lose what is sent to and from there, in silence: nobody is told, as by `ip link set down`.

        The cable stays in the bridge: without one, its packets would come to this machine, which would take them.
        """
        _command("bridge", "link", "set", "dev", self.name, "state", "0")

    def mend(self) -> None:
        _command("bridge", "link", "set", "dev", self.name, "state", "3")


@contextmanager
def hosts(count: int) -> Iterator[tuple[str, list[Host]]]:
    """Hosts that a bridge joins, and this machine's address there; where there may be none, the test is skipped."""
    with ExitStack() as stack:

        def made(remove: list[str], *add: str) -> None:
            done = subprocess.run(add, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"needs network namespaces, which may not be made here: {done.stderr.strip()}")
            stack.callback(_command, *remove, status=None)

        if sys.platform != "linux" or not shutil.which("ip"):
            pytest.skip("needs network namespaces and iproute2")
        tag, taken = f"ln{os.getpid() % 100_000}", _command("ip", "addr")
        network = next(f"10.213.{at}" for at in range(os.getpid() % 200, 255) if f"10.213.{at}." not in taken)
        bridge = f"{tag}b"
        # With no address of its own it would take a cable's, and change it: hosts would send to one that is gone.
        hardware = ["address", f"02:00:0a:d5:{int(network.split('.')[2]):02x}:01"]
        made(["ip", "link", "del", bridge], "ip", "link", "add", bridge, *hardware, "type", "bridge")
        _command("ip", "addr", "add", f"{network}.1/24", "dev", bridge)
        _command("ip", "link", "set", bridge, "up")
        found = []
        for number in range(2, count + 2):
            host = Host(f"{tag}h{number}", f"{network}.{number}")
            made(["ip", "netns", "del", host.name], "ip", "netns", "add", host.name)
            cable = ["ip", "link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", host.name]
            made(["ip", "link", "del", host.name], *cable)
            _command("ip", "link", "set", host.name, "master", bridge, "up")
            _command(*host.command("ip", "addr", "add", f"{host.address}/24", "dev", "eth0"))
            _command(*host.command("ip", "link", "set", "eth0", "up"))
            _command(*host.command("ip", "link", "set", "lo", "up"))
            found.append(host)
        yield f"{network}.1", found


@contextmanager
def s3_server(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """An S3 server: its address, and the variables of who may use it; without rclone, the test is skipped."""
    rclone = shutil.which("rclone")
    if not rclone:
        pytest.skip("needs rclone, which the group dev has for Linux")
    (folder / "bucket").mkdir(parents=True)
    port = free_port()
    command = [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "tester,secret", str(folder)]
    with running(command, folder.parent / "rclone.log") as program:
        wait_for("127.0.0.1", port, program)
        yield f"http://127.0.0.1:{port}", {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret"}
