"""What other tools call, DVC's extension for VS Code and dvc.api, reads all results without special care."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import dvc.api
import pandas
import pytest
from conftest import sh
from test_plot import PICTURES


@pytest.fixture(scope="module")
def project(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one experiment more, in which only the seed of one epoch differs."""
    folder = shutil.copytree(digits_run, tmp_path_factory.mktemp("tools") / "project")
    sh("dvc", "exp", "run", "--temp", "--name", "other", "-S", "train.seed=1", "-S", "train.epochs=1", cwd=folder)
    return folder


def show(project: Path) -> dict[str, dict[str, Any]]:
    """What `dvc exp show --json` says of each revision, by name."""
    found = {}
    for entry in json.loads(sh("dvc", "exp", "show", "--json", cwd=project)):
        found[entry.get("name") or entry["rev"]] = entry["data"]
        for group in entry["experiments"] or []:
            found |= {each["name"]: each["data"] for each in group["revs"]}
    return found


def test_experiments_as_the_extension_lists_them(project: Path) -> None:
    listed = show(project)
    assert {"workspace", "other"} <= listed.keys()
    for data in listed.values():
        assert all("error" not in file for kind in ("params", "metrics") for file in data[kind].values())
        test = data["metrics"]["metrics/test.json"]["data"]
        assert {"accuracy", "error_rate", "loss", "calibration_error"} == test.keys()
        assert data["metrics"]["metrics/per_class.json"]["data"].keys() == {*"0123456789"}
        assert {"data/features.npz", "models/lenet.pt"} <= data["outs"].keys()
    assert listed["other"]["params"]["params.yaml"]["data"]["train"]["epochs"] == 1


def test_plots_as_the_extension_draws_them(project: Path) -> None:
    """`--split` leaves the data out of Vega's specifications, with anchors in their place."""
    other = sh("git", "for-each-ref", "--format=%(objectname)", "refs/exps/*/*/other", cwd=project).strip()
    arguments = ["plots", "diff", "workspace", other, "--json", "--split", "-o", ".dvc/tmp/plots"]
    found = json.loads(sh("dvc", *arguments, cwd=project))
    assert found.keys() == {"data"}, "no errors"
    charts = {"Loss", "Error", "plots/training.csv", "plots/per_class.csv", "plots/predictions.csv"}
    assert found["data"].keys() == charts | {f"plots/{name}.png" for name in PICTURES}
    for name in charts:
        [chart] = found["data"][name]
        assert chart["type"] == "vega"
        assert chart["revisions"] == ["workspace", other]
        text = json.dumps(chart["content"])
        filled = {anchor: value for anchor, value in chart["anchor_definitions"].items() if anchor in text}
        assert "<DVC_METRIC_DATA>" in filled
        for anchor, value in filled.items():
            text = text.replace(f'"{anchor}"', json.dumps(value)).replace(anchor, str(value))
        specification = json.loads(text)
        assert "<DVC_METRIC" not in text, "every anchor is filled in"
        rows = specification["data"]["values"]
        assert len({row["rev"] for row in rows}) == 2
    for name in PICTURES:
        pictures = found["data"][f"plots/{name}.png"]
        assert [picture["type"] for picture in pictures] == ["image", "image"]
        assert all((project / picture["url"]).stat().st_size for picture in pictures)


def test_dvc_api(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    before = sorted(os.listdir())
    assert dvc.api.params_show()["train"]["epochs"] == 2
    assert dvc.api.params_show(rev="other")["train"]["epochs"] == 1
    metrics = dvc.api.metrics_show()
    accuracy = json.loads((project / "metrics/test.json").read_text())["accuracy"]
    assert metrics["accuracy"] == accuracy
    assert {"0", "9", "calibration_error", "train_loss"} <= metrics.keys()
    rows = {row["Experiment"] or row["rev"]: row for row in dvc.api.exp_show()}
    assert rows["workspace"]["accuracy"] == accuracy
    assert rows["other"]["accuracy"] == dvc.api.metrics_show(rev="other")["accuracy"]
    with dvc.api.open("plots/predictions.csv", rev="other") as file:
        assert len(pandas.read_csv(file)) == 360
    features = dvc.api.read("data/features.npz", rev="other", mode="rb")
    assert features != (project / "data/features.npz").read_bytes()
    assert features.startswith(b"PK")
    assert sorted(os.listdir()) == before
