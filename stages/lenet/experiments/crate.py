"""A published run as a Workflow Run RO-Crate: what was run on what, and what came out, for programs to read.

Sources: RO-Crate 1.1, https://w3id.org/ro/crate/1.1, and its profile Provenance Run Crate 0.5,
https://w3id.org/ro/wfrun/provenance/0.5, which includes Workflow Run Crate and Process Run Crate. DVC's pipeline is the
workflow, a stage one of its steps and its script the tool that the step runs.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from lenet.data.catalog import CATALOG, OWN
from lenet.experiments.captions import PICTURES, caption, dataset_title
from lenet.experiments.models import MODEL
from lenet.experiments.presets import flattened
from lenet.experiments.revisions import Result
from lenet.params import parse_yaml

NAME = "ro-crate-metadata.json"
WORKFLOW = "dvc.yaml"
WEIGHTS, ONNX, REPORT, CARD, CHECKSUMS = "lenet.pt", "model.onnx", "report.html", "README.md", "SHA256SUMS"
LICENCE = "https://spdx.org/licenses/MIT"

TERMS = "https://w3id.org/ro/terms/workflow-run/context"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}

# Not Python's table, to which each system adds its own.
_FORMATS = {
    ".csv": "text/csv",
    ".gz": "application/gzip",
    ".html": "text/html",
    ".json": "application/json",
    ".md": "text/markdown",
    ".npz": "application/zip",
    ".png": "image/png",
    ".pt": "application/zip",
    ".txt": "text/plain",
    ".yaml": "application/yaml",
    "LICENSE": "text/plain",
    CHECKSUMS: "text/plain",
    "dvc.lock": "application/yaml",
    "environment.lock": "application/json",
}

_ABOUT = {
    WEIGHTS: "The trained weights, with the network's parameters and the classes' names: a dictionary for torch.load",
    ONNX: "The trained network with its normalisation and softmax, in the format ONNX",
    REPORT: "A page about the run, which needs no network: metrics, curves, pictures, parameters, provenance",
    CARD: "The model card",
    CHECKSUMS: "The SHA-256 of each other file",
    "LICENSE": "The licence",
    "dvc.lock": "The checksums of all that the run read and wrote, and the parameters that it used",
    "environment.lock": "The system, the processor and the packages with which the run was made",
    "params.yaml": "All parameters, with what each is for",
    "requirements.txt": "The packages, locked with their hashes",
    "metrics/per_class.json": "The accuracy of each class on the test images",
    "metrics/test.json": "The metrics on the test images",
    "metrics/train.json": "The metrics on the training and validation images, and the number of parameters",
    "plots/per_class.csv": "Precision, recall and F1 of each class on the test images",
    "plots/predictions.csv": "The prediction for each test image, and its probability",
    "plots/training.csv": "Loss, accuracy and learning rate after each epoch",
}

# What a result depends on, beside the project's own code.
_SOFTWARE = {
    "python": ("Python", "https://www.python.org/"),
    "torch": ("PyTorch", "https://pytorch.org/"),
    "numpy": ("NumPy", "https://numpy.org/"),
    "pandas": ("pandas", "https://pandas.pydata.org/"),
    "pillow": ("Pillow", "https://python-pillow.github.io/"),
    "scikit-learn": ("scikit-learn", "https://scikit-learn.org/"),
    "matplotlib": ("Matplotlib", "https://matplotlib.org/"),
}

_KINDS = {bool: "Boolean", int: "Integer", float: "Float"}
_DONE = "http://schema.org/CompletedActionStatus"

Entity = dict[str, Any]


class Origin(NamedTuple):
    """Where a run comes from.

    Attributes
    ----------
    commit : str
        Its hash.
    author : str
        The name of the commit's author.
    date : str
        When it was committed, in ISO 8601.
    repository : str
        Where its code is on the web, as its pyproject.toml says; empty if that does not say.
    packages : dict
        package -> version, those that its requirements.txt locks.
    environment : dict
        What the run was made with, of environment.lock; empty if that is of other outputs.
    program : str
        The version of this package, which publishes the run.
    """

    commit: str
    author: str
    date: str
    repository: str
    packages: dict[str, str]
    environment: dict[str, str]
    program: str


class _Stage(NamedTuple):
    """A stage as it ran: the paths that it read and wrote, and the full names of the parameters that it used."""

    name: str
    about: str
    reads: list[str]
    parameters: list[str]
    writes: list[str]

    @property
    def script(self) -> str:
        return f"stages/{self.name}.py"


def metadata(title: str, about: str, origin: Origin, result: Result, files: dict[str, bytes]) -> bytes:
    """The content of ro-crate-metadata.json. The same arguments give the same bytes.

    Parameters
    ----------
    title, about : str
        The name of the whole, and what it is, in a sentence.
    files : dict
        path -> content, of all files of the folder but the checksums and this one, dvc.lock and dvc.yaml among them.
    """
    from rocrate.model import ComputerLanguage
    from rocrate.rocrate import ROCrate

    lock: Any = parse_yaml(files["dvc.lock"], "dvc.lock")
    stages = _stages(lock, files[WORKFLOW], result)
    recorded = {
        entry["path"]: entry
        for stage in lock["stages"].values()
        for entry in (*stage.get("deps", ()), *stage.get("outs", ()))
    }
    used = {path for stage in stages for path in (*stage.reads, *stage.writes)}
    data = {path: _file_name(path) for path in recorded if path in used and _file_name(path) in files}
    elsewhere = {path: _elsewhere(path, recorded[path], result) for path in recorded if path in used - data.keys()}
    roles = {name: path for path, name in data.items()}
    names = data | {path: entity["@id"] for path, entity in elsewhere.items()}
    outputs = [path for stage in stages for path in stage.writes]

    crate = ROCrate(version="1.1")
    crate.metadata.extra_contexts.append(TERMS)
    dvc = {"name": "DVC pipeline", "url": _ref("https://dvc.org/"), **_version("version", origin.packages.get("dvc"))}
    language = crate.add(ComputerLanguage(crate, "#dvc-pipeline", properties=dvc))
    workflow = _workflow(origin, stages, outputs) | _payload(WORKFLOW, files[WORKFLOW])
    entity = crate.add_workflow(dest_path=WORKFLOW, main=True, lang=language, properties=workflow)
    for path, content in sorted((files | {CHECKSUMS: b""}).items()):
        if path != WORKFLOW:
            described = _payload(path, content) | _words(path, result)
            if path in roles:
                described["exampleOfWork"] = _ref(f"#file/{roles[path]}")
            crate.add_file(dest_path=path, properties=described)

    actions = ["#run", *(f"#run/{stage.name}" for stage in stages), "#publication"]
    entities = [
        *_context(origin, result),
        *elsewhere.values(),
        *_parameters([*used], recorded, stages, result),
        *(each for place, stage in enumerate(stages) for each in _step(place, stage, origin, recorded, names)),
        *_runs(origin, stages, outputs, names),
        *_publication(origin, files, names[MODEL]),
    ]
    for each in entities:
        crate.add_jsonld(each)
    root = {
        "name": title,
        "description": about,
        "datePublished": origin.date,
        "license": _ref(LICENCE),
        "author": _ref("#author"),
        "conformsTo": [_ref(profile) for profile in PROFILES],
        "mainEntity": entity,
        "mentions": [_ref(action) for action in actions],
        "identifier": f"swh:1:rev:{origin.commit}",
        "version": origin.commit,
    }
    for key, value in root.items():
        crate.root_dataset[key] = value
    text = json.dumps(crate.metadata.generate(), indent=2, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode()


def _ref(identifier: str) -> Entity:
    return {"@id": identifier}


def _refs(identifiers: Iterable[str]) -> Entity | list[Entity]:
    """References without repetition; a single one stands alone, as JSON-LD's compact form has it."""
    found = [_ref(each) for each in dict.fromkeys(identifiers)]
    return found[0] if len(found) == 1 else found


