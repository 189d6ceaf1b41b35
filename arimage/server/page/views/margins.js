// How far a picture is extended to each side, by handles that are dragged, or moved by arrow keys.

import { h } from "../dom.js";

const SIDES = ["left", "top", "right", "bottom"];
const STEP = 8;

export class Margins {
  /** `onMove` while a handle moves, `onRest` when it rests. */
  constructor(input, onMove, onRest) {
    this.input = input;
    this.onMove = onMove;
    this.onRest = onRest;
    this.scale = 1; // screen pixels of one of the picture
    this.values = { left: 0, top: 0, right: 0, bottom: 0 };
    this.handles = SIDES.map((side) => this.#handle(side));
  }

  get isEmpty() {
    return SIDES.every((side) => this.values[side] === 0);
  }

  /** Width and height of the extended picture. */
  get total() {
    const { left, top, right, bottom } = this.values;
    return { width: this.input.width + left + right, height: this.input.height + top + bottom };
  }

  reset() {
    for (const side of SIDES) this.#set(side, 0);
    this.onRest();
  }

  #most(side) {
    return side === "left" || side === "right" ? this.input.width : this.input.height;
  }

  #set(side, value) {
    this.values[side] = Math.min(Math.max(Math.round(value / STEP) * STEP, 0), this.#most(side));
    this.handles?.[SIDES.indexOf(side)].setAttribute("aria-valuenow", this.values[side]);
    this.onMove();
  }

  #handle(side) {
    const handle = h("button", {
      type: "button",
      class: `handle ${side}`,
      role: "slider",
      "data-t-aria-label": `editor.${side}`,
      "data-t-title": `editor.${side}`,
      "aria-orientation": side === "left" || side === "right" ? "horizontal" : "vertical",
      "aria-valuemin": 0,
      "aria-valuemax": this.#most(side),
      "aria-valuenow": 0,
    });
    const outwards = { left: [-1, 0], top: [0, -1], right: [1, 0], bottom: [0, 1] }[side];
    let began = null;
    handle.addEventListener("pointerdown", (event) => {
      handle.setPointerCapture(event.pointerId);
      began = { x: event.clientX, y: event.clientY, value: this.values[side] };
    });
    handle.addEventListener("pointermove", (event) => {
      if (!began) return;
      const moved = (event.clientX - began.x) * outwards[0] + (event.clientY - began.y) * outwards[1];
      // The ground stays in the middle while it grows, so its border moves half as far as it grows.
      this.#set(side, began.value + (2 * moved) / this.scale);
    });
    const rest = () => {
      if (began) this.onRest();
      began = null;
    };
    handle.addEventListener("pointerup", rest);
    handle.addEventListener("pointercancel", rest);
    handle.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -outwards[0] || -1, ArrowRight: outwards[0] || 1, ArrowUp: -outwards[1] || 1, ArrowDown: outwards[1] || -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      event.stopPropagation();
      this.#set(side, this.values[side] + by * STEP * (event.shiftKey ? 4 : 1));
      this.onRest();
    });
    return handle;
  }
}
