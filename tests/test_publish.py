"""lenet publish: the folder, its model card, and its provenance as a validator reads it."""

import hashlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
from contextlib import chdir
from pathlib import Path
from typing import Any, Protocol

import pytest
import requests
import requests_cache
from conftest import RunLenet, assert_refused, commit, set_params, set_recorded, sh, shared
from requests.adapters import BaseAdapter
from rocrate.vocabs import RO_CRATE
from rocrate_validator.models import ValidationSettings
from rocrate_validator.services import validate
from urllib3 import HTTPResponse

from lenet.cli import Stopped
from lenet.experiments import publishing
from lenet.experiments.publishing import Card, Origin
from lenet.experiments.revisions import load, resolve
from lenet.network.lenet import build
from lenet.params import Model, parse_yaml

PLOTS = ["confusion_matrix", "embedding", "feature_maps", "kernels", "mistakes", "per_class_accuracy", "reliability"]
PLOTS += ["samples", "training_curves"]
FILES = {
    *("LICENSE", "README.md", "SHA256SUMS", "dvc.lock", "dvc.yaml", "environment.lock", "lenet.pt", "model.onnx"),
    *("params.yaml", "report.html", "requirements.txt", "ro-crate-metadata.json"),
    *(f"metrics/{name}.json" for name in ("per_class", "test", "train")),
    *(f"plots/{name}.csv" for name in ("per_class", "predictions", "training")),
    *(f"plots/{name}.png" for name in PLOTS),
}
REPOSITORY = "https://git.example.org/group/lenet"


def record_origin(project: Path) -> None:
    """Say in pyproject.toml where the repository is, and in environment.lock with what the outputs were made."""
    with (project / "pyproject.toml").open("a") as file:
        file.write(f'\n[project.urls]\nRepository = "{REPOSITORY}"\n')
    lock: Any = parse_yaml((project / "dvc.lock").read_bytes(), "dvc.lock")
    outputs = {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}
    made = {"environment": {"processor": "An abacus", "python": "3.11.7", "torch": "2.14.1+cpu"}, "outputs": outputs}
    (project / "environment.lock").write_text(json.dumps(made))


