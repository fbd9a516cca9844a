"""evaluate: figures that scikit-learn and counting by hand confirm, and inputs that it must refuse."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from conftest import RunStage, assert_refused, set_params, sh, slow_except, tree
from sklearn.metrics import classification_report
from test_train import BAD_DATA, Hostile

from lenet.data.info import DIGITS
from lenet.data.tensors import load_dataset
from lenet.files import write_csv
from lenet.results.calibration import reliability
from lenet.results.evaluation import ClassReport, evaluate


def test_figures_of_the_run_on_digits(digits_run: Path) -> None:
    test = load_dataset(digits_run / "data/processed/test.pt", 10)
    overall = json.loads((digits_run / "metrics/test.json").read_text())
    per_class = json.loads((digits_run / "metrics/per_class.json").read_text())
    table = pandas.read_csv(digits_run / "plots/per_class.csv", index_col="class")
    predictions = pandas.read_csv(digits_run / "plots/predictions.csv")

    assert list(predictions.columns) == ["actual", "predicted", "probability"]
    assert predictions["actual"].tolist() == test.labels.tolist(), "in file order"
    assert predictions["probability"].between(0.1, 1).all()
    right = predictions["actual"] == predictions["predicted"]
    assert overall["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    assert overall["error_rate"] == pytest.approx(1 - right.mean(), abs=1e-6)
    assert overall["accuracy"] > 0.8
    assert set(overall) == {"accuracy", "error_rate", "loss", "calibration_error"}
    bins = reliability(predictions["probability"].to_numpy(), right.to_numpy())
    assert overall["calibration_error"] == pytest.approx(bins.calibration_error, abs=1e-5)

    report = classification_report(predictions["actual"], predictions["predicted"], output_dict=True)
    assert list(per_class) == [str(digit) for digit in range(10)]
    assert list(table.index) == list(range(10))
    assert list(table.columns) == ["precision", "recall", "f1", "support"]
    for digit in range(10):
        assert per_class[str(digit)] == pytest.approx(right[predictions["actual"] == digit].mean(), abs=1e-6)
        expected = {name.removesuffix("-score"): value for name, value in report[str(digit)].items()}
        assert table.loc[digit].to_dict() == pytest.approx(expected, abs=1e-6)


def test_figures_computed_by_hand() -> None:
    logits = torch.full((4, 10), -np.inf)
    # Two images of 3: one right with probability 3/4, one taken for 5; two of 5: both right, with probability 1.
    logits[0, 3], logits[0, 5] = np.log(3), 0
    logits[1, 3], logits[1, 5] = 0, np.log(4)
    logits[2:, 5] = 0
    result = evaluate(logits, torch.tensor([3, 3, 5, 5]), DIGITS)
    loss = -(np.log(3 / 4) + np.log(1 / 5)) / 4
    # In bins of their own: one right with confidence 0.75, one wrong with 0.8; two right with confidence 1.
    wanted = {"accuracy": 0.75, "error_rate": 0.25, "loss": round(loss, 6), "calibration_error": (0.25 + 0.8) / 4}
    assert result.overall == wanted
    assert result.per_class[3] == ClassReport("3", precision=1, recall=0.5, f1=0.666667, support=2)
    assert result.per_class[5] == ClassReport("5", precision=0.666667, recall=1, f1=0.8, support=2)
    assert result.per_class[0] == ClassReport("0", precision=0, recall=0, f1=0, support=0)
    assert [prediction.probability for prediction in result.predictions] == pytest.approx([0.75, 0.8, 1, 1])
    assert [prediction[:2] for prediction in result.predictions] == [("3", "3"), ("3", "5"), ("5", "5"), ("5", "5")]


def test_calibration_error_of_published_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of TorchMetrics' documentation, MulticlassCalibrationError with 3 bins: 0.2000 in the L1 norm."""
    monkeypatch.setattr("lenet.results.calibration.BINS", 3)
    shares = np.array([[0.25, 0.20, 0.55], [0.55, 0.05, 0.40], [0.10, 0.30, 0.60], [0.90, 0.05, 0.05]])
    bins = reliability(shares.max(axis=1), shares.argmax(axis=1) == [0, 1, 2, 0])
    assert bins.calibration_error == pytest.approx(0.2)
    assert bins.counts.tolist() == [0, 3, 1]


