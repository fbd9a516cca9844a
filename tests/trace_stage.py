"""Run one stage and report what it used: `python trace_stage.py REPORT SCRIPT [OPTION ...]`, in a project.

The report is JSON: the project's own modules that were imported, its files that were opened, and the parameters
whose values were looked at.
"""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

project = Path.cwd()
report, script, *options = sys.argv[1:]
opened: set[str] = set()
parameters: set[str] = set()
sections: dict[int, tuple[str, BaseModel]] = {}


def note_open(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path = Path(os.path.abspath(os.fsdecode(arguments[0])))
        if path.is_relative_to(project):
            opened.add(str(path.relative_to(project)))


def note_read(self: BaseModel, name: str) -> Any:
    value = object.__getattribute__(self, name)
    fields = type(self).__pydantic_fields__
    # A section is of params.yaml if it is taken from the whole; that of a saved model, say, stands alone.
    if type(self).__name__ == "Params" and name in fields:
        sections[id(value)] = name, value
    elif id(self) in sections:
        # The whole dictionary is what model_dump() reads.
        read = fields if name == "__dict__" else [name] if name in fields else []
        parameters.update(f"{sections[id(self)][0]}.{field}" for field in read)
    return value


BaseModel.__getattribute__ = note_read  # type: ignore[method-assign, assignment]
sys.addaudithook(note_open)
sys.path.insert(0, str(project / "stages"))
sys.argv = [script, *options]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    modules = [str(Path(file).relative_to(project)) for file in files if file and Path(file).is_relative_to(project)]
    found = {"modules": sorted({script, *modules}), "opened": sorted(opened), "parameters": sorted(parameters)}
    Path(report).write_text(json.dumps(found))
