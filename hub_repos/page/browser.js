// Runs a network on an image inside this page. The functions before `start` follow the repository's image processor
// step by step: the same pixels go in, and the same mask comes out.
import * as ort from "./onnxruntime.js";

const NEAREST = 0;
const FILTERS = {
  2: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) }, // bilinear
  3: { support: 2, weight: (x) => cubic(Math.abs(x)) }, // bicubic
};
const BITS = 22; // of a tap's fraction
const COLOURS = [[0, 255, 255], [255, 80, 255], [255, 220, 0], [80, 255, 80], [255, 120, 60], [120, 150, 255]];
const MOST_LISTED = 200;

const byId = (id) => document.getElementById(id);
const now = () => performance.now();

function cubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// A file's upright pixels, {data: RGBA, width, height}; neither colour profile nor transparency changes a colour.
export async function decode(file) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(file, options).catch(() => {
    throw new Error(`${file.name || "This file"} is no image that this browser can read. Take a JPEG, PNG or WebP.`);
  });
  const { width, height } = bitmap;
  const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  let opaque = true;
  for (let i = 3; i < data.length; i += 4) opaque &&= data[i] === 255;
  return { data: opaque ? data : unblended(bitmap), width, height };
}

// A bitmap's RGBA with the colours under transparent pixels, which a 2D canvas loses.
function unblended(bitmap) {
  const gl = document.createElement("canvas").getContext("webgl2");
  if (!gl) throw new Error("This image has transparent pixels, whose colours this browser hides: save it without.");
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const data = new Uint8Array(bitmap.width * bitmap.height * 4);
  gl.readPixels(0, 0, bitmap.width, bitmap.height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  return data;
}

// RGBA pixels resized to width x height x 3 bytes as PIL does it: horizontally, then vertically, in whole numbers.
export function resize(image, width, height, resample) {
  const narrowed = pass(image.data, image.height, image.width, 4, taps(image.width, width, resample), 3);
  return pass(narrowed, 1, image.height, width * 3, taps(image.height, height, resample), width * 3);
}

// For each of `after` positions: the first of the `before` positions that it reads, and the weights times 2 ** BITS.
function taps(before, after, resample) {
  const scale = before / after;
  if (resample === NEAREST) {
    return Array.from({ length: after }, (_, i) => ({ first: Math.floor((i + 0.5) * scale), weights: [2 ** BITS] }));
  }
  const { support, weight } = FILTERS[resample];
  const stretch = Math.max(1, scale); // antialiasing: the filter grows as the image shrinks
  return Array.from({ length: after }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support * stretch + 0.5));
    const end = Math.min(before, Math.trunc(centre + support * stretch + 0.5));
    const raw = Array.from({ length: end - first }, (_, t) => weight((first + t - centre + 0.5) / stretch));
    const total = raw.reduce((sum, share) => sum + share, 0);
    return { first, weights: raw.map((share) => roundAway((share / total) * 2 ** BITS)) };
  });
}

function roundAway(x) {
  return Math.trunc(x + Math.sign(x) * 0.5);
}

// Bytes outer x before x inner to outer x positions.length x the first `kept` of inner.
function pass(data, outer, before, inner, positions, kept) {
  const after = positions.length;
  const out = new Uint8ClampedArray(outer * after * kept);
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < after; i++) {
      const { first, weights } = positions[i];
      for (let k = 0; k < kept; k++) {
        let sum = 2 ** (BITS - 1);
        for (let t = 0; t < weights.length; t++) sum += data[(o * before + first + t) * inner + k] * weights[t];
        out[(o * after + i) * kept + k] = sum >> BITS;
      }
    }
  }
  return out;
}

// The network's input, 3 x height x width in float32 with mirrored borders: {data, dims}.
export function pixelValues(image, settings) {
  const { width, height, margin } = settings;
  const pixels = resize(image, width, height, settings.resample);
  const wide = width + 2 * margin;
  const high = height + 2 * margin;
  const tables = [0, 1, 2].map((channel) => normalized(settings, channel));
  const data = new Float32Array(3 * high * wide);
  for (let channel = 0, index = 0; channel < 3; channel++) {
    for (let y = 0; y < high; y++) {
      const row = reflected(y - margin, height) * width;
      for (let x = 0; x < wide; x++) data[index++] = tables[channel][pixels[(row + reflected(x - margin, width)) * 3 + channel]];
    }
  }
  return { data, dims: [1, 3, high, wide] };
}

// The value of each byte in a channel.
function normalized(settings, channel) {
  const f = Math.fround;
  const [mean, std] = [f(settings.mean[channel]), f(settings.std[channel])];
  return Float32Array.from({ length: 256 }, (_, byte) => f(f(f(byte * f(settings.rescale_factor)) - mean) / std));
}

function reflected(index, length) {
  const positive = Math.abs(index);
  return positive < length ? positive : 2 * length - 2 - positive;
}

