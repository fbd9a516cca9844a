"""The pad of `lenet draw` and `lenet report`: what the browser computes, and drawing with the mouse and a finger."""

import base64
import math
import shutil
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    DEFAULTS,
    MNIST,
    ROOT,
    RunLenet,
    assert_refused,
    commit,
    needs_mnist,
    sh,
    slow_except,
)
from numpy.typing import NDArray
from pages import opened, words
from PIL import Image
from playwright.sync_api import Browser, Page
from torch import nn

from lenet.data.idx import read_labelled_images
from lenet.data.images import as_mnist, resized
from lenet.data.info import DIGITS
from lenet.data.tensors import load_dataset, to_tensors
from lenet.experiments import drawing
from lenet.experiments.models import Trained
from lenet.experiments.revisions import Revision
from lenet.network.backend import predict
from lenet.network.lenet import build
from lenet.network.saved import load_model
from lenet.params import Model, parse_yaml
from lenet.results.javascript import in_base64, program
from lenet.results.observation import observe
from lenet.results.prediction import familiarity


def preset(path: Path) -> dict[str, object]:
    """The model section of a preset."""
    values: Any = parse_yaml(path.read_bytes(), path.name)
    return dict(values.get("model", {}))


PRESETS = {path.stem: preset(path) for path in sorted((ROOT / "presets").glob("*.yaml"))}
OTHERS: dict[str, dict[str, object]] = {
    "batch-norm": {"batch_norm": True, "dropout": 0.3, "padding": 0},
    "batch-norm-mlp": {"architecture": "mlp", "batch_norm": True, "activation": "tanh"},
    "batch-norm-sparse": {"c3": "sparse", "batch_norm": True, "pooling": "trainable", "activation": "scaled_tanh"},
    "sigmoid-average": {"activation": "sigmoid", "pooling": "average", "mean": 0.0, "std": 1.0},
}
# Of presets with the same network, one.
DISTINCT = {repr(changes): name for name, changes in PRESETS.items()}.values()
NETWORKS: dict[str, dict[str, object]] = {"params.yaml": {}} | {name: PRESETS[name] for name in DISTINCT} | OTHERS


def network(changes: dict[str, object]) -> nn.Sequential:
    """A network whose weights are random, and whose batch norms have seen something."""
    torch.manual_seed(0)
    built = build(Model(**DEFAULTS.model.model_dump() | changes))
    for module in built:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return built.eval()


def model(name: str, found: nn.Sequential, prepare: str = "mnist") -> Trained:
    return Trained(Revision(name, None), found, [*DIGITS], "mnist", prepare)


