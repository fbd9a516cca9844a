"""Stage 5, plot: pictures of the data, the training and the result."""

from pathlib import Path
from typing import Annotated

from lenet.cli import Debug, Option, ParamsFile, one_line_errors, run


def plot(
    params: ParamsFile = Path("params.yaml"),
    raw: Annotated[Path, Option(help="Folder with the four *-ubyte.gz files.")] = Path("data/raw"),
    plots: Annotated[Path, Option(help="Folder with training.csv and predictions.csv, and for the pictures.")] = Path(
        "plots"
    ),
    debug: Debug = False,
) -> None:
    """Draw samples of the data, training curves, the confusion matrix, each digit's accuracy and confident mistakes."""
    with one_line_errors(debug):
        from lenet.params import load_params

        settings = load_params(params)  # Before the slow imports, so that a mistake is reported at once.
        options = settings.plot

        from lenet.data.idx import read_labelled_images
        from lenet.errors import InputError
        from lenet.files import read_csv, write_bytes
        from lenet.results import figures

        columns = ["train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "learning_rate"]
        history = read_csv(plots / "training.csv", {"epoch": "int64"} | dict.fromkeys(columns, "float64"))
        predictions = read_csv(
            plots / "predictions.csv", {"actual": "int64", "predicted": "int64", "probability": "float64"}
        )
        training_images, training_labels = read_labelled_images(raw, "train")
        test_images, test_labels = read_labelled_images(raw, "t10k")
        digits, probabilities = predictions["predicted"].between(0, 9), predictions["probability"].between(0, 1)
        if predictions["actual"].tolist() != test_labels.tolist() or not (digits & probabilities).all():
            raise InputError(
                f"{plots / 'predictions.csv'}: does not belong to the test images in {raw}; run `dvc repro evaluate`"
            )

        dataset = {"mnist": "MNIST", "digits": "scikit-learn's digits"}[settings.data.dataset]
        accuracy = (predictions["actual"] == predictions["predicted"]).mean()
        title = f"{dataset}: {accuracy:.2%} of {len(predictions):,} test images correct"
        pictures = {
            "samples": figures.samples(training_images, training_labels, options.samples, dataset),
            "training_curves": figures.training_curves(history, dataset),
            "confusion_matrix": figures.confusion_matrix(predictions, title),
            "per_class_accuracy": figures.per_class_accuracy(predictions, title),
            "mistakes": figures.mistakes(test_images, predictions, options.mistakes, title),
        }
        for name, figure in pictures.items():
            write_bytes(plots / f"{name}.png", figures.to_png(figure))
        print(f"{plots}: {', '.join(f'{name}.png' for name in pictures)}")


if __name__ == "__main__":
    run("python stages/plot.py", plot)
