"""Stage 5, plot: pictures of the data, the training and the result."""

import sys
import warnings
from pathlib import Path
from typing import Annotated

from lenet.cli import Debug, Option, ParamsFile, one_line_errors, run


def plot(
    params: ParamsFile = Path("params.yaml"),
    raw: Annotated[Path, Option(help="Folder that the stage download has filled.")] = Path("data/raw"),
    features: Annotated[Path, Option(help="What the network sees.")] = Path("data/features.npz"),
    plots: Annotated[Path, Option(help="Folder with training.csv and predictions.csv, and for the pictures.")] = Path(
        "plots"
    ),
    debug: Debug = False,
) -> None:
    """Draw the data, the training, the result and what the network sees.

    That is: samples of the data; training curves; the confusion matrix, each class's accuracy, confident mistakes and
    a reliability diagram; the first layer's kernels, the outputs of all layers for the first test image, and the last
    hidden layer's outputs for all test images.
    """
    with one_line_errors(debug):
        from lenet.params import load_params

        options = load_params(params).plot  # Before the slow imports, so that a mistake is reported at once.

        from lenet.data.idx import read_labelled_images
        from lenet.data.info import read_info
        from lenet.errors import InputError, printable
        from lenet.files import read_csv, write_bytes
        from lenet.results import figures, network_figures
        from lenet.results.features import read_features

        columns = ["train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "learning_rate"]
        history = read_csv(plots / "training.csv", {"epoch": "int64"} | dict.fromkeys(columns, "float64"))
        predictions = read_csv(
            plots / "predictions.csv", {"actual": "str", "predicted": "str", "probability": "float64"}
        )
        info = read_info(raw / "dataset.json")
        training_images, training_labels = read_labelled_images(raw, "train", info.classes)
        test_images, test_labels = read_labelled_images(raw, "t10k", info.classes)
        labels = {name: label for label, name in enumerate(info.classes)}
        for column in ("actual", "predicted"):
            predictions[column] = predictions[column].map(labels)
        known = predictions["predicted"].notna() & predictions["probability"].between(0, 1)
        if predictions["actual"].tolist() != test_labels.tolist() or not known.all():
            raise InputError(
                f"{plots / 'predictions.csv'}: does not belong to the test images in {raw}; run `dvc repro evaluate`"
            )
        seen = read_features(features, len(predictions))

        accuracy = (predictions["actual"] == predictions["predicted"]).mean()
        title = f"{info.title}: {accuracy:.2%} of {len(predictions):,} test images correct"
        drawn = {
            "samples": figures.samples(training_images, training_labels, options.samples, info),
            "training_curves": figures.training_curves(history, info.title),
            "confusion_matrix": figures.confusion_matrix(predictions, info, title),
            "per_class_accuracy": figures.per_class_accuracy(predictions, info, title),
            "mistakes": figures.mistakes(test_images, predictions, options.mistakes, info, title),
            "reliability": figures.reliability_diagram(predictions, info, title),
            "kernels": network_figures.kernels(seen, info),
            "feature_maps": network_figures.feature_maps(seen, info, *predictions.iloc[0, :2]),
            "embedding": network_figures.embedding(seen, predictions, info, title),
        }
        with warnings.catch_warnings(record=True) as caught:
            pictures = {name: figures.to_png(figure) for name, figure in drawn.items()}
        lacking = "the pictures' font lacks characters of the classes' names"
        texts = (printable(str(warning.message)) for warning in caught)
        for text in dict.fromkeys(lacking if "missing from font" in text else text for text in texts):
            print(f"warning: {plots}: {text}", file=sys.stderr)
        for name, picture in pictures.items():
            write_bytes(plots / f"{name}.png", picture)
        print(f"{plots}: {', '.join(f'{name}.png' for name in pictures)}")


if __name__ == "__main__":
    run("python stages/plot.py", plot)
