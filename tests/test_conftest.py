"""The choices that conftest.py makes for all tests."""

import shutil
import sys
from pathlib import Path

import pytest
from conftest import FILES, ROOT, find_mnist, sh


def put_mnist(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for resource in FILES:
        (folder / resource.name).touch()
    return folder


def test_the_first_place_with_all_of_mnist_is_used(tmp_path: Path) -> None:
    first, second = put_mnist(tmp_path / "a first"), put_mnist(tmp_path / "second")
    places = ["", str(tmp_path / "missing"), first.as_uri(), str(second)]
    assert find_mnist(*places) == first
    (first / FILES[3].name).unlink()
    assert find_mnist(*places) == second
    (second / FILES[0].name).unlink()
    assert find_mnist(*places) is None


@pytest.mark.parametrize("place", ["shared/mnist", "mirror", "main/data/downloads/mnist", None])
def test_mnist_is_looked_for_in_three_places(tmp_path: Path, place: str | None) -> None:
    tests = tmp_path / "main/tests"
    tests.mkdir(parents=True)
    shutil.copy(ROOT / "tests/conftest.py", tests)
    shutil.copy(ROOT / "params.yaml", tmp_path / "main")
    expected = str(put_mnist(tmp_path / place)) if place else "nowhere"
    program = (
        "import conftest; print(conftest.MNIST, *conftest.needs_mnist.args, conftest.needs_mnist.kwargs['reason'])"
    )
    text = sh(sys.executable, "-c", program, cwd=tests, MNIST_MIRROR=(tmp_path / "mirror").as_uri())
    reason = "../shared/mnist, in the folder that MNIST_MIRROR names or in data/downloads/mnist; `make repro`"
    assert text.startswith(f"{expected} {place is None} needs MNIST's four files in {reason}")