def test_bins_of_confidence() -> None:
    bins = reliability(np.array([0.0, 1 / 15, 0.0667, 0.5, 1.0, 1.0]), np.array([1, 0, 1, 1, 1, 0], bool))
    assert bins.counts.nonzero()[0].tolist() == [0, 1, 7, 14], "a bin ends with its upper edge"
    assert bins.counts[[0, 1, 7, 14]].tolist() == [2, 1, 1, 2]
    assert bins.accuracy[[0, 14]].tolist() == [0.5, 0.5]
    assert bins.confidence[0] == pytest.approx(1 / 30)
    assert np.isnan(bins.accuracy[2])
    perfect = reliability(np.ones(5), np.ones(5, bool))
    assert perfect.calibration_error == 0


@pytest.mark.parametrize("size", [1, 7, 100000])
def test_the_batch_size_changes_nothing(digits_project: Path, run_stage: RunStage, size: int) -> None:
    before = tree(digits_project)
    set_params(digits_project, f"evaluate.batch_size={size}")
    assert run_stage(digits_project, "evaluate").status == 0
    now = pandas.read_csv(digits_project / "plots/predictions.csv")
    (digits_project / "before.csv").write_bytes(before["plots/predictions.csv"])
    pandas.testing.assert_frame_equal(now, pandas.read_csv(digits_project / "before.csv"), atol=1e-5)


def test_the_number_of_threads_changes_nothing(digits_project: Path) -> None:
    """On 10,000 images: were they summed in another order, a few would differ in the sixth digit."""
    images, labels = torch.load(digits_project / "data/processed/test.pt")
    many = [tensor.repeat(28, *[1] * (tensor.ndim - 1))[:10_000] for tensor in (images, labels)]
    brightness = 1 - torch.rand(10_000, generator=torch.Generator().manual_seed(0))[:, None, None] / 2
    torch.save(((many[0] * brightness).to(torch.uint8), many[1]), digits_project / "data/processed/test.pt")
    tables = []
    for threads in ("1", "3"):
        sh(sys.executable, "stages/evaluate.py", cwd=digits_project, OMP_NUM_THREADS=threads)
        tables.append((digits_project / "plots/predictions.csv").read_bytes())
    assert tables[0] == tables[1]


def model_file(project: Path) -> dict[str, dict[str, object]]:
    loaded: dict[str, dict[str, object]] = torch.load(project / "models/lenet.pt", weights_only=True)
    return loaded