def _version(key: str, version: str | None) -> Entity:
    return {key: version} if version else {}


def _file_name(path: str) -> str:
    """What an output is called in the folder."""
    return WEIGHTS if path == MODEL else path


def _format(path: str) -> str:
    return _FORMATS.get(path) or _FORMATS.get(PurePosixPath(path).suffix, "application/octet-stream")


def _payload(path: str, content: bytes) -> Entity:
    """What is known of a file in the folder, whose content is empty if it is not known yet."""
    known = {"sha256": hashlib.sha256(content).hexdigest(), "contentSize": str(len(content))} if content else {}
    return {"encodingFormat": _format(path), **known}


def _words(path: str, result: Result) -> Entity:
    if path in PICTURES:
        title, _, shown = caption(path, result)
        return {"name": f"{path}: {title}", "description": shown}
    words = {"name": path, **({"description": f"{_ABOUT[path]}."} if path in _ABOUT else {})}
    return words | ({"about": _ref("./")} if path == CARD else {})


def _stages(lock: Any, workflow: bytes, result: Result) -> list[_Stage]:
    """The stages that dvc.lock lists, in the order of dvc.yaml."""
    declared: Any = parse_yaml(workflow, WORKFLOW)
    values = result.params
    own = PurePosixPath(str(values["data"].get("folder", ""))).as_posix()
    stages = []
    for name in [name for name in declared["stages"] if name in lock["stages"]]:
        ran = lock["stages"][name]
        # A stage of another data set depends on the folder of one's own images, but does not read it.
        skipped = own if values["data"]["dataset"] != OWN else ""
        reads = [dep["path"] for dep in ran.get("deps", ()) if dep["path"] != skipped]
        names: list[str] = []
        for used in ran.get("params", {}).get("params.yaml", {}):
            names += [f"{used}.{key}" for key in values[used]] if used in values else [used]
        stages.append(
            _Stage(
                name,
                str(declared["stages"][name].get("desc", name)),
                [path for path in reads if not path.startswith("stages/")],
                names,
                [out["path"] for out in ran.get("outs", ())],
            )
        )
    return stages


