"use strict";

// The networks of network/lenet.py and the preparation of an image of data/images.py, in JavaScript.

// Maps are square: {maps, side, values}, with the values map after map, row after row. Units are maps of one pixel.
const maps = (count, side) => ({ maps: count, side, values: new Float32Array(count * side * side) });

const each = squash => ({ maps: count, side, values }) => {
  const y = maps(count, side);
  for (let at = 0; at < values.length; at++) y.values[at] = squash(values[at]);
  return y;
};

const pooling = pool => x => {
  const y = maps(x.maps, x.side >> 1);
  let at = 0;
  for (let map = 0; map < y.maps; map++)
    for (let row = 0; row < y.side; row++)
      for (let column = 0; column < y.side; column++) {
        const upper = (map * x.side + 2 * row) * x.side + 2 * column, lower = upper + x.side;
        y.values[at++] = pool(x.values[upper], x.values[upper + 1], x.values[lower], x.values[lower + 1]);
      }
  return y;
};

const OPERATIONS = {
  normalise(x, [padding, mean, std]) {
    const y = maps(x.maps, x.side + 2 * padding);
    y.values.fill(-mean / std);
    for (let row = 0; row < x.side; row++)
      for (let column = 0; column < x.side; column++)
        y.values[(row + padding) * y.side + column + padding] = (x.values[row * x.side + column] / 255 - mean) / std;
    return y;
  },

  // Dense layers too: their kernels are as large as the maps that they read.
  convolution({ maps: sources, side: width, values }, kernels, biases) {
    const side = Math.sqrt(kernels.length / biases.length / sources);
    const y = maps(biases.length, width - side + 1);
    let at = 0;
    for (let map = 0; map < y.maps; map++)
      for (let row = 0; row < y.side; row++)
        for (let column = 0; column < y.side; column++) {
          let sum = biases[map], weight = map * sources * side * side;
          for (let source = 0; source < sources; source++)
            for (let down = 0; down < side; down++) {
              let pixel = (source * width + row + down) * width + column;
              for (let right = 0; right < side; right++) sum += kernels[weight++] * values[pixel++];
            }
          y.values[at++] = sum;
        }
    return y;
  },

  maximum: pooling((a, b, c, d) => Math.max(a, b, c, d)),
  mean: pooling((a, b, c, d) => (a + b + c + d) / 4),
  sum: pooling((a, b, c, d) => a + b + c + d),

  // The paper's subsampling, after its sum, and batch norm: each map has one coefficient and one bias.
  affine(x, coefficients, biases) {
    const y = maps(x.maps, x.side), area = x.side * x.side;
    let at = 0;
    for (let map = 0; map < x.maps; map++)
      for (const end = at + area; at < end; at++) y.values[at] = coefficients[map] * x.values[at] + biases[map];
    return y;
  },

  relu: each(a => a > 0 ? a : 0),
  tanh: each(Math.tanh),
  scaled_tanh: each(a => 1.7159 * Math.tanh(2 / 3 * a)),
  sigmoid: each(a => 1 / (1 + Math.exp(-a))),

  rbf(x, codes) {
    const y = maps(codes.length / x.maps, 1);
    codes.forEach((code, at) => { y.values[at / x.maps | 0] -= (x.values[at % x.maps] - code) ** 2; });
    return y;
  },
};

const bytes = base64 => Uint8Array.from(atob(base64), character => character.charCodeAt(0));

// What lenet.results.javascript.program wrote, with its numbers where they are used.
function network({ layers, numbers }) {
  const all = new Float32Array(bytes(numbers).buffer);
  let read = 0;
  return layers.map(({ name, steps }) => ({
    name,
    steps: steps.map(([operation, ...counts]) => [operation, ...counts.map(count => all.subarray(read, read += count))]),
  }));
}

// The outputs of all layers, by their names, for an image of 28x28 pixels from 0 to 255.
function forward(layers, image) {
  let x = { maps: 1, side: 28, values: image };
  const outputs = {};
  for (const { name, steps } of layers) {
    for (const [operation, ...numbers] of steps) x = OPERATIONS[operation](x, ...numbers);
    outputs[name] = x;
  }
  return outputs;
}

// How familiar an image is: see lenet.results.prediction.
function familiarity(logits) {
  const largest = Math.max(...logits);
  return largest + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0));
}