@pytest.fixture(scope="session")
def published(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project, `project`, and `out`, published from its tag `complete`; `mine` is an experiment."""

    def make(folder: Path) -> None:
        project = shutil.copytree(digits_run, folder / "project")
        start = sh("git", "rev-parse", "HEAD", cwd=project).strip()
        record_origin(project)
        commit(project, "where it comes from")
        sh("git", "tag", "complete", cwd=project)
        sh("git", "update-ref", f"refs/exps/{start[:2]}/{start[2:]}/mine", "complete", cwd=project)
        sh("git", "reset", "--quiet", "--hard", start, cwd=project)
        with chdir(project):
            publishing.publish(folder / "out", "complete")

    return shared(tmp_path_factory, "published", make)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what takes seconds."""
    monkeypatch.setattr("lenet.experiments.report.page", lambda _: b"<!DOCTYPE html>")
    monkeypatch.setattr("lenet.experiments.models.exported", lambda *_: (b"ONNX", None))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_files_and_their_checksums(published: Path) -> None:
    out = published / "out"
    assert content(out).keys() == FILES
    assert sh("sha256sum", "--strict", "-c", "SHA256SUMS", cwd=out).count(": OK\n") == len(FILES) - 1
    for name in ("params.yaml", "metrics/test.json", "plots/mistakes.png", "dvc.yaml"):
        assert (out / name).read_bytes() == (published / "project" / name).read_bytes()
    assert (out / "lenet.pt").read_bytes() == (published / "project/models/lenet.pt").read_bytes()
    whole = b"".join(content(out).values())
    for secret in (str(published), "tester@example.org"):
        assert secret.encode() not in whole


def test_the_same_commit_under_another_name_gives_the_same_bytes(
    published: Path, run_lenet: RunLenet, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    outcome = run_lenet(published / "project", "publish", str(tmp_path / "out"), "--rev", "mine")
    assert outcome.status == 0, outcome.error
    assert re.fullmatch(rf"{tmp_path}/out: commit \w{{7}}, {len(FILES)} files, [\d.]+ MB\n", outcome.output)
    assert content(tmp_path / "out") == content(published / "out")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.slow
def test_another_place_and_environment_give_the_same_bytes(published: Path, tmp_path: Path) -> None:
    project = shutil.copytree(published / "project", tmp_path / "elsewhere")
    command = ["lenet", "publish", "out", "--rev", "complete"]
    sh(*command, cwd=project, TZ="Asia/Tokyo", PYTHONHASHSEED="7", LC_ALL="C", OMP_NUM_THREADS="1")
    assert content(project / "out") == content(published / "out")


# The model card.


def front_matter(card: str) -> Any:
    _, text, _ = card.split("---\n", 2)
    return parse_yaml(text.encode(), "front matter")


def cells(card: str) -> dict[str, list[str]]:
    """The rows of all tables of a card, by their first cell."""
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_the_front_matter_of_the_card(published: Path) -> None:
    values = front_matter((published / "out/README.md").read_text())
    metrics = json.loads((published / "project/metrics/test.json").read_text())
    assert values["license"] == "mit"
    assert values["library_name"] == "pytorch"
    assert values["pipeline_tag"] == "image-classification"
    assert values["datasets"] == ["digits"]
    [model] = values["model-index"]
    [result] = model["results"]
    assert model["name"] == "LeNet-5 on scikit-learn's digits"
    assert result["task"]["type"] == "image-classification"
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        name: metrics[name] for name in ("accuracy", "loss")
    }


def test_the_figures_of_the_card(published: Path) -> None:
    out = published / "out"
    card = (out / "README.md").read_text()
    test, train, per_class = (
        json.loads((out / f"metrics/{n}.json").read_text()) for n in ("test", "train", "per_class")
    )
    table = cells(card)
    for name, accuracy in {"all": test["accuracy"], **per_class}.items():
        _, share, interval = table[name]
        low, high = (float(end.rstrip("%")) for end in interval.split(" to "))
        assert share == f"{accuracy:.2%}"
        assert low <= round(100 * accuracy, 2) <= high
        assert high - low > 1
    assert sum(int(table[name][0]) for name in per_class) == int(table["all"][0]) == 360
    assert table["loss (mean cross-entropy in nats)"] == [str(test["loss"])]
    assert table["expected calibration error (15 bins)"] == [f"{test['calibration_error']:.2%}"]
    assert table["accuracy on the validation images"] == [f"{train['validation_accuracy']:.2%}"]
    assert [table[part] for part in ("training", "validation", "test")] == [["1,294"], ["143"], ["360"]]
    assert f"{train['parameters']:,} parameters" in card
    assert table["`train.epochs`"] == ["2"]
    head = sh("git", "rev-parse", "complete", cwd=published / "project").strip()
    assert table["commit"] == [f"`{head}`"]
    assert table["author"] == ["A tester"]
    assert table["processor"] == ["An abacus"]
    for part in (f"git clone {REPOSITORY} lenet", f"git checkout {head}", "x86-64 processor with AVX2"):
        assert part in card
    assert "{" not in re.sub(r"```.*?```", "", card, flags=re.DOTALL)


def test_the_programs_of_the_card_run(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs = re.findall(r"```python\n(.*?)```", (published / "out/README.md").read_text(), re.DOTALL)
    for name, program in zip(["onnx.py", "pytorch.py"], programs, strict=True):
        (tmp_path / name).write_text(program)
        with chdir(published / "out"):
            runpy.run_path(str(tmp_path / name))
    with_onnx, with_pytorch = (line.split() for line in capsys.readouterr().out.splitlines())
    assert with_onnx[0] == with_pytorch[0]
    assert float(with_onnx[1]) == pytest.approx(float(with_pytorch[1]), abs=1e-5)


@pytest.mark.parametrize("dataset", [*publishing.ABOUT_DATA])
def test_cards_of_other_data_and_networks(published: Path, dataset: str) -> None:
    with chdir(published / "project"):
        result = load(resolve("HEAD")[0])
    result.params["data"]["dataset"] = dataset
    result.params["model"]["architecture"] = "mlp"
    result.params["preprocess"]["hold_out"] = "writers"
    names = {name: f"{name}|*<b>*" for name in result.per_class}
    result = result._replace(
        per_class={names[name]: value for name, value in result.per_class.items()},
        predictions=result.predictions.replace(names),
    )
    model = Model(**result.params["model"]).normalised(0.1, 0.3)
    origin = Origin("0" * 40, "A|B", "2026-01-01T00:00:00+00:00", "", {}, {}, "0")
    card = Card(result, origin, build(model, [*names.values()])).text()
    values = front_matter(card)
    assert values["model-index"][0]["name"].startswith("multilayer perceptron on ")
    assert ("datasets" in values) == (dataset != "own")
    assert r"| 0\|\*\<b\>\* | 36 | 100.00% | 90.36% to 100.00% |" in card
    assert "In a clone of the project:" in card
    assert (r"| author | A\|B |") in card
    assert ("Licence and source of the data are not recorded." in card) == (dataset == "own")
    assert "| validation | at least 143, of some writers all |" in card


# The provenance.

BIOSCHEMAS = "https://bioschemas.org"
WORKFLOW_RUN = "https://w3id.org/ro/terms/workflow-run"
# Version 1.1 of RO-Crate's context is the newer one in the package rocrate, but for these terms.
OLDER = {name: f"{BIOSCHEMAS}/{name}" for name in ("ComputationalWorkflow", "FormalParameter")}
OLDER |= {name: f"{BIOSCHEMAS}/ComputationalWorkflow#{name}" for name in ("input", "output")}
CONTEXTS = {
    "https://w3id.org/ro/crate/1.1/context": RO_CRATE["@context"] | OLDER,
    f"{WORKFLOW_RUN}/context": {
        name: f"{WORKFLOW_RUN}#{name}" for name in ("ParameterConnection", "environment", "md5", "sha256")
    },
}

# What is not known of a run: when its stages ended, and to which organisation its author belongs and who publishes it.
# A stage's program is known by its path, which is no URI.
UNKNOWN = {
    "The Action SHOULD have an endTime in ISO 8601 format",
    "The SoftwareApplication id SHOULD be an absolute URI",
    "The `publisher` property of a `Root Data Entity` SHOULD be an `Organization`",
    "The author SHOULD have a Contextual Entity which specifies the organizational `affiliation`.",
    "The author SHOULD have an organizational affiliation.",
}


class Contexts(BaseAdapter):
    """Answers with JSON-LD's contexts, in place of the network."""

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        body = json.dumps({"@context": CONTEXTS[request.url or ""]}).encode()
        response = requests.Response()
        response.status_code, response.url, response.request = 200, request.url or "", request
        response.headers["Content-Type"] = "application/ld+json"
        response.raw = HTTPResponse(io.BytesIO(body), response.headers, 200, preload_content=False)
        return response

    def close(self) -> None:
        pass


class Problems(Protocol):
    """The fixture `problems`."""

    def __call__(self, crate: Path) -> dict[str, str]: ...


@pytest.fixture
def problems(tmp_path: Path) -> Problems:
    """What the validator says of a crate, message -> severity. It is offline: the contexts are in its cache."""
    cache = tmp_path / "cache"
    with requests_cache.CachedSession(str(cache), backend="sqlite", expire_after=-1) as session:
        session.mount("https://", Contexts())
        for url in CONTEXTS:
            session.get(url)

    def run(crate: Path) -> dict[str, str]:
        settings = ValidationSettings(
            rocrate_uri=str(crate),
            profile_identifier="provenance-run-crate",
            requirement_severity="RECOMMENDED",
            offline=True,
            cache_path=cache,
        )
        result = validate(settings)
        assert not result.skipped_checks
        return {issue.message: issue.severity.name for issue in result.get_issues()}

    return run


def test_the_crate_is_valid(published: Path, problems: Problems) -> None:
    assert problems(published / "out") == dict.fromkeys(UNKNOWN, "RECOMMENDED")


def test_the_validator_would_object(published: Path, problems: Problems, tmp_path: Path) -> None:
    broken = shutil.copytree(published / "out", tmp_path / "out")
    (broken / "model.onnx").unlink()
    path = broken / "ro-crate-metadata.json"
    path.write_text(path.read_text().replace('"workExample"', '"workFeatured"'))
    assert {message for message, severity in problems(broken).items() if severity == "REQUIRED"} == {
        "A HowToStep must refer to its corresponding tool via workExample",
        "The RO-Crate does not include the Data Entity 'model.onnx' as part of its payload",
    }


def test_what_the_crate_says(published: Path) -> None:
    out, project = published / "out", published / "project"
    graph = json.loads((out / "ro-crate-metadata.json").read_text())["@graph"]
    entities = {entity["@id"]: entity for entity in graph}
    assert len(entities) == len(graph)
    parts = [part["@id"] for part in entities["./"]["hasPart"]]
    assert {*parts} == FILES - {"ro-crate-metadata.json"}
    for name in {*parts} - {"SHA256SUMS"}:
        assert entities[name]["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
    date = sh("git", "log", "-1", "--format=%cI", "complete", cwd=project).strip()
    assert entities["./"]["datePublished"] == date
    assert entities["#author"]["name"] == "A tester"
    # All references lead somewhere: to an entity or to the web.
    references = {ref for entity in graph for ref in re.findall(r'"@id": "(.*?)"', json.dumps(entity))}
    assert {ref for ref in references if not ref.startswith("https://")} == {
        each for each in entities if not each.startswith("https://")
    }

    lock: Any = parse_yaml((project / "dvc.lock").read_bytes(), "dvc.lock")
    params: Any = parse_yaml((project / "params.yaml").read_bytes(), "params.yaml")
    for section, values in params.items():
        for key, value in values.items():
            assert entities[f"#value/{section}.{key}"]["value"] == value
    for name, stage in lock["stages"].items():
        action = entities[f"#run/{name}"]
        results = action["result"] if isinstance(action["result"], list) else [action["result"]]
        paths = [ref["@id"].strip("#/").replace("lenet.pt", "models/lenet.pt") for ref in results]
        assert paths == [item["path"] for item in stage["outs"]]
        read = [ref["@id"].strip("#/") for ref in action["object"] if not ref["@id"].startswith(("#value", "#data-"))]
        used = [dep["path"].replace("models/", "") for dep in stage["deps"] if not dep["path"].startswith("stages/")]
        assert read == (["data"] if name == "download" else used)
    kept = {item["path"]: item["md5"] for stage in lock["stages"].values() for item in stage["deps"] + stage["outs"]}
    assert entities["#data/raw/"]["identifier"] == f"md5:{kept['data/raw']}"
    assert entities["#data/processed/test.pt"]["md5"] == kept["data/processed/test.pt"]
    assert entities["#stages/train.py"]["md5"] == kept["stages/train.py"]
    assert entities["#software/torch"]["softwareVersion"] == "2.14.1+cpu"
    pinned = re.findall(r"^dvc==(\S+)", (project / "requirements.txt").read_text(), re.MULTILINE)
    assert [entities["#dvc"]["softwareVersion"]] == [entities["#dvc-pipeline"]["version"]] == pinned


@pytest.mark.usefixtures("_quick")
def test_where_a_run_comes_from_need_not_be_known(digits_run: Path, run_lenet: RunLenet, tmp_path: Path) -> None:
    outcome = run_lenet(digits_run, "publish", str(tmp_path / "a/b"))
    assert outcome.status == 0, outcome.error
    assert content(tmp_path / "a/b").keys() == FILES - {"environment.lock"}
    graph = json.loads((tmp_path / "a/b/ro-crate-metadata.json").read_text())["@graph"]
    entities = {entity["@id"]: entity for entity in graph}
    assert "url" not in entities["dvc.yaml"]
    assert entities["#run"]["description"] == "With what it was made is not recorded."
    assert entities["#software/torch"]["description"] == "The version that requirements.txt locks."


@pytest.mark.usefixtures("_quick")
def test_images_of_ones_own_are_an_input(digits_project: Path, run_lenet: RunLenet) -> None:
    set_recorded(digits_project, "data.dataset=own")
    commit(digits_project, "as if the images were one's own")
    outcome = run_lenet(digits_project, "publish", "new")
    assert outcome.status == 0, outcome.error
    graph = json.loads((digits_project / "new/ro-crate-metadata.json").read_text())["@graph"]
    entities = {entity["@id"]: entity for entity in graph}
    for action in ("#run", "#run/download"):
        assert {"@id": "#data/own/"} in entities[action]["object"]
    assert entities["#data/own/"]["exampleOfWork"]["@id"] in {ref["@id"] for ref in entities["dvc.yaml"]["input"]}


# What is refused, and what is left behind.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new", "--rev", "workspace"], "commit it and publish HEAD"),
        (["new", "--rev", "nothing-of-that-name"], "neither a revision"),
        (["stages"], "stages: is not empty; name a folder that is empty or does not exist"),
        (["."], ".: is not empty"),
        (["README.md"], "README.md: is a file; name a folder that is empty or does not exist"),
        (["README.md/new"], "README.md: File exists; a folder belongs there"),
    ],
)
def test_what_cannot_be_published_or_written(
    digits_run: Path, run_lenet: RunLenet, arguments: list[str], words: str
) -> None:
    before = {*digits_run.iterdir()}
    assert_refused(run_lenet(digits_run, "publish", *arguments), words)
    assert {*digits_run.iterdir()} == before


def test_results_that_are_not_of_their_commit(digits_project: Path, run_lenet: RunLenet) -> None:
    set_params(digits_project, "train.epochs=3")
    commit(digits_project, "parameters of another run")
    refused = run_lenet(digits_project, "publish", "new")
    assert_refused(refused, "HEAD: its results were made with another value of train.epochs")
    sh("git", "reset", "--quiet", "--hard", "HEAD~1", cwd=digits_project)
    path = digits_project / "metrics/per_class.json"
    path.write_text(path.read_text().replace('"0": 1.0', '"0": 0.9'))
    commit(digits_project, "a result by hand")
    assert_refused(
        run_lenet(digits_project, "publish", "new"), "its metrics/per_class.json is not the one that dvc.lock"
    )
    assert not [*digits_project.glob("*new*")]


@pytest.mark.parametrize("module", publishing.MODULES)
def test_a_missing_package(digits_run: Path, run_lenet: RunLenet, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    find = publishing.find_spec
    monkeypatch.setattr(publishing, "find_spec", lambda name: None if name == module else find(name))
    assert_refused(run_lenet(digits_run, "publish", "new"), f"needs {module};", "pip install -e '.[publish]'")


@pytest.mark.usefixtures("_quick")
def test_what_a_killed_run_left_is_removed(digits_run: Path, run_lenet: RunLenet, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f".out.{dead.pid}.part"
    left.mkdir()
    (left / "lenet.pt").touch()
    assert run_lenet(digits_run, "publish", str(tmp_path / "out")).status == 0
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("ending", [Stopped(2), OSError(28, "No space left on device")])
def test_an_interrupted_run_leaves_nothing(
    digits_run: Path,
    run_lenet: RunLenet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: BaseException,
) -> None:
    write = Path.write_bytes

    def interrupted(path: Path, data: bytes) -> int:
        if path.name == "report.html":
            raise ending
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    if isinstance(ending, Stopped):
        with chdir(digits_run), pytest.raises(Stopped):
            publishing.publish(tmp_path / "out", "HEAD")
    else:
        assert_refused(run_lenet(digits_run, "publish", str(tmp_path / "out")), f"{tmp_path}/out: No space left")
    assert not os.listdir(tmp_path)
