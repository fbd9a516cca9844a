"""What many experiments are doing: a table that is redrawn in a terminal, a line for each change elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table

STATES = ("waiting", "running", "done", "failed")
ROWS = 30  # Of a table, so that it fits a terminal.


class Row(NamedTuple):
    """An experiment: where it runs or ran, since when (of `time.monotonic`), and what there is to say of it."""

    state: str = "waiting"
    host: str = ""
    since: float = 0.0
    accuracy: float | None = None
    note: str = ""


class Progress:
    """The experiments of a sweep, by name."""

    def __init__(self, names: Iterable[str]) -> None:
        self._rows = dict.fromkeys(names, Row())
        self._says = ""
        self._console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=2)

    def shown(self) -> AbstractContextManager[Any]:
        """Redraw the table as long as this context lasts, if standard output is a terminal."""
        return self._live if self._console.is_terminal else nullcontext()

    def set(self, name: str, state: str, host: str = "", accuracy: float | None = None, note: str = "") -> None:
        """Change what is known of an experiment."""
        row = self._rows[name]
        if (row.state, row.host) == (state, host) and not note:
            return
        self._rows[name] = Row(state, host, time.monotonic(), accuracy, note)
        if not self._console.is_terminal and (state != "waiting" or note):
            said = [state, f"on {host}" if host else "", "" if accuracy is None else f"{accuracy:.2%}"]
            print(f"{name}: {' '.join(filter(None, said))}{': ' if note else ''}{note}", flush=True)

    def none_but(self, running: Collection[str]) -> None:
        """Set those that run no more, and have not ended, back to waiting: their worker is lost."""
        for name, row in self._rows.items():
            if row.state == "running" and name not in running:
                self._rows[name] = Row(note=row.note)

    def say(self, text: str) -> None:
        """Say something of all of them; an empty text takes it back."""
        if text and text != self._says and not self._console.is_terminal:
            print(text, flush=True)
        self._says = text

    def _table(self) -> Table:
        counts = Counter(row.state for row in self._rows.values())
        title = ", ".join(f"{counts[state]} {state}" for state in STATES)
        accuracies = [row.accuracy for row in self._rows.values() if row.accuracy is not None]
        if accuracies:
            title += f"; accuracy so far {min(accuracies):.2%} to {max(accuracies):.2%}"
        table = Table(title=title, caption=self._says or None, title_justify="left", box=None, pad_edge=False)
        for column in ("experiment", "", "host", "s", "accuracy", ""):
            table.add_column(column, no_wrap=True, justify="right" if column in ("s", "accuracy") else "left")
        order = ("running", "failed", "done", "waiting")
        rows = sorted(self._rows.items(), key=lambda item: (order.index(item[1].state), -item[1].since))
        for name, row in rows[:ROWS]:
            seconds = f"{time.monotonic() - row.since:.0f}" if row.state == "running" else ""
            accuracy = "" if row.accuracy is None else f"{row.accuracy:.2%}"
            table.add_row(name, row.state, row.host, seconds, accuracy, row.note)
        if len(rows) > ROWS:
            table.add_row(f"... {len(rows) - ROWS} more")
        return table