def spoil(project: Path, case: str) -> str:
    """Replace the model by one that must be refused, and return words of the error."""
    model: dict[str, object] = dict(model_file(project))
    options, state = dict(model_file(project)["model"]), dict(model_file(project)["state_dict"])
    path = project / "models/lenet.pt"
    match case:
        case "other padding":
            torch.save(model | {"model": options | {"padding": 0}}, path)
            return "its weights do not fit its model section"
        case "a layer is missing":
            del state["C3.weight"]
            torch.save(model | {"state_dict": state}, path)
            return "C3.weight"
        case "weights that are no tensors":
            torch.save(model | {"state_dict": state | {"C3.bias": [1.0]}}, path)
            return "its weights do not fit its model section"
        case "unknown activation":
            torch.save(model | {"model": options | {"activation": "gelu"}}, path)
            return "activation is 'gelu'; it must be relu or tanh or scaled_tanh or sigmoid"
        case "bare state_dict":
            torch.save(state, path)
            return "does not hold a model section, classes and a state_dict"
        case "no classes":
            torch.save({"model": options, "state_dict": state}, path)
            return "does not hold a model section, classes and a state_dict"
        case "classes without names":
            torch.save(model | {"classes": [*range(10)]}, path)
            return "does not name its classes and their normalisation"
        case "a normalisation without numbers":
            torch.save(model | {"model": options | {"std": "auto"}}, path)
            return "does not name its classes and their normalisation"
        case "fewer classes":
            torch.save(model | {"classes": ["0", "1"]}, path)
            return "its weights do not fit its model section: 'output.weight'"
        case "NaN":
            bias = state["output.bias"]
            assert isinstance(bias, torch.Tensor)
            torch.save(model | {"state_dict": state | {"output.bias": bias * np.nan}}, path)
            return "its logits are NaN or infinite"
        case "complex weights":
            state["C1.bias"] = torch.zeros(6, dtype=torch.complex64)
            torch.save(model | {"state_dict": state}, path)
            return "its weights do not fit its model section: 'C1.bias'"
        case "another normalisation":
            state["input.mean"] = torch.tensor(0.9)
            torch.save(model | {"state_dict": state}, path)
            return "its input.mean is 0.9"
        case "a whole object":
            torch.save(torch.nn.Linear(2, 2), path)
            return "is not a .pt file that is safe to load"
        case "a pickle that runs code":
            torch.save(model | {"model": Hostile()}, path)
            return "is not a .pt file that is safe to load"
        case "truncated":
            path.write_bytes(path.read_bytes()[:100_000])
            return "is not a .pt file that is safe to load"
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case",
    [
        *["other padding", "a layer is missing", "weights that are no tensors", "unknown activation"],
        *["bare state_dict", "NaN", "a whole object", "a pickle that runs code", "truncated", "complex weights"],
        *["another normalisation", "no classes", "classes without names", "a normalisation without numbers"],
        "fewer classes",
    ],
)
def test_model_that_does_not_fit(digits_project: Path, run_stage: RunStage, case: str) -> None:
    words = spoil(digits_project, case)
    before = tree(digits_project)
    assert_refused(run_stage(digits_project, "evaluate"), "models/lenet.pt", words)
    assert tree(digits_project) == before
    assert not (digits_project / "pwned").exists()


@pytest.mark.parametrize("case", slow_except(BAD_DATA, ["a pickle that runs code", "floats", "no image", "label 10"]))
def test_data_that_does_not_fit(digits_project: Path, run_stage: RunStage, case: str) -> None:
    content, words = BAD_DATA[case]
    torch.save(content, digits_project / "data/processed/test.pt")
    before = tree(digits_project)
    assert_refused(run_stage(digits_project, "evaluate"), "data/processed/test.pt", words)
    assert tree(digits_project) == before


def test_a_model_with_an_extra_weight(digits_project: Path, run_stage: RunStage) -> None:
    path = digits_project / "models/lenet.pt"
    model = torch.load(path, weights_only=True)
    torch.save(model | {"state_dict": model["state_dict"] | {"C7.weight": torch.zeros(3)}}, path)
    before = tree(digits_project)
    assert_refused(run_stage(digits_project, "evaluate"), "its weights do not fit its model section: 'C7.weight'")
    assert tree(digits_project) == before


def test_tables_have_six_significant_digits(tmp_path: Path) -> None:
    rows = [[1, 2 / 3, float("nan"), "a,b"], [12345678, 123456.7, 1e-9, ""]]
    write_csv(tmp_path / "a.csv", ["a", "b", "c", "d"], rows)
    assert (tmp_path / "a.csv").read_text() == 'a,b,c,d\n1,0.666667,,"a,b"\n12345678,123457,1e-09,\n'


def test_evaluation_uses_one_thread(digits_project: Path, run_stage: RunStage) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert run_stage(digits_project, "evaluate").status == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_metrics_have_six_decimals() -> None:
    logits = torch.arange(70.0).sin().view(7, 10)
    result = evaluate(logits, torch.arange(7), DIGITS)
    assert result.overall["loss"] == round(
        torch.nn.functional.cross_entropy(logits.double(), torch.arange(7)).item(), 6
    )
