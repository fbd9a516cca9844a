"""Stage 4, evaluate: the trained model on the test set, overall and for each digit."""

from pathlib import Path
from typing import Annotated

import typer

from lenet.cli import Debug, ParamsFile, one_line_errors, run


def evaluate(
    params: ParamsFile = Path("params.yaml"),
    model: Annotated[Path, typer.Option(help="The trained model.")] = Path("models/lenet.pt"),
    data: Annotated[Path, typer.Option(help="The test set.")] = Path("data/processed/test.pt"),
    metrics: Annotated[Path, typer.Option(help="Where the overall figures go.")] = Path("metrics/test.json"),
    per_class: Annotated[Path, typer.Option(help="Where each digit's figures go.")] = Path("metrics/per_class.json"),
    predictions: Annotated[Path, typer.Option(help="Where each image's prediction goes.")] = Path(
        "plots/predictions.csv"
    ),
    debug: Debug = False,
) -> None:
    """Measure the trained model on the test set, which no other stage lets it see.

    Overall: accuracy, error, loss. For each digit: accuracy, precision, recall, F1 and support. And for each test
    image, in the published file's order: actual and predicted digit and the prediction's probability. It runs on the
    CPU whatever the model was trained on, so that two models are compared on the same arithmetic.
    """
    with one_line_errors(debug):
        from lenet.params import load_params

        options = load_params(params).evaluate  # Before the slow imports: a mistake should be answered at once.

        from lenet import InputError, evaluation
        from lenet.files import write_csv, write_json
        from lenet.network import load_model, predict
        from lenet.tensors import load_dataset

        network = load_model(model)
        test = load_dataset(data)
        logits = predict(network, test.images, options.batch_size)
        if not logits.isfinite().all():
            raise InputError(
                f"{model}: computes NaN or infinity; train it anew, with a smaller train.learning_rate for example"
            )
        result = evaluation.evaluate(logits, test.labels)
        write_json(metrics, result.overall)
        write_json(per_class, result.per_class)
        write_csv(predictions, evaluation.Prediction._fields, result.predictions)
        print(f"{result.overall['accuracy']:.2%} of {len(test.labels)} test images are classified right")


if __name__ == "__main__":
    run("python stages/evaluate.py", evaluate)
