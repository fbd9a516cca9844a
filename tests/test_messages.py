"""Messages: what a user reads when something is missing, fails or takes time."""

import errno
import fcntl
import os
import pty
import re
import shutil
import socket
import struct
import subprocess
import sys
import termios
import threading
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT, RunLenet, RunStage, assert_refused, set_params, set_source, sh

from lenet.errors import printable
from lenet.training import loop


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the training fail with this error."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(loop, "train", fail)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "MPS backend out of memory (MPS allocated: 9.00 GB)",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000 bytes.",
    ],
)
def test_too_little_memory(
    digits_project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    fail_with(RuntimeError(text), monkeypatch)
    assert_refused(run_stage(digits_project, "train"), "not enough memory; end other programs or use a smaller batch")


@pytest.mark.parametrize(
    "text", ["CUDA error: an illegal memory access was encountered", "could not create a memory object"]
)
def test_other_errors_that_mention_memory(
    digits_project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    fail_with(RuntimeError(text), monkeypatch)
    outcome = run_stage(digits_project, "train")
    assert outcome.status == 1
    assert outcome.error == f"error: unexpected RuntimeError: {text}; run it again with --debug for the traceback\n"


def test_a_system_error_without_a_file_blames_nothing(
    digits_project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(OSError(errno.EMFILE, os.strerror(errno.EMFILE)), monkeypatch)
    outcome = run_stage(digits_project, "train")
    assert outcome.status == 1
    assert outcome.error == "error: Too many open files; run it again with --debug for the traceback\n"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("/dev/full", "No space left on device; make room on the disk and run this again"),
        ("a pipe", "Broken pipe; the program that read this output has ended"),
    ],
)
def test_standard_output_that_cannot_be_written(digits_project: Path, output: str, words: str) -> None:
    if output == "/dev/full" and not Path(output).exists():
        pytest.skip("needs /dev/full, which Linux has")
    command = [sys.executable, "stages/plot.py"]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if output == "a pipe":
        process = subprocess.Popen(
            command, cwd=digits_project, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        error = process.stderr.read()
        process.stderr.close()
        status = process.wait(60)
    else:
        with open(output, "w") as full:
            done = subprocess.run(
                command,
                cwd=digits_project,
                env=variables,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
            )
        status, error = done.returncode, done.stderr
    assert error == f"error: standard output: {words}\n"
    assert status == 1


def without(program: str, folder: Path) -> str:
    """A PATH on which this program is not found: links to all others in a folder."""
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for path in Path(place).glob("*"):
            link = folder / path.name
            if path.name != program:
                link.unlink(missing_ok=True)
                link.symlink_to(path)
    return str(folder)


@pytest.mark.parametrize("command", ["preset mlp", "zoo", "verify", "describe mlp"])
def test_without_git(
    digits_run: Path, tmp_path: Path, run_lenet: RunLenet, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("PATH", without("git", tmp_path / "bin"))
    outcome = run_lenet(digits_run, *command.split())
    assert_refused(outcome, "git is not installed or not on PATH; install it and run this again")


def test_dvc_without_the_environment_activated(digits_project: Path, tmp_path: Path) -> None:
    """`.venv/bin/dvc repro` runs the stages with the `python` on PATH, here one without the packages."""
    (tmp_path / "bin").mkdir()
    # Without `site` there are no site-packages.
    (tmp_path / "bin/python").write_text(f'#!/bin/sh\nexec "{sys.base_prefix}/bin/python3" -S "$@"\n')
    (tmp_path / "bin/python").chmod(0o755)
    dvc = shutil.which("dvc")
    assert dvc
    set_params(digits_project, "plot.mistakes=3")
    text = sh(dvc, "repro", cwd=digits_project, status=255, PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert "Traceback" not in text
    [line] = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "is not the Python of this project's environment; activate it, `source .venv/bin/activate`" in line


def test_a_package_that_is_missing(digits_project: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    outcome = run_stage(digits_project, "train")
    assert_refused(outcome, f"{sys.executable} has no module tqdm; activate the project's environment")


def test_texts_from_elsewhere_are_printed_safely() -> None:
    assert printable("503 busy\x1b[31m\r\nX: \x07\u202e\udcff") == "503 busy\\x1b[31m X: \\x07\\u202e\\udcff"
    assert printable("Größe 数 ok") == "Größe 数 ok"


def test_a_server_cannot_write_to_the_terminal(
    tmp_path: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's reason phrase goes into a warning and into the error."""
    listener = socket.create_server(("127.0.0.1", 0))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_source(monkeypatch, mirrors=())
    monkeypatch.setenv("MNIST_MIRROR", f"http://127.0.0.1:{listener.getsockname()[1]}/\x1b[2J")

    def answer() -> None:
        connection, _ = listener.accept()
        connection.recv(10_000)
        connection.sendall(b"HTTP/1.0 503 busy\x1b[31m\x07\r\n\r\n")
        connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    outcome = run_stage(tmp_path, "download")
    thread.join()
    listener.close()
    assert outcome.status == 1
    assert "503 busy\\x1b[31m" in outcome.error
    assert outcome.error.count("warning: ") == outcome.error.count("error: ") == 1
    assert outcome.error.replace("\n", "").isprintable()


def on_a_terminal(*command: str, cwd: Path, columns: int) -> str:
    """What a program writes to a terminal of that width, standard output and errors together."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with subprocess.Popen(command, cwd=cwd, stdout=slave, stderr=slave) as process:
        os.close(slave)
        written = b""
        try:
            while part := os.read(master, 2**16):
                written += part
        except OSError:  # This is how Linux reports that the program has closed its terminal.
            pass
        os.close(master)
    assert process.returncode == 0, written
    return written.decode()


def shown(written: str) -> list[str]:
    """The lines that a terminal shows in the end: what follows a carriage return overwrites the line."""
    lines = []
    for line in written.split("\r\n"):
        text = ""
        for part in line.split("\r"):
            text = part + text[len(part) :]
        lines.append(text.rstrip())
    return lines


def test_the_progress_bar_keeps_to_itself(digits_project: Path) -> None:
    """It leaves nothing behind in the lines of the messages, and is wide enough in every epoch."""
    written = on_a_terminal(sys.executable, "stages/train.py", cwd=digits_project, columns=110)
    assert [line.split(":")[0] for line in shown(written)] == ["lenet", "epoch 1/2", "epoch 2/2", ""]
    assert written.startswith("lenet: "), "no bar before the first message"
    for epoch in (1, 2):
        bars = re.findall(rf"epoch {epoch}/2: +\d+%\|(.*?)\|", written)
        assert bars
        assert min(map(len, bars)) > 40


def test_the_demo_ends_with_commands_that_work_in_order(tmp_path: Path) -> None:
    """Typed one after the other, the last of them runs the full MNIST in the user's folder, not in demo/."""
    recipe = (ROOT / "Makefile").read_text().split("demo: ")[1].split("\n\n")[0]
    lines = [line.split("'")[1] for line in recipe.splitlines() if line.startswith("\t  '  ")]
    commands = [re.split(r" {2,}", line.strip())[0] for line in lines if not line.startswith("  demo/")]
    assert len(commands) == 4
    (tmp_path / "demo").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    functions = [f'{name}() {{ echo "$(basename $PWD) {name} $*"; }}' for name in ("dvc", "lenet")]
    (tmp_path / ".venv/bin/activate").write_text("\n".join(functions))
    text = sh("bash", "-ec", "\n".join(commands), cwd=tmp_path)
    assert text.splitlines() == ["demo dvc exp show", "demo lenet report --open", f"{tmp_path.name} dvc repro"]


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option: str) -> None:
    text = sh("lenet", option, cwd=ROOT)
    for command in ("describe", "data", "presets", "preset", "zoo", "verify"):
        assert re.search(rf"^  {command} .*\.$", text, re.MULTILINE), "its summary is not cut off"
        assert sh("lenet", command, option, cwd=ROOT).startswith(f"Usage: lenet {command} [OPTIONS]")
    for stage in ("download", "train"):
        script = f"stages/{stage}.py"
        assert sh(sys.executable, script, option, cwd=ROOT).startswith(f"Usage: python {script} [OPTIONS]")


def test_version() -> None:
    assert sh("lenet", "--version", cwd=ROOT) == f"lenet {version('lenet')}\n"


def test_presets_are_listed(run_lenet: RunLenet) -> None:
    text = run_lenet(ROOT, "presets").output
    listed = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
    assert listed == sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
    assert "(claimed: 99.05%)" in text
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize(("command", "missing"), [("describe", "params.yaml: no such file"), ("presets", "no presets")])
def test_outside_of_a_project(tmp_path: Path, run_lenet: RunLenet, command: str, missing: str) -> None:
    assert_refused(run_lenet(tmp_path, command), f"{missing}; run this in the project's root")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("source: a\n", "must be a mapping that has the strings `about` and `source`"),
        ("about: 1\nsource: a\n", "must be a mapping that has the strings `about` and `source`"),
        ("- 1\n", "must be a mapping that has the strings `about` and `source`"),
        (
            "about: a\nsource: b\ntrain: 3\n",
            "besides about, source and claimed, only the sections of params.yaml are allowed",
        ),
        ("about: a\nsource: b\nclaimed: 99\n", "claimed is 99; it must be a test accuracy between 0 and 1"),
    ],
)
def test_a_preset_of_another_form(tmp_path: Path, run_lenet: RunLenet, content: str, words: str) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/odd.yaml").write_text(content)
    assert_refused(run_lenet(tmp_path, "presets"), "presets/odd.yaml: ", words)
