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
    per_class: Annotated[Path, typer.Option(help="Where each digit's accuracy goes.")] = Path("metrics/per_class.json"),
    report: Annotated[Path, typer.Option(help="Where each digit's other figures go.")] = Path("plots/per_class.csv"),
    predictions: Annotated[Path, typer.Option(help="Where each image's prediction goes.")] = Path(
        "plots/predictions.csv"
    ),
    debug: Debug = False,
) -> None:
    """Measure the trained model on the test set, which no other stage lets it see.

    Overall: accuracy, error rate, loss. For each digit: accuracy, and precision, recall, F1 and support. And for each
    test image, in the published file's order: actual and predicted digit and the prediction's probability. It runs on
    the CPU, in one thread, whatever the model was trained on, so that two models are compared on the same arithmetic.
    """
    with one_line_errors(debug):
        from lenet.params import load_params

        options = load_params(params).evaluate  # Before the slow imports: a mistake should be answered at once.

        import torch

        from lenet.data.tensors import load_dataset
        from lenet.errors import InputError
        from lenet.files import write_csv, write_json
        from lenet.network.backend import predict
        from lenet.network.saved import load_model
        from lenet.results import evaluation

        torch.set_num_threads(1)  # As many as the machine has would round in as many ways.
        network = load_model(model)
        test = load_dataset(data)
        logits = predict(network, test.images, options.batch_size)
        if not logits.isfinite().all():
            raise InputError(
                f"{model}: computes NaN or infinity; train it anew, with a smaller train.learning_rate for example"
            )
        result = evaluation.evaluate(logits, test.labels)
        write_json(metrics, result.overall)
        write_json(per_class, {row.name: row.recall for row in result.per_class})
        write_csv(report, ["class", *evaluation.ClassReport._fields[1:]], result.per_class)
        write_csv(predictions, evaluation.Prediction._fields, result.predictions)
        print(f"{result.overall['accuracy']:.2%} of {len(test.labels)} test images are classified right")


if __name__ == "__main__":
    run("python stages/evaluate.py", evaluate)
