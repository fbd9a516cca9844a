"""The remotes that docs/cluster.md names, with real servers: Git and DVC over SSH, DVC over S3. And hosts."""

import socket
from pathlib import Path

import pytest
from conftest import commit, sh
from hosts import Host, hosts, running, s3_server, ssh_server, wait_for

FILES = ["models/lenet.pt", "data/processed/training.pt", "data/features.npz"]


def same_data(project: Path, clone: Path) -> None:
    for path in FILES:
        assert (clone / path).read_bytes() == (project / path).read_bytes()


def test_git_and_dvc_over_ssh(digits_project: Path, tmp_path: Path) -> None:
    sh("git", "init", "--quiet", "--bare", "--initial-branch", "main", str(tmp_path / "remote.git"), cwd=tmp_path)
    with ssh_server(tmp_path / "ssh") as server:
        me, other = (server.home(tmp_path / name) for name in ("me", "other"))
        sh("git", "remote", "add", "origin", f"store:{tmp_path}/remote.git", cwd=digits_project, status=0, **me)
        sh(
            "dvc",
            "remote",
            "add",
            "--default",
            "storage",
            f"ssh://store{tmp_path}/storage",
            cwd=digits_project,
            status=0,
            **me,
        )
        commit(digits_project, "the remotes")
        sh("git", "push", "--quiet", "origin", "HEAD:main", cwd=digits_project, status=0, **me)
        sh("dvc", "push", cwd=digits_project, status=0, **me)
        sh("git", "clone", "--quiet", f"store:{tmp_path}/remote.git", "clone", cwd=tmp_path, status=0, **other)
        sh("dvc", "pull", cwd=tmp_path / "clone", status=0, **other)
        same_data(digits_project, tmp_path / "clone")
        # Who does not have the key is refused.
        (tmp_path / "other/.ssh/id_ed25519").unlink()
        text = sh("git", "ls-remote", "origin", cwd=tmp_path / "clone", status=128, **other)
        assert "Permission denied" in text


def test_dvc_over_s3(digits_project: Path, tmp_path: Path) -> None:
    """The credentials are the user's own: the project has none."""
    pytest.importorskip("dvc_s3", reason="needs dvc-s3")
    with s3_server(tmp_path / "s3") as (address, user):
        sh("dvc", "remote", "add", "--default", "storage", "s3://bucket/lenet", cwd=digits_project)
        sh("dvc", "remote", "modify", "storage", "endpointurl", address, cwd=digits_project)
        commit(digits_project, "a remote")
        assert "Everything" not in sh("dvc", "push", cwd=digits_project, status=0, **user)
        sh("git", "clone", "--quiet", str(digits_project), "clone", cwd=tmp_path)
        sh("dvc", "pull", cwd=tmp_path / "clone", status=0, **user)
        same_data(digits_project, tmp_path / "clone")
        assert "secret" not in (digits_project / ".dvc/config").read_text()
        wrong = user | {"AWS_SECRET_ACCESS_KEY": "wrong"}
        assert "ERROR" in sh("dvc", "status", "--cloud", cwd=tmp_path / "clone", status=None, **wrong)


def test_hosts_that_are_cut_off_and_mended(tmp_path: Path) -> None:
    """A host that is cut off hears nobody and nobody hears it; the others do not notice, whichever host it is."""
    with (
        hosts(2) as (address, found),
        socket.create_server((address, 8000)),
        socket.socket(type=socket.SOCK_DGRAM) as here,
    ):
        here.bind((address, 8000))
        here.settimeout(0.5)
        served = found[0].command("python", "-m", "http.server", "--bind", found[0].address, "8000")
        with running(served, tmp_path / "log") as program:
            wait_for(found[0].address, 8000, program)

            def ask(host: Host, to: str, status: int = 0) -> str:
                code = f"import socket; socket.create_connection(('{to}', 8000), 1)"
                return sh(*host.command("python", "-c", code), cwd=tmp_path, status=status)

            for host, other in (found, found[::-1]):
                ask(host, address)
                ask(other, address)
                ask(found[1], found[0].address)
                host.cut()
                assert "timed out" in ask(host, address, status=1)
                assert "timed out" in ask(found[1], found[0].address, status=1)
                code = f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'word', ('{address}', 8000))"
                sh(*host.command("python", "-c", code), cwd=tmp_path)
                with pytest.raises(TimeoutError):
                    here.recv(4)
                ask(other, address)
                host.mend()
                ask(host, address)
                ask(found[1], found[0].address)
