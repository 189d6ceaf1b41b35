// A mask as the strokes that made it: any number of them can be undone, and a large picture costs no memory for that.

import { canvasOf, encode } from "./files.js";

const COLOUR = "#11b89c"; // of what is shown; only how opaque it is matters
const MOST = 1536; // pixels of the longer side; the server scales masks to the picture

export class Mask {
  /** @param width @param height of the picture, the unit of all coordinates */
  constructor(width, height) {
    this.scale = Math.min(1, MOST / Math.max(width, height));
    this.canvas = canvasOf(width * this.scale, height * this.scale);
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.steps = [];
    this.undone = [];
  }

  /** Begin a stroke with a round brush. */
  begin(x, y, size, erase) {
    this.steps.push({ kind: "stroke", points: [[x, y]], size, erase });
    this.undone = [];
    this.#draw(this.steps.at(-1), 0);
  }

  /** Go on with it. */
  go(x, y) {
    const step = this.steps.at(-1);
    step.points.push([x, y]);
    this.#draw(step, step.points.length - 2);
  }

  invert() {
    this.#add({ kind: "invert" });
  }

  clear() {
    if (!this.isEmpty) this.#add({ kind: "clear" });
  }

  undo() {
    if (!this.steps.length) return;
    this.undone.push(this.steps.pop());
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const step of this.steps) this.#draw(step, 0);
  }

  redo() {
    const step = this.undone.pop();
    if (!step) return;
    this.steps.push(step);
    this.#draw(step, 0);
  }

  /** Whether nothing is painted. */
  get isEmpty() {
    const { data } = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    for (let i = 3; i < data.length; i += 4) if (data[i] > 127) return false;
    return true;
  }

  /** A PNG as OpenAI's API takes it: transparent where the picture may change. */
  async file() {
    const { width, height } = this.canvas;
    const pixels = this.context.getImageData(0, 0, width, height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      pixels.data.set([0, 0, 0, pixels.data[i + 3] > 127 ? 0 : 255], i);
    }
    const canvas = canvasOf(width, height);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return encode(canvas);
  }

  #add(step) {
    this.steps.push(step);
    this.undone = [];
    this.#draw(step, 0);
  }

  #draw(step, from) {
    const { context, canvas, scale } = this;
    context.save();
    context.fillStyle = context.strokeStyle = COLOUR;
    if (step.kind === "clear") {
      context.clearRect(0, 0, canvas.width, canvas.height);
    } else if (step.kind === "invert") {
      context.globalCompositeOperation = "xor";
      context.fillRect(0, 0, canvas.width, canvas.height);
    } else {
      context.globalCompositeOperation = step.erase ? "destination-out" : "source-over";
      context.lineCap = context.lineJoin = "round";
      context.lineWidth = step.size * scale;
      context.beginPath();
      const points = step.points.slice(from).map(([x, y]) => [x * scale, y * scale]);
      context.moveTo(...points[0]);
      for (const point of points.length > 1 ? points.slice(1) : points) context.lineTo(...point);
      context.stroke();
    }
    context.restore();
  }
}
