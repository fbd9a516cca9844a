"""lenet compare: two results whose difference is known, groups of them, and what cannot be compared."""

import json
import re
from pathlib import Path

import pandas
import pytest
from conftest import RunLenet, assert_refused, commit, set_params, set_recorded, sh, tree
from PIL import Image

from lenet.experiments.comparison import _cases
from lenet.experiments.revisions import load, resolve


def tagged(project: Path, name: str, wrong: int, *, seed: int = 0, **settings: str) -> None:
    """Commit, under the tag `name`, results in which another class is predicted for the test images from 0 to `wrong`.

    The others are classified correctly. From the tag `base` on, all of them are.
    """
    sh("git", "checkout", "--quiet", "base", cwd=project)
    table = pandas.read_csv(project / "plots/predictions.csv", dtype="str")
    table["predicted"] = table["actual"]
    table.loc[: wrong - 1, "predicted"] = [str((int(actual) + 1) % 10) for actual in table["actual"][:wrong]]
    table.to_csv(project / "plots/predictions.csv", index=False)
    right = table["actual"] == table["predicted"]
    metrics = json.loads((project / "metrics/test.json").read_text()) | {"accuracy": right.mean()}
    (project / "metrics/test.json").write_text(json.dumps(metrics))
    per_class = right.groupby(table["actual"]).mean()
    (project / "metrics/per_class.json").write_text(json.dumps(per_class.to_dict()))
    set_recorded(
        project, f"train.seed={seed}", *(f"{key.replace('__', '.')}={value}" for key, value in settings.items())
    )
    commit(project, name)
    sh("git", "tag", name, cwd=project)


@pytest.fixture
def project(digits_project: Path) -> Path:
    """With the results `few` (10 mistakes) and `many` (30, among them those 10)."""
    sh("git", "tag", "base", cwd=digits_project)
    tagged(digits_project, "few", 10)
    tagged(digits_project, "many", 30, model__activation="tanh")
    sh("git", "checkout", "--quiet", "base", cwd=digits_project)
    return digits_project


def test_the_first_sentence_and_what_follows(project: Path, run_lenet: RunLenet) -> None:
    before = tree(project)
    outcome = run_lenet(project, "compare", "few", "many")
    assert outcome.status == 0, outcome.error
    lines = outcome.output.splitlines()
    # 20 images of 360; McNemar's exact test of 20 to 0: 2 / 2^20.
    assert lines[0] == (
        "few is better than many by 5.56 points; with these 360 images a difference as large would arise by chance "
        "in fewer than 2 of 1,000,000 cases."
    )
    headers = ["class", "few", "many", "difference", "95%", "interval", "p", "images", "only", "few", "only", "many"]
    assert lines[2].split() == headers
    overall = lines[3].split()
    assert overall[:4] == ["all", "97.22", "91.67", "-5.56"]
    assert overall[-3:] == ["360", "20", "0"]
    assert "few: 97.22% of 360, 95% interval 94.96% to 98.48% (Wilson)" in lines
    assert "Parameters that differ: model.activation relu and tanh" in lines
    assert lines[-1] == "dvc_plots/flips.png: the images that only one of them classifies correctly"
    with Image.open(project / "dvc_plots/flips.png") as picture:
        assert picture.height > 300, "20 images in three rows"
    assert sh("git", "status", "--porcelain", cwd=project) == "", "the workspace is as it was"
    assert tree(project) == before


def test_json_for_machines(project: Path, run_lenet: RunLenet) -> None:
    outcome = run_lenet(project, "compare", "many", "few", "--json")
    found = json.loads(outcome.output)
    assert found["names"] == ["many", "few"]
    assert found["overall"]["only"] == [0, 20]
    assert found["overall"]["difference"]["value"] == pytest.approx(20 / 360)
    assert found["overall"]["difference"]["p"] == pytest.approx(2 / 2**20)
    assert [row["name"] for row in found["per_class"]] == [*"0123456789"]
    assert sum(row["only"][1] for row in found["per_class"]) == 20
    assert sum(row["images"] for row in found["per_class"]) == 360
    # Holm: the least p-value of the ten counts ten times.
    exact = [2 / 2 ** row["only"][1] if row["only"][1] else 1 for row in found["per_class"]]
    assert min(row["difference"]["p"] for row in found["per_class"]) == pytest.approx(min(1, 10 * min(exact)))
    assert not (project / "dvc_plots/flips.png").exists(), "nothing is drawn"


