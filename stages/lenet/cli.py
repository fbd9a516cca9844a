"""What every command line has in common: shared options, one-line errors and exit statuses."""

import errno
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from lenet import InputError

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


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Turn an exception into one line on standard error and exit status 1; with `debug`, let it through."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        print("error:", " ".join(_message(error).split()), file=sys.stderr)
        # 128 + the signal is what a shell makes of a program that one ended.
        raise typer.Exit(128 + _signal(error) if isinstance(error, KeyboardInterrupt) else 1) from None


def _signal(error: KeyboardInterrupt) -> signal.Signals:
    return error.args[0] if error.args else signal.SIGINT


def _terminate(number: int, _: object) -> None:
    """End as Ctrl-C does: what is half written is removed."""
    raise KeyboardInterrupt(signal.Signals(number))


def _message(error: BaseException) -> str:
    match error:
        case InputError():
            return str(error)
        case KeyboardInterrupt():
            return f"stopped by {_signal(error).name}; run the same command again"
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
    """Run a function as a Typer program, several as subcommands; a bad command line is one line, and status 2."""
    # Typer's rich boxes are off: an error has to fit one line, and --help is read in logs and pagers as well.
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    for command in commands:
        app.command()(command)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(app(prog_name=name, standalone_mode=False))
    except TyperException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else name
        print(f"error: {error.format_message()} Try: {where} --help", file=sys.stderr)
        sys.exit(error.exit_code)