@pytest.fixture(scope="module")
def pad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a network with random weights."""
    path = tmp_path_factory.mktemp("pad") / "draw.html"
    path.write_bytes(drawing.page([model("random", network({}))]))
    return path


COMPUTED = """([program, images]) => {
  const layers = network(program), all = bytes(images), logits = [];
  const compute = at => forward(layers, all.subarray(at, at + 784));
  for (let at = 0; at < all.length; at += 784) logits.push([...compute(at).output.values]);
  const first = compute(0);
  const outputs = Object.fromEntries(Object.entries(first).map(([name, x]) => [name, [...x.values]]));
  return [logits, outputs, softmax(first.output.values)];
}"""


@pytest.mark.parametrize("name", slow_except(NETWORKS, ["params.yaml", "lenet5-1998", "lenet-28", *OTHERS]))
def test_every_network_computes_what_pytorch_does(browser: Browser, pad: Path, digits_run: Path, name: str) -> None:
    found, images = network(NETWORKS[name]), load_dataset(digits_run / "data/processed/test.pt", 10).images[:40]
    with opened(browser, pad) as (page, problems, _):
        logits, outputs, probabilities = page.evaluate(COMPUTED, [program(found), in_base64(images)])
        assert not problems
    expected = predict(found, images, 40)
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.tensor(probabilities), expected[0].softmax(0), rtol=0, atol=1e-4)
    layers = observe(found, images, 40).layers
    assert [*outputs] == [*layers]
    for layer, values in layers.items():
        np.testing.assert_allclose(np.array(outputs[layer]), values.ravel(), rtol=0, atol=1e-3, err_msg=layer)


@pytest.mark.slow
@needs_mnist
def test_all_test_images(browser: Browser, pad: Path, mnist_network: nn.Sequential) -> None:
    images = to_tensors(*read_labelled_images(MNIST, "t10k", DIGITS)).images
    with opened(browser, pad) as (page, *_):
        found = [page.evaluate(COMPUTED, [program(mnist_network), in_base64(part)])[0] for part in images.split(2500)]
    logits = torch.tensor([row for part in found for row in part])
    torch.testing.assert_close(logits, predict(mnist_network, images, 250), rtol=0, atol=1e-3)


# Preparation.

PREPARED = """([width, height, ink]) => {
  const image = { width, height, values: bytes(ink) };
  return [asMnist(image), resized(image)].map(pixels => pixels && [...pixels]);
}"""


def assert_prepared_alike(page: Page, ink: NDArray[np.uint8]) -> None:
    """The browser prepares ink, uint8 (height, width), as Python does with the locked Pillow: no pixel differs."""
    height, width = ink.shape
    made, whole = page.evaluate(PREPARED, [width, height, in_base64(torch.from_numpy(ink.copy()))])
    expected = as_mnist(Image.fromarray(255 - ink))
    assert expected is not None
    assert made == expected.ravel().tolist()
    assert whole == resized(Image.fromarray(ink)).ravel().tolist()


def test_digits_are_prepared_as_in_python(browser: Browser, pad: Path, digits_run: Path) -> None:
    """As they are, which need enlarging, and enlarged in two ways, which need reducing."""
    images = load_dataset(digits_run / "data/processed/test.pt", 10).images[:20].numpy()
    with opened(browser, pad) as (page, *_):
        for image in images:
            assert_prepared_alike(page, image)
            for size, resampling in (((280, 280), Image.Resampling.NEAREST), ((97, 211), Image.Resampling.BILINEAR)):
                assert_prepared_alike(page, np.asarray(Image.fromarray(image).resize(size, resampling)))


def test_other_ink_is_prepared_as_in_python(browser: Browser, pad: Path) -> None:
    """A pixel, a line, a halo fainter than a sixteenth, ink that is nowhere black, ink at the lower edge."""
    ink = np.zeros((6, 60, 60), np.uint8)
    ink[0, 10, 20] = 255
    ink[1, 5:50, 30:32] = 255
    ink[2, 10:50, 10:50] = 15
    ink[2, 20:41, 20:30] = ink[2, 38:41, 25:32] = 255
    ink[3, 20:33, 5:50] = 100
    ink[3, 20, 5:50] = 7
    ink[4, 59, 30:45] = 200
    ink[5, 3:24, 3:47] = np.arange(44) * 5
    with opened(browser, pad) as (page, *_):
        for each in ink:
            assert_prepared_alike(page, each)
        assert page.evaluate("asMnist({ width: 3, height: 3, values: new Uint8Array(9) }) === undefined")


# Drawing. Strokes on a square with the side 280.

Stroke = Sequence[tuple[float, float]]


def arc(x: float, y: float, width: float, height: float, start: float, end: float) -> list[tuple[float, float]]:
    """A part of an ellipse, in degrees, clockwise from the right."""
    angles = [math.radians(start + (end - start) * step / 10) for step in range(11)]
    return [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles]


STROKES: dict[str, list[Stroke]] = {
    "0": [arc(140, 140, 60, 90, -90, 270)],
    "1": [[(150, 50), (140, 140), (132, 230)]],
    "2": [[*arc(140, 100, 55, 50, -160, 40), (85, 225), (205, 222)]],
    "3": [[*arc(130, 95, 50, 45, -150, 80), *arc(130, 185, 58, 48, -80, 150)]],
    "4": [[(100, 55), (85, 140), (190, 140)], [(175, 60), (165, 230)]],
    "5": [[(185, 60), (105, 60), (98, 125), *arc(130, 170, 58, 55, -110, 140)]],
    "6": [[(165, 50), (115, 110), *arc(140, 180, 48, 48, 190, -180)]],
    "7": [[(85, 65), (195, 65), (130, 230)]],
    "8": [[*arc(140, 95, 42, 40, 90, -270), *arc(140, 185, 52, 50, -90, 270)]],
    "9": [[*arc(135, 100, 48, 45, 0, -360), (180, 110), (165, 230)]],
}


def on_page(page: Page, stroke: Stroke) -> Iterator[tuple[float, float]]:
    box = page.locator("#pad").bounding_box()
    assert box
    scale = box["width"] / 280
    for x, y in stroke:
        yield box["x"] + scale * x, box["y"] + scale * y


def draw_with_mouse(page: Page, strokes: Sequence[Stroke]) -> None:
    page.locator("#pad").scroll_into_view_if_needed()
    for stroke in strokes:
        for number, place in enumerate(on_page(page, stroke)):
            page.mouse.move(*place)
            if number == 0:
                page.mouse.down()
        page.mouse.up()
    settle(page)


def draw_with_finger(page: Page, strokes: Sequence[Stroke]) -> None:
    page.locator("#pad").scroll_into_view_if_needed()
    session = page.context.new_cdp_session(page)
    for stroke in strokes:
        for number, (x, y) in enumerate(on_page(page, stroke)):
            kind = "touchMove" if number else "touchStart"
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    settle(page)


def settle(page: Page) -> None:
    """What was drawn is seen in the next frame."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def read(page: Page, number: int = 0) -> str:
    """The class in bold type."""
    return page.locator(f"table[data-network='{number}'] .first th").inner_text()


