"""What all command lines have in common: shared options, one-line errors and exit statuses."""

import atexit
import errno
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer
from typer.exceptions import TyperException

import lenet.processor  # noqa: F401  PyTorch's libraries read its settings as they are loaded.
from lenet.errors import InputError, is_out_of_memory, printable

__all__ = ["Argument", "Debug", "Exit", "Option", "ParamsFile", "Stopped", "one_line_errors", "run"]

ParamsFile = Annotated[Path, Option("--params", help="The file with all parameters of the pipeline.")]
Debug = Annotated[bool, Option("--debug", help="Show the traceback of an error.")]

_ADVICE = {
    errno.ENOSPC: "make room on the disk and run this again",
    errno.EACCES: "change its permissions and run this again",
    errno.EROFS: "run this where it may write",
    errno.EISDIR: "a file belongs there: move the folder away",
    errno.ENOTDIR: "a folder belongs there: move the file away",
    errno.EEXIST: "a folder belongs there: move the file away",
    errno.EPIPE: "the program that read this output has ended",
}
_TRACEBACK = "run it again with --debug for the traceback"


class Stopped(BaseException):
    """SIGINT (Ctrl-C) or SIGTERM ended this program; the argument is the signal."""


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Turn an exception into one line on standard error and exit status 1; with `debug`, let it through."""
    try:
        yield
        sys.stdout.flush()
    except Exception as error:
        if debug:
            raise
        print("error:", printable(_message(error)), file=sys.stderr)
        raise Exit(1) from None


def _message(error: Exception) -> str:
    match error:
        case InputError():
            return str(error)
        case FileNotFoundError(filename=str() | Path() as name):
            return f"{name}: no such file; `dvc repro`, in the project's root, makes what a stage reads"
        case OSError(strerror=str(reason), filename=name):
            where = f"{name}: " if name else "standard output: " if _standard_output_fails() else ""
            return f"{where}{reason}; {_ADVICE.get(error.errno or 0, _TRACEBACK)}"
        case ModuleNotFoundError(name=str(module)):
            return f"{sys.executable} has no module {module}; activate the project's environment and run this again"
        case _ if is_out_of_memory(error):
            return "not enough memory; end other programs or use a smaller batch_size, and run this again"
        case _:
            return f"unexpected {type(error).__name__}: {error}; {_TRACEBACK}"


def _standard_output_fails() -> bool:
    """Whether standard output cannot be written to, which is found by writing what it still holds."""
    try:
        sys.stdout.flush()
    except OSError:
        # Otherwise Python tries once more at exit, and reports it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def run(name: str, *commands: Callable[..., Any]) -> None:
    """Run one function as a Typer program, several as subcommands, and exit. A usage error is one line, status 2.

    If a signal ends the program, `Stopped` is raised in the running function, which can then remove half-written files.
    """
    # Importing PyTorch makes hundreds of thousands of objects, all of which stay. Searching them for garbage as often
    # as Python does by default, and once more at the end, takes half a second.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    # Without Typer's boxes: an error has to fit one line, and --help is read in logs and pagers as well.
    settings = {"help_option_names": ["-h", "--help"]}
    app = Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, context_settings=settings)
    for command in commands:
        app.command(context_settings=settings)(command)
    if len(commands) > 1:
        app.callback()(_program)
    # A shell starts background jobs with Ctrl-C ignored: leave that as it is.
    signals = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    try:
        for number in signals:
            signal.signal(number, _stop)
        status = app(prog_name=name, standalone_mode=False)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else name
        print(f"error: {printable(error.format_message())} Try: {where} --help", file=sys.stderr)
        status = error.exit_code
    except Stopped as stop:
        print(f"error: stopped by {stop.args[0].name}; run the same command again", file=sys.stderr)
        status = 128 + stop.args[0]  # As shells number it.
    finally:
        # Everything is written or removed by now: a further signal may end the program at once.
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
    sys.exit(status)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lenet {version('lenet')}")
        raise Exit


def _program(
    version: Annotated[
        bool, Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Run and compare experiments; use, publish and verify their results. The stages are scripts in stages/."""


def _stop(number: int, frame: FrameType | None) -> None:
    # A second signal must not interrupt the clean-up.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    # During an import PyTorch's C++ code swallows an exception, or aborts: wait for the import to end.
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    if frame:
        signal.signal(signal.SIGALRM, lambda _, later: _stop(number, later))
        signal.setitimer(signal.ITIMER_REAL, 0.02)
    else:
        raise Stopped(signal.Signals(number))
