"""Stage 1, download: the data set's four IDX files, byte for byte as published."""

import os
from pathlib import Path
from typing import Annotated

from lenet.cli import Debug, Option, ParamsFile, one_line_errors, run


def download(
    params: ParamsFile = Path("params.yaml"),
    output: Annotated[Path, Option(help="Folder for the four *-ubyte.gz files.")] = Path("data/raw"),
    kept: Annotated[
        Path, Option(help="Folder that keeps downloads, because DVC deletes a stage's outputs before it runs.")
    ] = Path("data/downloads"),
    debug: Debug = False,
) -> None:
    """Fetch the data set that data.dataset names.

    MNIST comes from the public mirrors; if the environment sets MNIST_MIRROR, a folder or a file:, http: or https:
    URL, that is tried first. Each file is checked against its published SHA-256. If a mirror fails in any way, the next
    is tried. Files that are there already and pass the check are not fetched again.

    `digits` comes out of scikit-learn's package and needs no network.
    """
    with one_line_errors(debug):
        from lenet.files import write_bytes
        from lenet.params import load_params

        dataset = load_params(params).data.dataset
        if dataset == "digits":
            from lenet.data.digits import idx_files

            for name, content in idx_files().items():
                write_bytes(output / name, content)
        else:
            from lenet.data.mnist import RESOURCES, fetch, is_published, mirrors

            order = mirrors(first=os.environ.get("MNIST_MIRROR", ""))
            for resource in RESOURCES:
                if is_published(output / resource.name, resource):
                    continue
                if not is_published(kept / resource.name, resource):
                    fetch(resource, order, kept / resource.name)
                write_bytes(output / resource.name, (kept / resource.name).read_bytes())
        print(f"{output}: the four files of {dataset}")


if __name__ == "__main__":
    run("python stages/download.py", download)
