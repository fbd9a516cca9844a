"""What every command line has in common: shared options, one-line errors and exit statuses."""

import atexit
import errno
import gc
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

import lenet.processor  # noqa: F401  Its settings have to be there before PyTorch is imported.
from lenet.errors import InputError

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameters, every knob of the pipeline.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, not just its one line.")]


_ADVICE = {
    errno.ENOSPC: "make room on the disk and run this again",
    errno.EACCES: "change its permissions and run this again",
    errno.EROFS: "run this where it may write",
    errno.EISDIR: "a file belongs there: move the folder away",
    errno.ENOTDIR: "a folder belongs there: move the file away",
    errno.EEXIST: "a folder belongs there: move the file away",
}


class Stopped(BaseException):
    """SIGINT, which is Ctrl-C, or SIGTERM told this program to end; the argument is the signal."""


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Turn an exception into one line on standard error and exit status 1; with `debug`, let it through."""
    try:
        yield
    except Exception as error:
        if debug:
            raise
        print("error:", " ".join(_message(error).split()), file=sys.stderr)
        raise typer.Exit(1) from None


def _message(error: Exception) -> str:
    match error:
        case InputError():
            return str(error)
        case FileNotFoundError(filename=str() | Path() as name):
            return f"{name}: no such file; `dvc repro`, in the project's root, makes what a stage reads"
        case OSError(strerror=str(reason)):
            where = "standard output" if error.filename is None else error.filename
            return f"{where}: {reason}; {_ADVICE.get(error.errno or 0, 'mend that and run this again')}"
        case MemoryError() | RuntimeError() if isinstance(error, MemoryError) or "memory" in str(error):
            return "not enough memory; end other programs or use a smaller batch_size, and run this again"
        case _:
            return f"unexpected {type(error).__name__}: {error}; run it again with --debug for the traceback"


def run(name: str, *commands: Callable[..., Any]) -> None:
    """Run a function as a Typer program, several as subcommands, and exit; a bad command line is one line, status 2.

    Told to end by a signal, the function gets a `Stopped` wherever it is, so that what is half written is removed.
    """
    # Importing PyTorch makes objects by the hundred thousand, and all of them stay. To look for garbage among them so
    # often, and at the end once more, takes half a second.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    # Typer's rich boxes are off: an error has to fit one line, and --help is read in logs and pagers as well.
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    for command in commands:
        app.command()(command)
    # What a shell runs in the background ignores Ctrl-C, and is to go on doing so.
    signals = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    try:
        for number in signals:
            signal.signal(number, _stop)
        status = app(prog_name=name, standalone_mode=False)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else name
        print(f"error: {error.format_message()} Try: {where} --help", file=sys.stderr)
        status = error.exit_code
    except Stopped as stop:
        print(f"error: stopped by {stop.args[0].name}; run the same command again", file=sys.stderr)
        status = 128 + stop.args[0]  # As shells number it.
    finally:
        # All is written, or removed: from here on a signal may end it at once.
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
    sys.exit(status)


def _stop(number: int, frame: FrameType | None) -> None:
    # Once is enough: what follows is the cleaning up.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    # In the midst of an import PyTorch's C++ swallows an exception, or aborts.
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    if frame:
        signal.signal(signal.SIGALRM, lambda _, later: _stop(number, later))
        signal.setitimer(signal.ITIMER_REAL, 0.02)
    else:
        raise Stopped(signal.Signals(number))