def test_the_workspace_and_a_commit(project: Path, run_lenet: RunLenet) -> None:
    commit_of_few = sh("git", "rev-parse", "--short", "few", cwd=project).strip()
    outcome = run_lenet(project, "compare", "workspace", commit_of_few)
    assert f"{commit_of_few} is ahead of workspace by 1.94 points, but" in outcome.output
    same = run_lenet(project, "compare", "few", "few").output
    assert same.startswith("few and few predict the same class for each of the 360 test images.")
    assert same.endswith("No image is classified correctly by only one of them.\n")
    assert "Parameters that differ: none" in same


def test_a_difference_that_chance_explains(project: Path, run_lenet: RunLenet) -> None:
    tagged(project, "other", 11)
    outcome = run_lenet(project, "compare", "few", "other")
    assert outcome.output.startswith(
        "few is ahead of other by 0.28 points, but with these 360 images a difference as large would arise by chance "
        "in 100 of 100 cases."
    )


def test_groups_by_pattern(project: Path, run_lenet: RunLenet) -> None:
    """Four runs with few and four with many mistakes, as experiments of DVC's would be."""
    head = sh("git", "rev-parse", "base", cwd=project).strip()
    for name, start, activation in (("a", 5, "relu"), ("b", 20, "tanh")):
        for seed in range(4):
            tagged(project, f"t-{name}{seed}", start + seed, seed=seed, model__activation=activation)
            reference = f"refs/exps/{head[:2]}/{head[2:]}/{name}-seed{seed}"
            sh("git", "update-ref", reference, f"t-{name}{seed}", cwd=project)
    sh("git", "checkout", "--quiet", "base", cwd=project)
    outcome = run_lenet(project, "compare", "a", "b")
    assert outcome.status == 0, outcome.error
    lines = outcome.output.splitlines()
    assert lines[0].startswith("On average a is better than b by 4.17 points; with 4 seeds each a difference as large")
    assert lines[3].split()[:7] == ["all", "98.19", "±", "0.36", "94.03", "±", "0.36"]
    assert "a: 4 runs, 98.19% ± 0.36, 95% interval of the mean 97.62% to 98.77%" in lines
    assert lines[-1] == "Parameters that differ: model.activation relu and tanh", "but not train.seed"

    found = json.loads(run_lenet(project, "compare", "a-seed[01]", "b", "--json").output)
    assert found["runs"] == [2, 4]
    assert found["accuracies"][0] == {"a-seed0": pytest.approx(355 / 360), "a-seed1": pytest.approx(354 / 360)}
    assert_refused(
        run_lenet(project, "compare", "a", "b-seed1"),
        "b-seed1 is one run, which cannot be compared with a group; name one run",
    )
    two = run_lenet(project, "compare", "a-seed1", "b-seed1")
    assert two.output.startswith("a-seed1 is better than b-seed1 by 4.17 points; with these 360 images"), "two runs"
    assert_refused(run_lenet(project, "compare", "a", "*-seed[12]"), "a-seed1 and b-seed1 differ in model.activation")
    copy = f"refs/exps/{head[:2]}/{head[2:]}/a-seed7"
    sh("git", "update-ref", copy, "t-a0", cwd=project)
    words = "a-seed0 and a-seed7 have the same train.seed, 0; leave one of them out"
    assert_refused(run_lenet(project, "compare", "a", "b"), words)
    sh("git", "update-ref", "-d", copy, cwd=project)

    tagged(project, "t-odd", 9, seed=9, train__epochs="3")
    sh("git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/a-seed9", "t-odd", cwd=project)
    words = "a-seed0 and a-seed9 differ in train.epochs; the runs of a group may differ in train.seed alone"
    assert_refused(run_lenet(project, "compare", "a", "b"), words)


