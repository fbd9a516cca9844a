"""Stage 1, download: the data set's four IDX files, byte for byte as published, and what there is to know of it."""

import os
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
        from lenet.data.catalog import OWN, find
        from lenet.data.info import write_info
        from lenet.errors import InputError
        from lenet.files import write_bytes
        from lenet.params import load_params

        settings = load_params(params)
        options, by_writers = settings.data, settings.preprocess.hold_out == "writers"
        entry = find(options.dataset, str(params)) if options.dataset != OWN else None
        if by_writers and not (entry and entry.writers):
            raise InputError(
                f"{params}: preprocess.hold_out is writers, but those of {options.dataset} are not known; use images"
            )
        if not entry:
            from lenet.data.own import read_folder

            info, files = read_folder(Path(options.folder).expanduser(), options.prepare)
        else:
            info, files = entry.info, {}
            for source in (entry.source, entry.writers if by_writers else None):
                if source:
                    from lenet.data.mirrors import fetch_all

                    fetch_all(source, os.environ.get(source.variable, ""), kept / options.dataset, output)
            if not entry.source:
                from lenet.data.digits import idx_files

                files = idx_files()
        for name, content in files.items():
            write_bytes(output / name, content)
        write_info(output / "dataset.json", info)
        print(f"{output}: the four files of {info.title}")


if __name__ == "__main__":
    run("python stages/download.py", download)