// Logits of two channels as one, the log-odds of the second: {data, dims}.
export function logOdds(data, dims) {
  if (dims[1] !== 2) return { data, dims };
  const count = data.length / 2;
  return { data: Float32Array.from({ length: count }, (_, i) => data[count + i] - data[i]), dims: [dims[0], 1, ...dims.slice(2)] };
}

// Logits C x h x w, interpolated (bilinear) to C x height x width.
export function upsample(logits, [channels, h, w], height, width) {
  return interpolated(interpolated(logits, channels * h, w, 1, width), channels, h, width, height);
}

// Numbers outer x before x inner to outer x after x inner.
function interpolated(data, outer, before, inner, after) {
  const out = new Float32Array(outer * after * inner);
  for (let o = 0, index = 0; o < outer; o++) {
    for (let i = 0; i < after; i++) {
      const position = Math.max(0, ((i + 0.5) * before) / after - 0.5);
      const low = Math.floor(position);
      const [start, next] = [low, Math.min(low + 1, before - 1)].map((row) => (o * before + row) * inner);
      const share = position - low;
      for (let k = 0; k < inner; k++) out[index++] = data[start + k] * (1 - share) + data[next + k] * share;
    }
  }
  return out;
}

// Logits C x pixels to a class index for each pixel.
export function toMask(logits, channels, threshold) {
  const count = logits.length / channels;
  const mask = new Uint8Array(count);
  const limit = Math.log(threshold / (1 - threshold));
  for (let i = 0; i < count; i++) {
    if (channels === 1) mask[i] = logits[i] > limit ? 1 : 0;
    else for (let c = 1; c < channels; c++) if (logits[c * count + i] > logits[mask[i] * count + i]) mask[i] = c;
  }
  return mask;
}

// The connected regions (8 neighbours) of each class, in the processor's order: {label, area, score, x, y}, the score
// the mean probability, x and y the mean position. One that scores below `least` becomes background in the mask too.
export function regions(mask, width, logits, channels, least = 0) {
  const seen = new Int32Array(mask.length); // the number of each pixel's region, from 1
  const waiting = new Int32Array(mask.length);
  const all = [];
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || seen[start]) continue;
    const region = { label: mask[start], area: 0, score: 0, x: 0, y: 0 };
    let last = 0;
    waiting[last] = start;
    const number = all.push(region);
    seen[start] = number;
    while (last >= 0) {
      const pixel = waiting[last--];
      const x = pixel % width;
      region.area += 1;
      region.score += probability(logits, channels, mask.length, pixel, region.label);
      region.x += x;
      region.y += (pixel - x) / width;
      for (let row = pixel - width; row <= pixel + width; row += width) {
        for (let neighbour = x ? row - 1 : row; neighbour <= (x < width - 1 ? row + 1 : row); neighbour++) {
          if (mask[neighbour] !== region.label || seen[neighbour]) continue; // undefined above and below the image
          seen[neighbour] = number;
          waiting[++last] = neighbour;
        }
      }
    }
    for (const sum of ["score", "x", "y"]) region[sum] /= region.area;
  }
  for (let i = 0; i < mask.length; i++) if (seen[i] && all[seen[i] - 1].score < least) mask[i] = 0;
  return all.filter(({ score }) => score >= least).sort((a, b) => a.label - b.label);
}

function probability(logits, channels, count, pixel, label) {
  if (channels === 1) return 1 / (1 + Math.exp(-logits[pixel]));
  let total = 0;
  for (let c = 0; c < channels; c++) total += Math.exp(logits[c * count + pixel] - logits[label * count + pixel]);
  return 1 / total;
}

// From here on: the page.

const state = { settings: null, session: null, threshold: 0.5, image: null, logits: null, channels: 1, name: "image" };

async function start() {
  const settings = await (await fetched("settings.json")).json();
  Object.assign(state, { settings, threshold: settings.mask_threshold });
  document.title = byId("name").textContent = settings.name;
  byId("threshold").value = state.threshold;
  say("Loading the network.");
  ort.env.wasm.numThreads = 1; // more would need headers that static servers do not send
  ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };
  ort.env.logLevel = "error";
  const model = await (await fetched("model.onnx")).arrayBuffer();
  state.session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
  listen();
  say("Ready: choose an image, drop one on this page, or paste one.");
}

async function fetched(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`The server has no ${name} (status ${response.status}).`);
  return response;
}

function listen() {
  let queue = Promise.resolve(); // one image after the other
  const take = (file) => {
    queue = queue.then(() => show(file)).catch(fail);
  };
  const takeFirst = (files) => {
    if (files.length) take(files[0]);
    else fail(new Error("That holds no image file: save the image and choose it, or copy the image itself."));
  };
  byId("file").addEventListener("change", (event) => event.target.files.length && take(event.target.files[0]));
  byId("example").addEventListener("click", () => {
    fetched("example.png").then((response) => response.blob()).then((blob) => take(new File([blob], "example.png")), fail);
  });
  document.addEventListener("paste", (event) => takeFirst(event.clipboardData.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    takeFirst(event.dataTransfer.files);
  });
  byId("opacity").addEventListener("input", setOpacity);
  byId("threshold").addEventListener("input", (event) => {
    state.threshold = Number(event.target.value);
    requestAnimationFrame(drawMask);
  });
  byId("download").addEventListener("click", () => download().catch(fail));
  for (const id of ["file", "example"]) byId(id).disabled = false;
}