def test_experiments_of_the_current_commit_come_first(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then those that were made last; a group is not mixed from several commits."""
    monkeypatch.chdir(project)
    for base, runs in (("few", {"x-seed0": "few", "x-seed1": "few"}), ("base", {"x-seed0": "many"})):
        head = sh("git", "rev-parse", base, cwd=project).strip()
        for name, target in runs.items():
            sh("git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", target, cwd=project)
    many = sh("git", "rev-parse", "many", cwd=project).strip()
    assert [(revision.name, revision.commit) for revision in resolve("x")] == [("x-seed0", many)]
    assert resolve("x-seed0")[0].commit == many
    assert [revision.name for revision in resolve("x-seed1")] == ["x-seed1"]
    assert load(resolve("x-seed1")[0]).metrics["accuracy"] == pytest.approx(350 / 360)


def test_a_run_without_its_images_has_no_picture(project: Path, run_lenet: RunLenet) -> None:
    labels = project / "data/raw/t10k-labels-idx1-ubyte.gz"
    labels.write_bytes((project / "data/raw/train-labels-idx1-ubyte.gz").read_bytes())
    outcome = run_lenet(project, "compare", "workspace", "many")
    assert outcome.status == 0
    assert outcome.error.startswith(
        "warning: no picture: the test images of workspace are neither in the workspace nor"
    )
    sh("rm", "-r", "data/raw", ".dvc/cache", cwd=project)
    outcome = run_lenet(project, "compare", "few", "many")
    assert outcome.status == 0
    assert "few is better" in outcome.output
    assert outcome.error.startswith("warning: no picture: the test images of few are neither in the workspace nor in")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["few", "nothing"],
            "nothing is neither a revision of Git's nor an experiment with results; `dvc exp show -A`",
        ),
        (["--", "-few", "few"], "-few is neither a revision"),
        (["few", "other data"], "few and other data cannot be compared: data.dataset is digits in one and mnist in"),
        (["few", "other images"], "few and other images cannot be compared: their test images are not the same"),
        (["few", "other file"], "few and other file cannot be compared: their test images are not the same"),
        (["few", "none"], "none has no results: it has no plots/predictions.csv"),
        (["few", "changed"], "changed: its results were made with another value of train.epochs than params.yaml has"),
        (["few", "old"], "old: its results have another layout than those of this version of the pipeline"),
        (["few", "foreign"], "foreign: its results have another layout than those of this version of the pipeline"),
        (["few", "unknown class"], "unknown class: its results have another layout"),
    ],
)
def test_what_cannot_be_compared(project: Path, run_lenet: RunLenet, arguments: list[str], words: str) -> None:
    case = arguments[-1]
    predictions = project / "plots/predictions.csv"
    match case:
        case "other data":
            set_recorded(project, "data.dataset=mnist")
        case "other images":
            predictions.write_text("\n".join(predictions.read_text().splitlines()[:-1]) + "\n")
        case "other file":
            lock = (project / "dvc.lock").read_text()
            [md5] = re.findall(r"path: data/processed/test.pt\n +hash: md5\n +md5: (\w+)", lock)
            (project / "dvc.lock").write_text(lock.replace(md5, md5[::-1]))
        case "changed":
            set_params(project, "train.epochs=7")
        case "none":
            predictions.unlink()
        case "old":
            predictions.write_text("actual,predicted\n7,7\n")
        case "foreign":
            (project / "metrics/test.json").write_text("[]")
        case "unknown class":
            predictions.write_text(predictions.read_text().replace("\n7,", "\nseven,", 1))
    names = {name: name.replace(" ", "-") for name in arguments}
    if case not in ("few", "nothing"):
        commit(project, case)
        sh("git", "tag", names[case], cwd=project)
    words = words.replace(case, names[case])
    assert_refused(run_lenet(project, "compare", *names.values()), words)
    assert not (project / "dvc_plots").exists()


def test_a_picture_that_cannot_be_written(project: Path, run_lenet: RunLenet) -> None:
    (project / "file").touch()
    outcome = run_lenet(project, "compare", "few", "many", "--out", "file/flips.png")
    assert outcome.status == 1
    assert outcome.error.startswith("error: file")
    assert len(outcome.error.splitlines()) == 1


def test_outside_of_a_project(tmp_path: Path, run_lenet: RunLenet) -> None:
    assert_refused(
        run_lenet(tmp_path, "compare", "workspace", "HEAD"), "workspace has no results: it has no params.yaml"
    )
    assert_refused(run_lenet(tmp_path, "compare", "HEAD", "workspace"), "HEAD is neither a revision of Git's nor")


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (1.0, "100 of 100 cases"),
        (0.62, "62 of 100 cases"),
        (0.0375, "4 of 100 cases"),
        (0.0135, "14 of 1,000 cases"),
        (0.004, "4 of 1,000 cases"),
        (2.4e-6, "2 of 1,000,000 cases"),
        (1e-9, "fewer than 2 of 1,000,000 cases"),
        (0.0, "fewer than 2 of 1,000,000 cases"),
    ],
)
def test_probabilities_in_words(p: float, words: str) -> None:
    assert _cases(p) == words
