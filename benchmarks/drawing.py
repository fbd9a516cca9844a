"""How quickly, and how exactly, the pad of `lenet draw` computes: `python benchmarks/drawing.py`.

Draws many strokes in Chromium on the page of the workspace's network, and prints the milliseconds from each event of
the pointer to the new probabilities, median and 95th percentile: the wait for the next frame included, and without it.
Then the largest difference of a logit from PyTorch's over MNIST's test images.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from playwright.sync_api import sync_playwright

from lenet.data.tensors import load_dataset
from lenet.experiments.drawing import page as page_of
from lenet.experiments.models import trained
from lenet.experiments.revisions import TEST_SET, WORKSPACE, Revision
from lenet.network.backend import predict
from lenet.results.javascript import in_base64, program

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


def main() -> None:
    model = trained(Revision(WORKSPACE, None))
    images = load_dataset(Path(TEST_SET), len(model.classes)).images
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "draw.html")
        path.write_bytes(page_of([model]))
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(path.as_uri())
        times = np.array(page.evaluate(DRAW, STROKES))
        found: list[Any] = [
            page.evaluate(LOGITS, [program(model.network), in_base64(part)]) for part in images.split(1000)
        ]
        browser.close()
    for name, column in zip(("from the event, with the wait for a frame", "without it"), times.T, strict=True):
        median, most = np.quantile(column, [0.5, 0.95])
        print(f"{name}: median {median:.1f} ms, 95th percentile {most:.1f} ms of {STROKES}")
    logits = torch.tensor([row for rows, _ in found for row in rows])
    difference = (logits - predict(model.network, images, 250)).abs().max().item()
    each = sum(spent for _, spent in found) / len(images)
    print(f"largest difference of a logit over {len(images):,} test images: {difference:.1e}; {each:.2f} ms for each")


if __name__ == "__main__":
    main()
