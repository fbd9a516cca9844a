"""Run a stage in a project and report what it used: `python trace_stage.py REPORT SCRIPT [OPTION ...]`.

The report is JSON: the project's modules that were imported, its files that were opened or renamed into place, and the
parameters that were read (`model.*` where a whole section was turned into a dictionary).
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
written: set[str] = set()
parameters: set[str] = set()
sections: dict[int, tuple[str, BaseModel]] = {}


def note_open(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("open", "os.rename"):
        name, into = arguments[0], written if event == "os.rename" or arguments[1] in ("w", "wb") else opened
        name = arguments[1] if event == "os.rename" else name
        if isinstance(name, str | bytes | os.PathLike):
            path = Path(os.path.abspath(os.fsdecode(name)))
            if path.is_relative_to(project):
                into.add(str(path.relative_to(project)))


def note_read(self: BaseModel, name: str) -> Any:
    value = object.__getattribute__(self, name)
    # To check a combination of values is not to use them.
    if sys._getframe(1).f_code.co_filename.endswith("lenet/params.py"):
        return value
    fields = type(self).__pydantic_fields__
    # Sections of params.yaml are read from `Params`; that of a saved model is not.
    if type(self).__name__ == "Params" and name in fields:
        sections[id(value)] = name, value
    elif type(self).__name__ == "Params" and name == "__dict__":
        parameters.add("everything, as a dictionary")
    elif id(self) in sections:
        section = sections[id(self)][0]
        if name == "__dict__":  # model_dump() reads it.
            parameters.add(f"{section}.*")
        elif name in fields:
            parameters.add(f"{section}.{name}")
    return value


def note_copy(self: BaseModel, **changes: Any) -> BaseModel:
    copied = model_copy(self, **changes)
    if id(self) in sections:
        sections[id(copied)] = sections[id(self)][0], copied
    return copied


model_copy = BaseModel.model_copy
BaseModel.model_copy = note_copy  # type: ignore[method-assign, assignment]
BaseModel.__getattribute__ = note_read  # type: ignore[method-assign, assignment]
sys.addaudithook(note_open)
sys.path.insert(0, str(project / "stages"))
sys.argv = [script, *options]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    modules = [str(Path(file).relative_to(project)) for file in files if file and Path(file).is_relative_to(project)]
    found = {"modules": {script, *modules}, "opened": opened, "written": written, "parameters": parameters}
    Path(report).write_text(json.dumps({kind: sorted(items) for kind, items in found.items()}))