def _elsewhere(path: str, entry: Entity, result: Result) -> Entity:
    """Data that the run read or wrote and that is not in the folder: known by its checksum in dvc.lock."""
    folder = str(entry["md5"]).endswith(".dir")
    known = CATALOG.get(str(result.params["data"]["dataset"]))
    published = {
        file.name: {"sha256": file.sha256, "url": _ref(f"{source.mirrors[0]}{file.name}")}
        for source in (known.sources if known else ())
        for file in source.files
    }
    checksum = {"identifier": f"md5:{entry['md5']}"} if folder else {"md5": entry["md5"]}
    return {
        "@id": f"#{path}/" if folder else f"#{path}",
        "@type": "Dataset" if folder else "File",
        "name": path,
        "description": "Not in this folder. The checksum is that of dvc.lock.",
        "contentSize": str(entry["size"]),
        "exampleOfWork": _ref(f"#file/{path}"),
        **({} if folder else {"encodingFormat": _format(path)}),
        **checksum,
        **published.get(PurePosixPath(path).name, {}),
    }


def _workflow(origin: Origin, stages: Sequence[_Stage], outputs: Sequence[str]) -> Entity:
    parameters = [f"#parameter/{name}" for stage in stages for name in stage.parameters]
    return {
        "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
        "name": WORKFLOW,
        "description": "The pipeline, from the download of the data to the pictures of the result.",
        "conformsTo": _ref("https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"),
        "version": origin.commit,
        "license": _ref(LICENCE),
        "input": _refs(["#data-set", *(f"#file/{path}" for path in _inputs(stages, outputs)), *parameters]),
        "output": _refs(f"#file/{path}" for path in outputs),
        "step": _refs(f"#step/{stage.name}" for stage in stages),
        "hasPart": _refs(f"#{stage.script}" for stage in stages),
        **_address(origin, WORKFLOW),
    }