function softmax(logits) {
  const all = familiarity(logits);
  return Array.from(logits, logit => Math.exp(logit - all));
}

// An image is {width, height, values}, with the values row after row, from 0 to 255.

const BOX = { support: 0.5, weight: x => x > -0.5 && x <= 0.5 ? 1 : 0 };
const BICUBIC = {
  support: 2,
  weight: signed => {
    const x = Math.abs(signed);
    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
  },
};

const FIXED = 2 ** 22; // Pillow computes in fixed point; so do these sums, and their pixels are the same.

// Where the inputs of each output begin, and their weights.
function windows(from, to, filter) {
  const scale = from / to, stretch = Math.max(scale, 1), support = filter.support * stretch;
  return Array.from({ length: to }, (_, at) => {
    const centre = (at + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const weights = Array.from({ length: end - first }, (_, k) => filter.weight((k + first - centre + 0.5) * (1 / stretch)));
    const sum = weights.reduce((a, b) => a + b);
    return { first, weights: weights.map(weight => weight / sum * FIXED).map(w => Math.trunc(w < 0 ? w - 0.5 : w + 0.5)) };
  });
}

// One pass over rows, which leaves the image on its side; the second pass turns it back.
function resampledRows({ width, height, values }, to, filter) {
  const result = { width: height, height: to, values: new Uint8ClampedArray(height * to) };
  windows(width, to, filter).forEach(({ first, weights }, at) => {
    for (let row = 0; row < height; row++) {
      let sum = FIXED / 2;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * values[row * width + first + k];
      result.values[at * height + row] = Math.floor(sum / FIXED);
    }
  });
  return result;
}

function turned({ width, height, values }) {
  const result = { width: height, height: width, values: new Uint8Array(values.length) };
  values.forEach((value, at) => { result.values[at % width * height + Math.floor(at / width)] = value; });
  return result;
}

// Each pass rounds. Rows are first, but columns in an image that loses many more rows than columns, as in Pillow 13.
function resampled(image, width, height, filter) {
  const lost = image.height - height;
  return lost > 0 && lost > 2 * (image.width - width)
    ? turned(resampledRows(resampledRows(turned(image), height, filter), width, filter))
    : resampledRows(resampledRows(image, width, filter), height, filter);
}

function roundedToEven(x) {
  const below = Math.floor(x), rest = x - below;
  return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1;
}

// Ink made an image of 28x28 pixels as MNIST's were; undefined if there is none.
function asMnist({ width, height, values }) {
  const most = values.reduce((a, b) => Math.max(a, b), 0);
  if (most === 0) return undefined;
  const ink = values.map(value => Math.floor((value * 255 + (most >> 1)) / most));
  let [left, top, right, bottom] = [width, height, 0, 0];
  ink.forEach((value, at) => {
    if (value <= 255 / 16) return;
    const row = Math.floor(at / width), column = at % width;
    [left, top] = [Math.min(left, column), Math.min(top, row)];
    [right, bottom] = [Math.max(right, column + 1), Math.max(bottom, row + 1)];
  });
  const cut = { width: right - left, height: bottom - top, values: new Uint8Array((right - left) * (bottom - top)) };
  for (let row = 0; row < cut.height; row++)
    cut.values.set(ink.subarray((top + row) * width + left, (top + row) * width + right), row * cut.width);
  const longest = Math.max(cut.width, cut.height);
  const scaled = length => Math.max(1, roundedToEven(length * 20 / longest));
  return centred(resampled(cut, scaled(cut.width), scaled(cut.height), longest > 20 ? BOX : BICUBIC));
}

// The centre of mass in the middle, which is a corner of pixel (14, 14), as far as nothing sticks out.
function centred({ width, height, values }) {
  let mass = 0, across = 0, down = 0;
  values.forEach((value, at) => {
    mass += value;
    across += value * (at % width);
    down += value * Math.floor(at / width);
  });
  const place = (sum, length) => Math.min(Math.max(roundedToEven(14 - sum / mass), 0), 28 - length);
  const left = place(across, width), top = place(down, height), image = new Uint8Array(28 * 28);
  for (let row = 0; row < height; row++)
    image.set(values.subarray(row * width, (row + 1) * width), (top + row) * 28 + left);
  return image;
}

const resized = image => resampled(image, 28, 28, BICUBIC).values;
