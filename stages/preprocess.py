"""Stage 2, preprocess: the IDX files as tensors, a validation set held out of the training file."""

from pathlib import Path
from typing import Annotated

from lenet.cli import Debug, Option, ParamsFile, one_line_errors, run


def preprocess(
    params: ParamsFile = Path("params.yaml"),
    raw: Annotated[Path, Option(help="Folder that the stage download has filled.")] = Path("data/raw"),
    output: Annotated[Path, Option(help="Folder for the .pt files.")] = Path("data/processed"),
    debug: Debug = False,
) -> None:
    """Turn the IDX files into training.pt, validation.pt and test.pt.

    Each .pt file holds (images uint8 [N, 28, 28], labels int64 [N]). preprocess.validation_size images, drawn with
    preprocess.seed, are held out of the training file; if it is 0, validation.pt holds no images. If
    preprocess.hold_out is writers, all images of some writers are held out, at least as many. The pixels are unchanged:
    the network itself pads and normalises.
    """
    with one_line_errors(debug):
        from lenet.params import load_params

        options = load_params(params).preprocess  # Before the slow imports, so that a mistake is reported at once.

        import torch

        from lenet.data.idx import read_labelled_images
        from lenet.data.info import read_info
        from lenet.data.tensors import hold_out, hold_out_writers, save_dataset, to_tensors
        from lenet.data.writers import read_writers
        from lenet.errors import InputError

        classes = read_info(raw / "dataset.json").classes
        training = to_tensors(*read_labelled_images(raw, "train", classes))
        test = to_tensors(*read_labelled_images(raw, "t10k", classes))
        if options.validation_size >= len(training.labels):
            raise InputError(
                f"{params}: preprocess.validation_size is {options.validation_size}; it must be less than the "
                f"{len(training.labels)} images of the training file"
            )
        if options.hold_out == "writers":
            writers = torch.from_numpy(read_writers(raw, training.labels.numpy()))
            training, validation = hold_out_writers(training, writers, options.validation_size, options.seed)
            if not len(training.labels):
                raise InputError(
                    f"{params}: preprocess.validation_size is {options.validation_size}, which leaves no writer to "
                    "train on; use a smaller one"
                )
        else:
            training, validation = hold_out(training, options.validation_size, options.seed)

        splits = {"training": training, "validation": validation, "test": test}
        for name, split in splits.items():
            save_dataset(output / f"{name}.pt", split)
        print(f"{output}: " + ", ".join(f"{len(split.labels)} {name}" for name, split in splits.items()) + " images")


if __name__ == "__main__":
    run("python stages/preprocess.py", preprocess)