INK = """() => {
  const { data } = document.getElementById("pad").getContext("2d").getImageData(0, 0, 280, 280);
  return btoa(Array.from({ length: 280 * 280 }, (_, at) => String.fromCharCode(data[4 * at + 3])).join(""));
}"""


def ink(page: Page) -> NDArray[np.uint8]:
    """What is drawn, uint8 (280, 280)."""
    return np.frombuffer(base64.b64decode(page.evaluate(INK)), np.uint8).reshape(280, 280)


@needs_mnist
@pytest.mark.parametrize("width", [1200, 360])
def test_drawn_digits_are_read(browser: Browser, tmp_path: Path, mnist_network: nn.Sequential, width: int) -> None:
    """With the mouse, and on a phone with a finger."""
    path = tmp_path / "draw.html"
    path.write_bytes(drawing.page([model("mnist", mnist_network)]))
    with opened(browser, path, width) as (page, problems, requests):
        found = {}
        for digit, strokes in STROKES.items():
            page.click("#clear")
            (draw_with_mouse if width > 360 else draw_with_finger)(page, strokes)
            found[digit] = read(page)
            assert page.locator("#answer").inner_text().startswith(f"Most probable: {found[digit]} (")
        assert found == {digit: digit for digit in DIGITS}
        assert not problems
        assert not requests


def test_the_page_shows_what_python_computes(browser: Browser, pad: Path) -> None:
    with opened(browser, pad) as (page, *_):
        draw_with_mouse(page, STROKES["5"])
        drawn = ink(page)
        assert_prepared_alike(page, drawn)
        image = as_mnist(Image.fromarray(255 - drawn))
        probabilities = predict(network({}), torch.from_numpy(np.asarray(image))[None], 1)[0].softmax(0)
        shown = page.locator("table[data-network] .share").all_inner_texts()
        assert [float(text.rstrip("%")) for text in shown] == pytest.approx((100 * probabilities).tolist(), abs=0.06)
        assert read(page) == str(int(probabilities.argmax()))
        pixels = page.evaluate(
            "() => { const canvas = document.querySelector('.layers canvas');"
            "return [...canvas.getContext('2d').getImageData(0, 0, 28, 28).data].filter((_, at) => at % 4 === 0); }"
        )
        assert pixels == [255 - value for value in np.asarray(image).ravel().tolist()]
        names = page.locator(".layers strong").all_inner_texts()
        assert names == ["image", "C1", "S2", "C3", "S4", "C5", "F6", "output"]
        sizes = page.locator(".layers canvas").evaluate_all("all => all.map(each => [each.width, each.height])")
        assert sizes == [[28, 28], [57, 86], [29, 44], [43, 43], [23, 23], [8, 15], [7, 12], [1, 10]]