async function show(file) {
  say("Working.");
  await new Promise((resume) => setTimeout(resume)); // lets the browser paint that line
  const begun = now();
  const image = await decode(file);
  const { data, dims } = pixelValues(image, state.settings);
  const prepared = now();
  const { logits } = await state.session.run({ pixel_values: new ort.Tensor("float32", data, dims) });
  const inferred = now();
  const { data: evidence, dims: [, channels, ...size] } = logOdds(logits.data, logits.dims);
  state.logits = upsample(evidence, [channels, ...size], image.height, image.width);
  Object.assign(state, { image, channels, name: (file.name || "pasted").replace(/\.[^.]*$/, "") });
  byId("binary").hidden = channels > 1;
  byId("result").hidden = false;
  drawImage();
  drawMask();
  const times = [prepared - begun, inferred - prepared, now() - inferred].map((time) => time.toFixed(0));
  byId("timing").textContent = `Reading ${times[0]} ms, network ${times[1]} ms, mask ${times[2]} ms.`;
  say(`Done: ${file.name || "pasted image"}, ${image.width} x ${image.height} pixels.`);
}

function canvasOf(id) {
  return Object.assign(byId(id), { width: state.image.width, height: state.image.height }).getContext("2d");
}

function drawImage() {
  const pixels = new ImageData(state.image.width, state.image.height);
  pixels.data.set(state.image.data);
  for (let i = 3; i < pixels.data.length; i += 4) pixels.data[i] = 255;
  canvasOf("image").putImageData(pixels, 0, 0);
  setOpacity();
}

function setOpacity() {
  byId("overlay").style.opacity = byId("opacity").value;
}

function drawMask() {
  const { image, logits, channels, threshold } = state;
  state.mask = toMask(logits, channels, threshold);
  const entries = regions(state.mask, image.width, logits, channels, state.settings.score_threshold);
  const context = canvasOf("overlay");
  context.putImageData(painted((label) => (label ? [...colour(label), 255] : [0, 0, 0, 0])), 0, 0);
  context.font = `bold ${Math.max(14, image.width / 30)}px sans-serif`;
  context.textAlign = "center";
  entries.slice(0, MOST_LISTED).forEach(({ x, y }, index) => context.fillText(index + 1, x, y));
  byId("threshold-value").value = Number(threshold.toFixed(3));
  list(entries);
}

function colour(label) {
  return COLOURS[(label - 1) % COLOURS.length];
}

// The mask as a picture, `rgba` of each class.
function painted(rgba) {
  const pixels = new ImageData(state.image.width, state.image.height);
  const shades = state.settings.labels.map((_, label) => new Uint32Array(new Uint8Array(rgba(label)).buffer)[0]);
  new Uint32Array(pixels.data.buffer).set(Uint32Array.from(state.mask, (label) => shades[label]));
  return pixels;
}

function list(entries) {
  const count = state.mask.length;
  const percent = (area) => `${((100 * area) / count).toFixed(2)} %`;
  const total = entries.reduce((sum, { area }) => sum + area, 0);
  const number = entries.length === 1 ? "1 region" : `${entries.length} regions`;
  const limit = entries.length > MOST_LISTED ? `, the first ${MOST_LISTED} listed` : "";
  byId("summary").textContent = entries.length
    ? `${number}, ${total} pixels, ${percent(total)} of the image${limit}.`
    : "Nothing is marked in this image. That does not mean that nothing is there.";
  byId("regions").replaceChildren(
    ...entries.slice(0, MOST_LISTED).map(({ label, area, score }, index) => {
      const name = state.settings.labels[label];
      return rowOf([index + 1, name, area, percent(area), score.toFixed(3)], colour(label));
    }),
  );
}

function rowOf(texts, shade) {
  const row = document.createElement("tr");
  row.append(...texts.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
  const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
  swatch.style.backgroundColor = `rgb(${shade})`;
  row.cells[1].prepend(swatch);
  return row;
}

// Grey levels: 0 and 255 of a binary head, else the class indices.
async function download() {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: state.image.width, height: state.image.height });
  const grey = (label) => (state.channels === 1 ? 255 * label : label);
  canvas.getContext("2d").putImageData(painted((label) => [grey(label), grey(label), grey(label), 255]), 0, 0);
  const blob = await new Promise((resume) => canvas.toBlob(resume));
  const href = URL.createObjectURL(blob);
  Object.assign(document.createElement("a"), { href, download: `${state.name}_mask.png` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60000);
}

function say(text) {
  byId("status").className = "";
  byId("status").textContent = text;
}

function fail(error) {
  byId("status").className = "error";
  byId("status").textContent = error.message;
}

start().catch(fail);