def _inputs(stages: Sequence[_Stage], outputs: Sequence[str]) -> list[str]:
    """The paths that the stages read and that none of them wrote, as itself or in a folder."""
    return [
        path
        for stage in stages
        for path in stage.reads
        if not any(PurePosixPath(path).is_relative_to(output) for output in outputs)
    ]


def _address(origin: Origin, path: str) -> Entity:
    """Where a file of the repository is on the web, if that is known."""
    return {"url": _ref(f"{origin.repository}/blob/{origin.commit}/{path}")} if origin.repository else {}


def _context(origin: Origin, result: Result) -> list[Entity]:
    """The profiles, the licence, the author, the data set and the software."""
    entry = CATALOG.get(str(result.params["data"]["dataset"]))
    of_data = {"license": entry.licence, "citation": entry.citation} if entry else {}
    dvc = _version("softwareVersion", origin.packages.get("dvc"))
    return [
        *(
            {"@id": profile, "@type": "CreativeWork", "name": name, "version": profile.rpartition("/")[2]}
            for profile, name in PROFILES.items()
        ),
        {
            "@id": LICENCE,
            "@type": "CreativeWork",
            "name": "MIT License",
            "description": "A permissive licence, which asks that its notice be kept. It is that of code and weights.",
        },
        {"@id": "#author", "@type": "Person", "name": origin.author},
        {
            "@id": "#data",
            "@type": "Dataset",
            "name": dataset_title(result),
            "description": "The images, as published. They are not in this folder.",
            "exampleOfWork": _ref("#data-set"),
            **of_data,
        },
        {"@id": "#dvc", "@type": "SoftwareApplication", "name": "DVC", "url": _ref("https://dvc.org/"), **dvc},
        *(
            {
                "@id": f"#software/{package}",
                "@type": "SoftwareApplication",
                "name": name,
                "url": _ref(url),
                "softwareVersion": version,
                "description": (
                    "The run was made with it." if origin.environment else "The version that requirements.txt locks."
                ),
            }
            for package, (name, url) in _SOFTWARE.items()
            if (version := _versions(origin).get(package))
        ),
    ]


def _versions(origin: Origin) -> dict[str, str]:
    """The versions that the run was made with or, if they were not recorded, those that are locked."""
    return origin.environment or origin.packages


def _parameters(
    used: Sequence[str], recorded: Mapping[str, Entity], stages: Sequence[_Stage], result: Result
) -> list[Entity]:
    """The parameters of the stages, in RO-Crate's sense, which files are too; of the others the values as well."""
    values = flattened(result.params)
    names = dict.fromkeys(name for stage in stages for name in stage.parameters)
    formal = {"#data-set": ("data set", "Dataset")}
    formal |= {f"#file/{path}": (path, _kind_of_data(recorded[path])) for path in sorted(used)}
    formal |= {f"#parameter/{name}": (name, _KINDS.get(type(values[name]), "Text")) for name in names}
    return [
        *(
            {
                "@id": identifier,
                "@type": "FormalParameter",
                "name": name,
                "additionalType": kind,
                "conformsTo": _ref("https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"),
            }
            for identifier, (name, kind) in formal.items()
        ),
        *(
            {
                "@id": f"#value/{name}",
                "@type": "PropertyValue",
                "name": name,
                "value": values[name],
                "exampleOfWork": _ref(f"#parameter/{name}"),
            }
            for name in names
        ),
    ]


def _kind_of_data(entry: Entity) -> str:
    return "Dataset" if str(entry["md5"]).endswith(".dir") else "File"