@pytest.mark.parametrize(("familiar", "strange"), [(1e9, True), (-1e9, False), (None, False)])
def test_strange_drawings(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, familiar: float | None, strange: bool
) -> None:
    """By the same measure as `lenet predict`."""
    monkeypatch.setattr(drawing, "_familiar", lambda _: familiar)
    path = tmp_path / "draw.html"
    path.write_bytes(drawing.page([model("random", network({}))]))
    with opened(browser, path) as (page, *_):
        draw_with_mouse(page, STROKES["7"])
        assert ("but strange" in page.locator("#answer").inner_text()) == strange
        logits = torch.tensor([[3.0, -200.0, 1000.0, 999.0]])
        assert page.evaluate("familiarity([3, -200, 1000, 999])") == pytest.approx(familiarity(logits).item(), rel=1e-6)


def test_the_answer_changes_within_a_stroke_and_can_be_cleared(browser: Browser, pad: Path) -> None:
    with opened(browser, pad) as (page, problems, _):
        answer, shares = page.locator("#answer"), page.locator(".share")
        invitation = answer.inner_text()
        assert "Draw in the square" in invitation
        assert {*shares.all_inner_texts()} == {"\N{EN DASH}"}
        first, second, third = on_page(page, STROKES["1"][0])
        page.mouse.move(*first)
        page.mouse.down()
        settle(page)
        dot = shares.all_inner_texts()
        assert answer.get_attribute("aria-busy") == "true"
        page.mouse.move(*second)
        page.mouse.move(*third)
        settle(page)
        assert shares.all_inner_texts() != dot
        page.mouse.up()
        assert answer.get_attribute("aria-busy") == "false"
        before = ink(page)
        assert before.max() == 255
        page.mouse.move(*first)  # With the button up.
        page.mouse.click(*first, button="right")
        assert np.array_equal(ink(page), before)
        page.get_by_role("button", name="Clear").click()
        assert not ink(page).any()
        assert answer.inner_text() == invitation
        assert {*shares.all_inner_texts()} == {"\N{EN DASH}"}
        assert page.locator(".first").count() == 0
        assert not problems


def test_a_stroke_ends_where_the_button_is_released(browser: Browser, pad: Path) -> None:
    """Outside the pad too."""
    with opened(browser, pad) as (page, problems, _):
        draw_with_mouse(page, [[(140, 140), (400, 140)]])
        before = ink(page)
        assert before[140, 279] == 255
        for place in on_page(page, [(140, 200), (200, 250)]):
            page.mouse.move(*place)
        assert np.array_equal(ink(page), before)
        assert not problems


