"""Stage 1, download: the data set's four IDX files, as published or made here, and what there is to know of it."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from lenet.cli import Debug, Option, ParamsFile, one_line_errors, run


def download(
    params: ParamsFile = Path("params.yaml"),
    output: Annotated[Path, Option(help="Folder for the four *-ubyte.gz files and dataset.json.")] = Path("data/raw"),
    kept: Annotated[
        Path, Option(help="Folder that keeps downloads, because DVC deletes a stage's outputs before it runs.")
    ] = Path("data/downloads"),
    debug: Debug = False,
) -> None:
    """Fetch the data set that data.dataset names.

    Published ones come from public mirrors; if the environment sets MNIST_MIRROR (FASHION_MNIST_MIRROR, KMNIST_MIRROR),
    a folder or a file:, http: or https: URL, that is tried first. Each file is checked against its published SHA-256.
    If a mirror fails in any way, the next is tried. Files that are there already and pass the check are not fetched
    again.

    `digits` comes out of scikit-learn's package, and `own` is made of the images in data.folder; neither needs a
    network. If preprocess.hold_out is writers, the file that names MNIST's writers is fetched too (QMNIST_MIRROR).
    """
    with one_line_errors(debug):
        from lenet.data.catalog import find
        from lenet.data.info import read_info, write_info
        from lenet.errors import InputError
        from lenet.files import write_bytes
        from lenet.params import load_params

        settings = load_params(params)
        options, by_writers = settings.data, settings.preprocess.hold_out == "writers"
        entry = find(options.dataset, str(params))
        if by_writers and not (entry and entry.writers):
            raise InputError(
                f"{params}: preprocess.hold_out is writers, but those of {options.dataset} are not known; use images"
            )
        if not entry:
            from lenet.data.own import read_folder

            info, files = read_folder(Path(options.folder), options.prepare)
        elif not entry.source:
            from lenet.data.digits import idx_files

            info, files = entry.info, idx_files()
        else:
            from lenet.data.mirrors import fetch_all

            info, files = entry.info, {}
            for source in entry.sources:
                if source is entry.source or by_writers:
                    own = os.environ.get(source.variable, "")
                    files |= fetch_all(source, own, kept / options.dataset, output)
        described = output / "dataset.json"
        with suppress(InputError):
            # If this is interrupted, files of two data sets must not be taken for one.
            if described.is_file() and read_info(described) != info:
                described.unlink()
        for name, content in files.items():
            write_bytes(output / name, content)
        write_info(described, info)
        print(f"{output}: the four files of {info.title}")


if __name__ == "__main__":
    run("python stages/download.py", download)
