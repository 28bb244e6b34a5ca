"use strict";

// A slice viewer without anything from outside: three linked planes of each image, a reference and a model over them.
// Voxels are [X, Y, Z] in RAS order; planes are shown as radiologists read them, the patient's right on the left.
// Boxes are in voxel edges: voxel 0 covers 0 to 1. Those of a reference are dashed.

const PLANES = [
  { name: "axial", fixed: 2, columns: 0, rows: 1, letters: "RLAP" },
  { name: "coronal", fixed: 1, columns: 0, rows: 2, letters: "RLSI" },
  { name: "sagittal", fixed: 0, columns: 1, rows: 2, letters: "APSI" },
];
const LAYERS = {
  both: [["both", "model and reference"], ["reference", "reference"], ["model", "model"], ["none", "image only"]],
  model: [["model", "model"], ["none", "image only"]],
  nothing: [["none", "image only"]],
};
const GAP_PX = 12;
const MAX_HEIGHT_PX = 420;
const NARROW_PX = 640;
const OUTLINE_PX = 2;
const DASHES_PX = [6, 4];

function made(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

async function unpacked(image) {
  const packed = Uint8Array.from(atob(image.voxels), (letter) => letter.charCodeAt(0));
  const inflation = new DecompressionStream("deflate");
  const writer = inflation.writable.getWriter();
  writer.write(packed);
  writer.close();
  const bytes = new Uint8Array(await new Response(inflation.readable).arrayBuffer());
  const number = image.shape[0] * image.shape[1] * image.shape[2];
  return [0, 1, 2].map((part) => bytes.subarray(part * number, (part + 1) * number));
}

class Viewer {
  constructor(root) {
    this.root = root;
    this.scene = JSON.parse(root.dataset.scene);
    this.colours = new Map(this.scene.classes.map((each) => [each.value, each.colour]));
    this.hidden = new Set();
    this.build();
    this.choose(0);
    new ResizeObserver(() => this.resize()).observe(root);
  }

  build() {
    this.choice = made("select", {}, ...this.scene.images.map((each) => made("option", {}, each.title)));
    this.choice.onchange = () => this.choose(this.choice.selectedIndex);
    const layers = LAYERS[this.scene.shows];
    this.layer = made("select", {}, ...layers.map(([value, text]) => made("option", { value }, text)));
    this.jump = made("select", {});
    this.jump.onchange = () => this.goToBox(this.jump.selectedIndex - 1);
    this.opacity = made("input", { type: "range", min: 0, max: 100, value: 40 });
    this.low = made("input", { type: "range" });
    this.high = made("input", { type: "range" });
    this.window = made("output", {});
    this.cross = made("input", { type: "checkbox", checked: true });
    for (const control of [this.layer, this.opacity, this.low, this.high, this.cross]) control.oninput = () => this.draw();
    const named = (text, ...controls) => made("label", {}, made("span", {}, text), ...controls);
    const show = named("show", this.layer);
    show.hidden = layers.length === 1;
    this.bars = { box: named("box", this.jump), opacity: named("opacity", this.opacity), cross: named("cross", this.cross) };
    const bar = made("div", { className: "controls" }, named("image", this.choice), show, this.bars.box,
      this.bars.opacity, named("black", this.low), named("white", this.high), this.window, this.bars.cross);
    this.notes = made("ul", { className: "notes" });
    this.panels = PLANES.map((plane) => this.panel(plane));
    const legend = made("div", { className: "legend" }, ...this.scene.classes.map((each) => this.legend(each)));
    const planes = made("div", { className: "planes" }, ...this.panels.map((each) => each.box));
    this.root.replaceChildren(bar, planes, legend, this.notes);
    this.root.onkeydown = (event) => this.pressed(event);
  }

  legend(each) {
    const box = made("input", { type: "checkbox", checked: true });
    box.oninput = () => {
      box.checked ? this.hidden.delete(each.value) : this.hidden.add(each.value);
      this.draw();
    };
    const swatch = made("i", {});
    swatch.style.background = `rgb(${each.colour})`;
    return made("label", {}, box, swatch, each.name);
  }

  panel(plane) {
    const canvas = made("canvas", { tabIndex: 0 });
    const slider = made("input", { type: "range", min: 0 });
    const text = made("span", {});
    const move = (by) => this.go(plane.fixed, this.place[plane.fixed] + by);
    canvas.setAttribute("role", "img");
    slider.setAttribute("aria-label", `${plane.name} slice`);
    slider.oninput = () => this.go(plane.fixed, Number(slider.value));
    canvas.onpointerdown = (event) => this.point(plane, event);
    canvas.onpointermove = (event) => event.buttons === 1 && this.point(plane, event);
    canvas.onkeydown = (event) => {
      const by = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      move(by);
    };
    const scroll = (event) => {
      if (document.activeElement !== canvas) return;
      event.preventDefault();
      move(event.deltaY < 0 ? 1 : -1);
    };
    canvas.addEventListener("wheel", scroll, { passive: false });
    return { plane, canvas, slider, text, box: made("div", {}, canvas, slider, text) };
  }

  pressed(event) {
    if (["SELECT", "INPUT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!["o", "n", "p", "b"].includes(event.key)) return;
    const last = this.scene.images.length - 1;
    const at = this.choice.selectedIndex;
    if (event.key === "o") this.layer.selectedIndex = (this.layer.selectedIndex + 1) % this.layer.options.length;
    if (event.key === "b" && this.image.boxes.length) this.goToBox(this.jump.selectedIndex % this.image.boxes.length);
    if (event.key === "n") this.choose(Math.min(at + 1, last));
    if (event.key === "p") this.choose(Math.max(at - 1, 0));
    this.draw();
  }

  async choose(index) {
    const image = this.scene.images[index];
    this.choice.selectedIndex = index;
    const arrays = await unpacked(image);
    if (this.choice.selectedIndex !== index) return;
    [this.image, [this.voxels, this.reference, this.model], this.place] = [image, arrays, [...image.start]];
    for (const [control, value] of [[this.low, image.window[0]], [this.high, image.window[1]]]) {
      Object.assign(control, { min: image.range[0], max: image.range[1], step: (image.range[1] - image.range[0]) / 255 });
      control.value = value;
    }
    for (const { plane, slider, box } of this.panels) {
      slider.max = image.shape[plane.fixed] - 1;
      slider.hidden = image.shape[plane.fixed] === 1;
      box.hidden = Math.min(image.shape[plane.columns], image.shape[plane.rows]) === 1;
    }
    this.bars.box.hidden = !image.boxes.length;
    this.bars.opacity.hidden = !image.hasLabels;
    this.bars.cross.hidden = image.isPicture;
    this.jump.replaceChildren(made("option", {}, `${image.boxes.length} in all`),
      ...image.boxes.map((box) => made("option", {}, box.text)));
    this.notes.replaceChildren(...image.notes.map((note) => made("li", {}, note)));
    this.resize();
    this.root.dataset.ready = index;
  }

  goToBox(index) {
    if (index < 0) return;
    const { low, high } = this.image.boxes[index];
    this.jump.selectedIndex = index + 1;
    this.place = this.image.shape.map((size, axis) =>
      Math.max(0, Math.min(size - 1, Math.floor((low[axis] + high[axis]) / 2))));
    this.draw();
  }

  go(axis, index) {
    this.place[axis] = Math.max(0, Math.min(this.image.shape[axis] - 1, index));
    this.draw();
  }

  point({ columns, rows }, event) {
    const box = event.target.getBoundingClientRect();
    const { shape } = this.image;
    const column = Math.floor(((event.clientX - box.left) / box.width) * shape[columns]);
    const row = Math.floor(((event.clientY - box.top) / box.height) * shape[rows]);
    this.go(columns, shape[columns] - 1 - column);
    this.go(rows, shape[rows] - 1 - row);
  }

  resize() {
    if (!this.image) return;
    const sizes = PLANES.map(({ columns, rows }) =>
      [columns, rows].map((axis) => this.image.shape[axis] * this.image.spacing[axis]));
    const seen = sizes.filter((_, index) => !this.panels[index].box.hidden);
    const width = this.root.clientWidth - 2 * GAP_PX;
    const across = width < NARROW_PX ? Math.max(...seen.map((size) => size[0])) : seen.reduce((sum, size) => sum + size[0], 0);
    const gaps = width < NARROW_PX ? 0 : GAP_PX * (seen.length - 1);
    const scale = Math.min((width - gaps) / across, MAX_HEIGHT_PX / Math.max(...seen.map((size) => size[1])));
    const density = Math.min(window.devicePixelRatio || 1, 2);
    this.panels.forEach(({ canvas }, index) => {
      const [wide, high] = sizes[index].map((size) => Math.max(1, Math.floor(size * scale)));
      Object.assign(canvas, { width: Math.round(wide * density), height: Math.round(high * density) });
      Object.assign(canvas.style, { width: `${wide}px`, height: `${high}px` });
    });
    this.draw();
  }

  draw() {
    if (!this.image) return;
    const words = [this.low, this.high].map((control) => Number(Number(control.value).toPrecision(3)));
    this.window.textContent = `${words[0]} to ${words[1]} ${this.image.units}`;
    for (const panel of this.panels) if (!panel.box.hidden) this.drawPanel(panel);
  }

  drawPanel({ plane, canvas, slider, text }) {
    const { shape } = this.image;
    const at = this.place[plane.fixed];
    slider.value = at;
    text.textContent = this.image.isPicture ? "" : `${plane.name} ${at + 1} of ${shape[plane.fixed]}`;
    canvas.setAttribute("aria-label", text.textContent || "picture");
    const context = canvas.getContext("2d");
    const picture = context.createImageData(canvas.width, canvas.height);
    const layer = this.layer.value;
    this.paintImage(plane, picture);
    if (layer !== "none") {
      const filled = this.sampled(layer === "reference" ? this.reference : this.model, plane, picture);
      this.paintFill(filled, picture);
      this.paintOutline(layer === "both" ? this.sampled(this.reference, plane, picture) : filled, picture);
    }
    context.putImageData(picture, 0, 0);
    this.drawBoxes(context, plane);
    this.annotate(context, plane);
  }

  offsets({ fixed, columns, rows }) {
    const { shape } = this.image;
    const steps = [shape[1] * shape[2], shape[2], 1];
    return { base: this.place[fixed] * steps[fixed], across: steps[columns], down: steps[rows],
      wide: shape[columns], high: shape[rows] };
  }

  paintImage(plane, picture) {
    const { base, across, down, wide, high } = this.offsets(plane);
    const [least, most] = this.image.range;
    const [black, white] = [this.low, this.high].map((control) => ((Number(control.value) - least) / (most - least)) * 255);
    const slope = 255 / Math.max(white - black, 1e-6);
    const axis = (length, count) => Array.from({ length }, (_, pixel) => {
      const place = Math.max(0, Math.min(count - 1, count - 0.5 - ((pixel + 0.5) / length) * count));
      const first = Math.min(Math.floor(place), Math.max(count - 2, 0));
      return [first, Math.min(first + 1, count - 1), place - first];
    });
    const columns = axis(picture.width, wide);
    axis(picture.height, high).forEach(([top, bottom, part], y) => {
      for (let x = 0; x < picture.width; x++) {
        const [left, right, share] = columns[x];
        const value = (row) => {
          const start = base + row * down;
          return this.voxels[start + left * across] * (1 - share) + this.voxels[start + right * across] * share;
        };
        const grey = (value(top) * (1 - part) + value(bottom) * part - black) * slope;
        const pixel = 4 * (y * picture.width + x);
        picture.data[pixel] = picture.data[pixel + 1] = picture.data[pixel + 2] = grey;
        picture.data[pixel + 3] = 255;
      }
    });
  }

  sampled(labels, plane, { width, height }) {
    const { base, across, down, wide, high } = this.offsets(plane);
    const seen = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      const row = base + (high - 1 - Math.floor(((y + 0.5) / height) * high)) * down;
      for (let x = 0; x < width; x++) {
        const value = labels[row + (wide - 1 - Math.floor(((x + 0.5) / width) * wide)) * across];
        seen[y * width + x] = this.hidden.has(value) ? 0 : value;
      }
    }
    return seen;
  }

  paintFill(seen, { data }) {
    const share = Number(this.opacity.value) / 100;
    seen.forEach((value, index) => {
      const colour = value && this.colours.get(value);
      if (!colour) return;
      for (let c = 0; c < 3; c++) data[4 * index + c] = data[4 * index + c] * (1 - share) + colour[c] * share;
    });
  }

  paintOutline(seen, { data, width, height }) {
    seen.forEach((value, index) => {
      const colour = value && this.colours.get(value);
      if (!colour) return;
      const x = index % width;
      const y = (index - x) / width;
      const isEdge = (x >= OUTLINE_PX && seen[index - OUTLINE_PX] !== value)
        || (x < width - OUTLINE_PX && seen[index + OUTLINE_PX] !== value)
        || (y >= OUTLINE_PX && seen[index - OUTLINE_PX * width] !== value)
        || (y < height - OUTLINE_PX && seen[index + OUTLINE_PX * width] !== value);
      if (isEdge) for (let c = 0; c < 3; c++) data[4 * index + c] = colour[c];
    });
  }

  drawBoxes(context, { fixed, columns, rows }) {
    const { width, height } = context.canvas;
    const { shape, boxes } = this.image;
    const layer = this.layer.value;
    const size = Math.max(11, Math.round(height / 32));
    Object.assign(context, { font: `${size}px sans-serif`, textBaseline: "bottom", textAlign: "left" });
    for (const box of boxes) {
      const { value, colour } = this.scene.classes.find((each) => each.name === box.name) ?? { colour: [255, 255, 255] };
      const isWanted = layer === "both" || layer === (box.is_reference ? "reference" : "model");
      const isCut = box.low[fixed] < this.place[fixed] + 1 && box.high[fixed] > this.place[fixed];
      if (!isWanted || !isCut || this.hidden.has(value)) continue;
      const [left, right] = [box.high, box.low].map((corner) => (1 - corner[columns] / shape[columns]) * width);
      const [top, bottom] = [box.high, box.low].map((corner) => (1 - corner[rows] / shape[rows]) * height);
      context.setLineDash(box.is_reference ? DASHES_PX : []);
      Object.assign(context, { strokeStyle: `rgb(${colour})`, lineWidth: OUTLINE_PX });
      context.strokeRect(left, top, right - left, bottom - top);
      context.setLineDash([]);
      Object.assign(context, { strokeStyle: "#000", lineWidth: 3, fillStyle: `rgb(${colour})` });
      const place = [Math.max(2, left), box.is_reference ? Math.min(height, bottom + size + 3) : Math.max(size + 2, top - 2)];
      context.strokeText(box.text, ...place);
      context.fillText(box.text, ...place);
    }
  }

  annotate(context, { columns, rows, letters }) {
    if (this.image.isPicture) return;
    const { width, height } = context.canvas;
    const { shape } = this.image;
    if (this.cross.checked) {
      context.fillStyle = "rgba(255, 255, 255, 0.3)";
      context.fillRect(Math.floor(((shape[columns] - 0.5 - this.place[columns]) / shape[columns]) * width), 0, 1, height);
      context.fillRect(0, Math.floor(((shape[rows] - 0.5 - this.place[rows]) / shape[rows]) * height), width, 1);
    }
    Object.assign(context, { font: `${Math.round(height / 30) + 6}px sans-serif`, fillStyle: "#e6edf3", strokeStyle: "#000",
      lineWidth: 3, textBaseline: "middle", textAlign: "center" });
    const places = [[12, height / 2], [width - 12, height / 2], [width / 2, 12], [width / 2, height - 12]];
    places.forEach(([x, y], index) => {
      context.strokeText(letters[index], x, y);
      context.fillText(letters[index], x, y);
    });
  }
}

for (const root of document.querySelectorAll(".viewer")) if ("DecompressionStream" in window) new Viewer(root);