def test_test_images_for_those_who_cannot_draw(
    browser: Browser, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits_run)
    path = tmp_path / "draw.html"
    path.write_bytes(drawing.page([model("workspace", load_model(Path("models/lenet.pt"))[0].eval())]))
    test_set = load_dataset(Path("data/processed/test.pt"), 10)
    with opened(browser, path) as (page, problems, _):
        page.locator("#example").focus()
        for number in range(11):
            page.keyboard.press("Enter")
            label = number % 10
            image = test_set.images[(test_set.labels == label).nonzero()[0]].numpy()[0]
            assert np.array_equal(ink(page)[5::10, 5::10], image)
            assert page.locator("#answer").inner_text().startswith(f"A test image, {label}. Most probable: ")
        draw_with_mouse(page, STROKES["1"])
        assert not ink(page)[:, :100].any(), "a stroke replaces the image"
        assert page.locator("#answer").inner_text().startswith("Most probable: ")
        assert not problems


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """The page of networks that prepare the drawing in different ways."""
    clothes = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    whole = model("clothes", network({"architecture": "mlp"}), "resize")._replace(classes=clothes)
    path = tmp_path / "draw.html"
    path.write_bytes(drawing.page([model("published", network(PRESETS["lenet5-1998"])), whole]))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_several_networks(browser: Browser, several: Path, scheme: str) -> None:
    assert "For clothes, fill the shape in" in words(browser, several)
    with opened(browser, several, width=360, scheme=scheme) as (page, problems, _):
        draw_with_mouse(page, STROKES["3"])
        assert page.locator("h1, h2").all_inner_texts() == [
            "Draw for the networks of published and clothes",
            "published",
            "clothes",
        ]
        answers = [read(page, number) for number in (0, 1)]
        said = page.locator("#answer").inner_text()
        assert f"{answers[0]} (published, " in said
        assert f"{answers[1]} (clothes, " in said
        whole = resized(Image.fromarray(ink(page)))
        probabilities = predict(network({"architecture": "mlp"}), torch.tensor(whole)[None], 1)[0].softmax(0)
        shown = page.locator("table[data-network='1'] .share").all_inner_texts()
        assert [float(text.rstrip("%")) for text in shown] == pytest.approx((100 * probabilities).tolist(), abs=0.06)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert not problems


def test_without_javascript(browser: Browser, pad: Path) -> None:
    assert "Drawing needs JavaScript." in words(browser, pad)


# The command.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the browser was asked for."""
    urls = list[str]()

    def start(url: str) -> bool:
        urls.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", start)
    return urls


def test_lenet_draw(browser: Browser, digits_run: Path, run_lenet: RunLenet, asked: list[str], tmp_path: Path) -> None:
    out = tmp_path / "draw.html"
    outcome = run_lenet(digits_run, "draw", "HEAD", "--out", str(out))
    assert outcome == (0, f"{out}: 1 revision, 0.4 MB\n", "")
    assert asked == [out.as_uri()]
    with opened(browser, out) as (page, problems, requests):
        assert page.title() == page.locator("h1").inner_text() == "Draw for the network of HEAD"
        draw_with_mouse(page, STROKES["0"])
        assert read(page) in DIGITS
        assert not problems
        assert not requests


def test_what_cannot_be_drawn_for(digits_project: Path, run_lenet: RunLenet, asked: list[str]) -> None:
    assert_refused(run_lenet(digits_project, "draw", "nothing"), "nothing is neither a revision")
    assert_refused(run_lenet(digits_project, "draw", "--out", "plots"), "plots: Is a directory; a file belongs there")
    (digits_project / "models/lenet.pt").unlink()
    assert_refused(run_lenet(digits_project, "draw"), "models/lenet.pt")
    shutil.rmtree(digits_project / ".dvc/cache")
    assert_refused(run_lenet(digits_project, "draw", "HEAD"), "HEAD: DVC has its models/lenet.pt neither")
    sh("git", "rm", "--quiet", "dvc.lock", cwd=digits_project)
    commit(digits_project, "nothing has run")
    assert_refused(run_lenet(digits_project, "draw", "HEAD"), "HEAD has no results: it has no dvc.lock")
    assert not asked
    assert not (digits_project / "dvc_plots").exists()


def test_no_browser(digits_project: Path, run_lenet: RunLenet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    outcome = run_lenet(digits_project, "draw")
    assert outcome == (
        0,
        "dvc_plots/draw.html: 1 revision, 0.4 MB\n",
        "warning: no browser could be started; open dvc_plots/draw.html yourself\n",
    )
    assert (digits_project / "dvc_plots/draw.html").exists()