def _step(
    place: int, stage: _Stage, origin: Origin, recorded: Mapping[str, Entity], names: Mapping[str, str]
) -> list[Entity]:
    """A stage: the step, its tool, the run of that and DVC's control of it."""
    name = stage.name
    read = [*(["#data"] if place == 0 else []), *(names[path] for path in stage.reads)]
    inputs = ["#data-set"] if place == 0 else []
    inputs += [*(f"#file/{path}" for path in stage.reads), *(f"#parameter/{key}" for key in stage.parameters)]
    software = [f"#software/{package}" for package in _SOFTWARE if package in _versions(origin)]
    return [
        {
            "@id": f"#step/{name}",
            "@type": "HowToStep",
            "name": name,
            "description": f"{stage.about}.",
            "position": str(place + 1),
            "workExample": _ref(f"#{stage.script}"),
        },
        {
            "@id": f"#{stage.script}",
            "@type": "SoftwareApplication",
            "name": stage.script,
            "description": f"The program of the step {name}.",
            "softwareVersion": origin.commit,
            "input": _refs(inputs),
            "output": _refs(f"#file/{path}" for path in stage.writes),
            **({"md5": recorded[stage.script]["md5"]} if stage.script in recorded else {}),
            **({"softwareRequirements": _refs(software)} if software else {}),
            **_address(origin, stage.script),
        },
        {
            "@id": f"#run/{name}",
            "@type": "CreateAction",
            "name": f"Run of {stage.script}",
            "description": f"{stage.about}.",
            "instrument": _ref(f"#{stage.script}"),
            "agent": _ref("#author"),
            "object": _refs([*read, *(f"#value/{key}" for key in stage.parameters)]),
            "result": _refs(names[path] for path in stage.writes),
            "actionStatus": _DONE,
        },
        {
            "@id": f"#control/{name}",
            "@type": "ControlAction",
            "name": f"DVC runs the step {name}",
            "instrument": _ref(f"#step/{name}"),
            "object": _ref(f"#run/{name}"),
            "actionStatus": _DONE,
        },
    ]


def _runs(origin: Origin, stages: Sequence[_Stage], outputs: Sequence[str], names: Mapping[str, str]) -> list[Entity]:
    """The run of the whole pipeline, and DVC's organisation of it."""
    made_with = ", ".join(f"{what} {name}" for what, name in origin.environment.items())
    values = [f"#value/{name}" for stage in stages for name in stage.parameters]
    return [
        {
            "@id": "#run",
            "@type": "CreateAction",
            "name": "Run of the pipeline",
            "description": f"Made with: {made_with}." if made_with else "With what it was made is not recorded.",
            "instrument": _ref(WORKFLOW),
            "agent": _ref("#author"),
            "object": _refs(["#data", *(names[path] for path in _inputs(stages, outputs)), *values]),
            "result": _refs(names[path] for path in outputs),
            "actionStatus": _DONE,
        },
        {
            "@id": "#organisation",
            "@type": "OrganizeAction",
            "name": "DVC runs the pipeline",
            "instrument": _ref("#dvc"),
            "agent": _ref("#author"),
            "object": _refs(f"#control/{stage.name}" for stage in stages),
            "result": _ref("#run"),
            "actionStatus": _DONE,
        },
    ]


def _publication(origin: Origin, files: Mapping[str, bytes], weights: str) -> list[Entity]:
    """What `lenet publish` has added to the run."""
    return [
        {
            "@id": "#lenet-publish",
            "@type": "SoftwareApplication",
            "name": "lenet publish",
            "description": "The program that wrote this folder.",
            "softwareVersion": origin.program,
            **_address(origin, "stages/lenet/experiments/publishing.py"),
        },
        {
            "@id": "#publication",
            "@type": "CreateAction",
            "name": "Publication",
            "description": "The run's results in other forms, and words about them.",
            "instrument": _ref("#lenet-publish"),
            "agent": _ref("#author"),
            "object": _refs([weights, *(path for path in sorted(files) if path.startswith(("metrics/", "plots/")))]),
            "result": _refs([ONNX, REPORT, CARD, CHECKSUMS]),
            "actionStatus": _DONE,
        },
    ]
