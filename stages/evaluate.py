"""Stage 4, evaluate: the trained model on the test set, overall and for each class."""

from pathlib import Path
from typing import Annotated

from lenet.cli import Debug, Option, ParamsFile, one_line_errors, run
from lenet.processor import set_arithmetic


def evaluate(
    params: ParamsFile = Path("params.yaml"),
    model: Annotated[Path, Option(help="The trained model.")] = Path("models/lenet.pt"),
    data: Annotated[Path, Option(help="The test set.")] = Path("data/processed/test.pt"),
    dataset: Annotated[Path, Option(help="What there is to know of the data set.")] = Path("data/raw/dataset.json"),
    metrics: Annotated[Path, Option(help="Where the overall metrics go.")] = Path("metrics/test.json"),
    per_class: Annotated[Path, Option(help="Where each class's accuracy goes.")] = Path("metrics/per_class.json"),
    report: Annotated[Path, Option(help="Where the table of each class goes.")] = Path("plots/per_class.csv"),
    predictions: Annotated[Path, Option(help="Where each image's prediction goes.")] = Path("plots/predictions.csv"),
    features: Annotated[Path, Option(help="Where what the network sees goes.")] = Path("data/features.npz"),
    debug: Debug = False,
) -> None:
    """Measure the trained model on the test set, which plays no part in training.

    Overall: accuracy, error rate, loss and calibration error. For each class: precision, recall (the class's accuracy),
    F1 and support. For each test image, in the order of the file: the actual and the predicted class, and the
    probability of the prediction. For the pictures: the first layer's kernels, the outputs of all layers for the first
    test image, and the last hidden layer's outputs for all of them, in two dimensions. It runs on the CPU in one
    thread, whatever the model was trained on, so that two models are compared with the same arithmetic, that of
    train.arithmetic.
    """
    with one_line_errors(debug):
        from lenet.params import load_params

        settings = load_params(params)  # Before the slow imports, so that a mistake is reported at once.
        set_arithmetic(settings.train.arithmetic)

        import torch

        from lenet.data.info import read_info
        from lenet.data.tensors import load_dataset
        from lenet.errors import InputError
        from lenet.files import write_csv, write_json
        from lenet.network.backend import predict
        from lenet.network.saved import load_model
        from lenet.results import evaluation
        from lenet.results.features import write_features
        from lenet.results.observation import observe

        torch.set_num_threads(1)  # The number of threads changes the rounding.
        network, classes = load_model(model)
        if tuple(classes) != read_info(dataset).classes:
            raise InputError(f"{model}: was trained on other classes than those of {dataset}; run `dvc repro`")
        test = load_dataset(data, len(classes))
        logits = predict(network, test.images, settings.evaluate.batch_size)
        if not logits.isfinite().all():
            raise InputError(
                f"{model}: its logits are NaN or infinite; train it again, perhaps with a smaller train.learning_rate"
            )
        result = evaluation.evaluate(logits, test.labels, classes)
        seen = observe(network, test.images, settings.evaluate.batch_size)
        write_json(metrics, result.overall)
        write_json(per_class, {row.name: row.recall for row in result.per_class})
        write_csv(report, ["class", *evaluation.ClassReport._fields[1:]], result.per_class)
        write_csv(predictions, evaluation.Prediction._fields, result.predictions)
        write_features(features, seen)
        print(f"{result.overall['accuracy']:.2%} of {len(test.labels)} test images are classified correctly")


if __name__ == "__main__":
    run("python stages/evaluate.py", evaluate)
