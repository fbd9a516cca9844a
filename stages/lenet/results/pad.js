{
  const { networks, examples } = JSON.parse(document.getElementById("networks").textContent);
  const layers = networks.map(network);
  const pictures = examples && bytes(examples.images);
  const prepare = { mnist: asMnist, resize: resized };

  const pad = document.getElementById("pad"), answer = document.getElementById("answer");
  const pen = pad.getContext("2d", { willReadFrequently: true });
  pen.lineWidth = 22; // As wide, in proportion to the digit, as MNIST's strokes.
  pen.lineCap = pen.lineJoin = "round";
  const invitation = answer.textContent;

  // Ink is what is opaque.
  function ink() {
    const { width, height } = pad, { data } = pen.getImageData(0, 0, width, height);
    const values = new Uint8Array(width * height);
    for (let at = 0; at < values.length; at++) values[at] = data[4 * at + 3];
    return { width, height, values };
  }

  // A square of tiles for maps, a column or a block for units: F6 has the paper's 7x12.
  function columns({ maps, side }) {
    return side > 1 ? Math.floor(Math.sqrt(maps)) : Math.ceil(maps / Math.max(12, Math.round(1.4 * Math.sqrt(maps))));
  }

  // The maps of a layer side by side, the largest value black, the least white.
  function show(canvas, { maps, side, values }) {
    const across = columns({ maps, side }), gap = side > 1 ? 1 : 0, step = side + gap;
    canvas.width = across * step - gap;
    canvas.height = Math.ceil(maps / across) * step - gap;
    const context = canvas.getContext("2d"), sheet = context.createImageData(canvas.width, canvas.height);
    sheet.data.fill(192);
    let least = Infinity, most = -Infinity;
    for (const value of values) {
      if (value < least) least = value;
      if (value > most) most = value;
    }
    const scale = most > least ? 255 / (most - least) : 0;
    for (let at = 0; at < values.length; at++) {
      const map = Math.floor(at / (side * side)), pixel = at % (side * side);
      const row = Math.floor(map / across) * step + Math.floor(pixel / side), column = map % across * step + pixel % side;
      const place = 4 * (row * canvas.width + column);
      sheet.data.fill(255 - scale * (values[at] - least), place, place + 3);
      sheet.data[place + 3] = 255;
    }
    context.putImageData(sheet, 0, 0);
  }

  function showLayers(number, image, outputs) {
    const canvases = document.querySelectorAll(`.layers[data-network="${number}"] canvas`);
    const seen = { ...outputs, input: { maps: 1, side: 28, values: image } };
    Object.values(seen).forEach((output, at) => show(canvases[at], output));
  }

  const inPercent = share => share === undefined ? "\u2013" : `${(100 * share).toFixed(1)}%`;

  function showProbabilities(number, probabilities, first) {
    document.querySelectorAll(`table[data-network="${number}"] tbody tr`).forEach((row, label) => {
      row.classList.toggle("first", label === first);
      row.style.setProperty("--probability", probabilities[label] ?? 0);
      row.querySelector(".share").textContent = inPercent(probabilities[label]);
    });
  }

  // What the networks make of an image, which they may see in different ways; returns it in words.
  function look(images) {
    const said = networks.map(({ name, classes, prepare, familiar }, number) => {
      const outputs = forward(layers[number], images[prepare]), probabilities = softmax(outputs.output.values);
      const first = probabilities.indexOf(Math.max(...probabilities));
      showLayers(number, images[prepare], outputs);
      showProbabilities(number, probabilities, first);
      const best = `${classes[first]} (${networks.length > 1 ? `${name}, ` : ""}${inPercent(probabilities[first])})`;
      return familiar !== null && familiarity(outputs.output.values) < familiar ? `${best}, but strange` : best;
    });
    return `Most probable: ${said.join("; ")}.`;
  }

  let isEmpty = true, isExample = false, example = 0;

  function wipe() {
    pen.clearRect(0, 0, pad.width, pad.height);
    isEmpty = true;
    isExample = false;
  }

  // The layers of an empty image, and no answer.
  function clear() {
    wipe();
    const image = new Uint8Array(28 * 28);
    networks.forEach((_, number) => {
      showLayers(number, image, forward(layers[number], image));
      showProbabilities(number, []);
    });
    answer.textContent = invitation;
  }

  let isWaiting = false;
  function changed() {
    isEmpty = false;
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => {
      isWaiting = false;
      if (isEmpty || isExample) return;
      const drawn = ink();
      answer.textContent = look(Object.fromEntries(networks.map(each => [each.prepare, prepare[each.prepare](drawn)])));
    });
  }

  let last; // Where the pen is, while it is down.
  function drawTo({ clientX, clientY }) {
    const { left, top, width } = pad.getBoundingClientRect(), scale = pad.width / width;
    const next = { x: (clientX - left) * scale, y: (clientY - top) * scale };
    last ??= { x: next.x - 0.1, y: next.y }; // A dot is a very short line: one without length would not be drawn.
    pen.beginPath();
    pen.moveTo(last.x, last.y);
    pen.lineTo(next.x, next.y);
    pen.stroke();
    last = next;
  }

  pad.addEventListener("pointerdown", event => {
    if (!event.isPrimary || event.button !== 0) return;
    if (isExample) wipe();
    pad.setPointerCapture(event.pointerId);
    answer.setAttribute("aria-busy", "true"); // Nothing is read out in the middle of a stroke.
    drawTo(event);
    changed();
  });
  pad.addEventListener("pointermove", event => {
    if (!last || !event.isPrimary) return;
    const events = event.getCoalescedEvents?.() ?? [];
    (events.length ? events : [event]).forEach(drawTo);
    changed();
  });
  for (const end of ["pointerup", "pointercancel"])
    pad.addEventListener(end, event => {
      if (!event.isPrimary) return;
      last = undefined;
      answer.setAttribute("aria-busy", "false");
    });

  document.getElementById("clear").addEventListener("click", clear);

  document.getElementById("example")?.addEventListener("click", () => {
    wipe();
    const image = pictures.subarray(784 * example, 784 * (example + 1));
    image.forEach((value, at) => {
      pen.fillStyle = `rgb(0 0 0 / ${value / 255})`;
      pen.fillRect(at % 28 * 10, Math.floor(at / 28) * 10, 10, 10);
    });
    answer.textContent = `A test image, ${examples.labels[example]}. ${look({ mnist: image, resize: image })}`;
    isExample = true;
    example = (example + 1) % examples.labels.length;
  });

  clear();
}
