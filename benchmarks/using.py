"""How quick, how large and how exact are predict, export and draw? `python benchmarks/using.py`.

Times `lenet predict` of one image and of 10,000 files, each run in a process of its own, exports the network, draws
strokes in Chromium on the page of `lenet draw`, and compares the logits of all with PyTorch's for MNIST's test images.
Writes benchmarks/using.csv: a value, in this unit, with the least and the most of several runs. Of the strokes it has
the median and, as the most, the 95th percentile. Needs `dvc repro` and Chromium; takes two minutes on two cores.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from lenet.data.tensors import load_dataset
from lenet.environment import environment
from lenet.experiments import drawing, models, report
from lenet.experiments.revisions import TEST_SET, load
from lenet.files import write_csv
from lenet.network.backend import predict
from lenet.processor import set_arithmetic
from lenet.results import export
from lenet.results.javascript import in_base64, program

RUNS = 7
STROKES = 500

# The table changes in the frame that follows the event: once the observer runs, all pictures are drawn too.
DRAW = """async count => {
  const pad = document.getElementById("pad"), { left, top } = pad.getBoundingClientRect();
  pad.setPointerCapture = () => {}; // There is no such pointer.
  const changed = () => new Promise(done => {
    const observer = new MutationObserver(() => { observer.disconnect(); done(performance.now()); });
    observer.observe(document.querySelector("table[data-network]"), { subtree: true, childList: true });
  });
  const frame = () => new Promise(done => requestAnimationFrame(() => done(performance.now())));
  const times = [];
  for (let number = 0; number < count; number++) {
    const place = 2 * Math.PI * (number % 40) / 40;
    const [clientX, clientY] = [left + 140 + 60 * Math.cos(place), top + 140 + 90 * Math.sin(place)];
    if (number % 40 === 0) document.getElementById("clear").click();
    await frame();
    await new Promise(done => setTimeout(done, 20 * Math.random())); // At any time between two frames.
    const seen = changed(), began = performance.now(), starts = frame();
    const kind = number % 40 ? "pointermove" : "pointerdown";
    pad.dispatchEvent(new PointerEvent(kind, { clientX, clientY, isPrimary: true }));
    const [shown, started] = await Promise.all([seen, starts]);
    times.push([shown - began, shown - started]);
  }
  return times;
}"""

LOGITS = """([program, images]) => {
  const layers = network(program), all = bytes(images), logits = [], started = performance.now();
  for (let at = 0; at < all.length; at += 784) {
    const outputs = forward(layers, all.subarray(at, at + 784));
    logits.push([...outputs.output.values]);
  }
  return [logits, performance.now() - started];
}"""


Row = tuple[str, str, float, float, float]


def seconds(*command: str) -> float:
    """How long a program takes."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def timed(folder: Path, images: torch.Tensor) -> list[Row]:
    """`lenet predict` from the shell, and what importing PyTorch takes of it."""
    for number, image in enumerate(images.numpy()):
        Image.fromarray(image).save(folder / f"{number:05}.png")
    lenet = str(Path(sys.executable).with_name("lenet"))
    cases = {
        "lenet predict, one image": (lenet, "predict", str(folder / "00000.png")),
        "of which importing PyTorch": (sys.executable, "-c", "import torch"),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for command in cases.values():
        seconds(*command)  # The first time, files come from the disk.
    for _ in range(RUNS):
        for name, command in cases.items():
            found[name].append(seconds(*command))
    found["lenet predict, 10,000 files"] = [seconds(lenet, "predict", str(folder)) for _ in range(3)]
    return [(name, "s", median(times), min(times), max(times)) for name, times in found.items()]


def exported(model: models.Trained, images: torch.Tensor, logits: torch.Tensor) -> list[Row]:
    """The sizes of exported networks, and how far their logits are from PyTorch's."""
    rows: list[Row] = []
    for name, (convert, check) in export.FORMATS.items():
        content = convert(model.network, model.classes, models.provenance(model))
        difference = check(content, images, logits).difference
        rows.append((f"size of model.{name}", "kB", *3 * (len(content) / 1e3,)))
        rows.append((f"largest difference of a logit, {name}", "", *3 * (difference,)))
    return rows


def drawn(model: models.Trained, images: torch.Tensor, logits: torch.Tensor) -> list[Row]:
    """The page: from an event of the pointer to the new probabilities, and what JavaScript computes."""
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "draw.html")
        path.write_bytes(drawing.page([model]))
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(path.as_uri())
        times = np.array(page.evaluate(DRAW, STROKES))
        found: list[Any] = [
            page.evaluate(LOGITS, [program(model.network), in_base64(part)]) for part in images.split(1000)
        ]
        browser.close()
    here = torch.tensor([row for rows, _ in found for row in rows])
    each = [milliseconds / 1000 for _, milliseconds in found]
    rows: list[Row] = []
    for name, column in zip(("", ", without the wait for a frame"), times.T, strict=True):
        middle, most = np.quantile(column, [0.5, 0.95]).tolist()
        rows.append((f"from a stroke to the new probabilities{name}", "ms", middle, column.min().item(), most))
    rows.append(("an image in JavaScript", "ms", median(each), min(each), max(each)))
    rows.append(("largest difference of a logit, JavaScript", "", *3 * ((here - logits).abs().max().item(),)))
    return rows


def main() -> None:
    """Measure all, print and write the table."""
    set_arithmetic("portable")
    model = models.trained(models.one("workspace"))
    images = load_dataset(Path(TEST_SET), len(model.classes)).images
    logits = predict(model.network, images, 250)
    with tempfile.TemporaryDirectory(prefix="lenet-using-") as folder:
        rows = timed(Path(folder), images)
    rows += exported(model, images, logits) + drawn(model, images, logits)
    pages = {"draw.html": drawing.page([model]), "report.html of one run": report.page([load(model.revision)])}
    rows += [(f"size of {name}", "kB", *3 * (len(content) / 1e3,)) for name, content in pages.items()]
    about = environment(torch.device("cpu"), "portable")
    machine = f"{about['processor']}, torch {about['torch']}"
    for name, unit, middle, least, most in rows:
        print(f"{name}: {middle:.3g} {unit} ({least:.3g} to {most:.3g})")
    columns = ["what", "unit", "value", "value_least", "value_most", "machine"]
    write_csv(Path(__file__).parent / "using.csv", columns, [[*row, machine] for row in rows])


if __name__ == "__main__":
    main()
