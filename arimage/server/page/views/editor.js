// Where a picture may change: a mask painted onto it, and sides that can be dragged outwards.

import { $, button, h } from "../dom.js";
import { addressOf } from "../files.js";
import { t, translate } from "../i18n.js";
import { Mask } from "../mask.js";
import { choose, state, watch } from "../state.js";
import { Margins } from "./margins.js";

const PADDING = 36; // pixels around the picture, for the handles
const LARGEST = 3; // how much a small picture is enlarged at most
const BRUSH = 0.14; // of the longer side

export class Editor {
  constructor(input) {
    this.input = input;
    this.mask = new Mask(input.width, input.height);
    this.longer = Math.max(input.width, input.height);
    this.size = this.longer * BRUSH;
    this.erasing = false;
    this.at = [input.width / 2, input.height / 2];
    this.scale = 1;
    this.margins = new Margins(input, () => this.#place(), () => this.#fit());
    this.element = h("div", { class: "editor" }, this.#tools(), this.#board(), this.#foot());
    new ResizeObserver(() => this.#fit()).observe(this.board);
    this.close = watch(["settings", "language"], () => this.#sync());
  }

  /** What a request says of the mask and the sides: null where nothing was done. */
  async read() {
    const margins = this.margins.isEmpty ? null : this.margins.values;
    return [this.mask.isEmpty ? null : await this.mask.file(), margins];
  }

  /** A key that is pressed while the editor is shown; whether it was for it. */
  key(event) {
    const ctrl = event.ctrlKey || event.metaKey;
    const acts = {
      b: () => this.#erase(false),
      e: () => this.#erase(true),
      x: () => this.#erase(!this.erasing),
      "[": () => this.#resize(this.size / 1.25),
      "]": () => this.#resize(this.size * 1.25),
    };
    const key = event.key.toLowerCase();
    if (ctrl && key === "z") this.#change(() => (event.shiftKey ? this.mask.redo() : this.mask.undo()));
    else if (!ctrl && !event.altKey && acts[key]) acts[key]();
    else return false;
    return true;
  }

  #tools() {
    const tool = (name, key, act, props) => button(name, "", act, { class: "button plain square", quiet: true, "data-t-aria-label": key, "data-t-title": key, ...props });
    this.brush = tool("brush", "editor.brush", () => this.#erase(false), { id: "brush" });
    this.eraser = tool("eraser", "editor.eraser", () => this.#erase(true), { id: "eraser" });
    this.sizer = h("input", { type: "range", min: 1, max: 100, id: "brush-size", "data-t-aria-label": "editor.size", oninput: () => this.#resize((this.longer * (this.sizer.value / 100) ** 2) / 1.5) });
    this.feather = h("input", { type: "range", min: 0, max: 64, id: "feather", oninput: () => choose({ feather: Number(this.feather.value) }) });
    this.feathered = h("output", { class: "value" });
    this.undo = tool("undo", "editor.undo", () => this.#change(() => this.mask.undo()), { id: "undo" });
    this.redo = tool("redo", "editor.redo", () => this.#change(() => this.mask.redo()), { id: "redo" });
    return h(
      "div",
      { class: "editor-tools", role: "group" },
      h("div", { class: "group" }, this.brush, this.eraser),
      h("label", { class: "slider" }, h("span", { "data-t": "editor.size" }), this.sizer),
      h("div", { class: "group" }, this.undo, this.redo,
        tool("invert", "editor.invert", () => this.#change(() => this.mask.invert()), { id: "invert" }),
        tool("trash", "editor.clear", () => this.#change(() => this.mask.clear()), { id: "clear-mask" })),
      h("label", { class: "slider" }, h("span", { "data-t": "editor.feather" }), this.feather, this.feathered),
    );
  }

  #board() {
    const canvas = this.mask.canvas;
    canvas.className = "mask";
    canvas.id = "mask";
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("data-t-aria-label", "editor.canvas");
    this.cursor = h("i", { class: "cursor" });
    this.paper = h("div", { class: "paper" }, h("img", { src: addressOf(this.input.blob), alt: "", draggable: "false" }), canvas, this.cursor);
    this.ground = h("div", { class: "ground" }, this.paper, ...this.margins.handles);
    this.board = h("div", { class: "board" }, this.ground);
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#drag(event));
    canvas.addEventListener("pointerleave", () => this.cursor.classList.remove("on"));
    canvas.addEventListener("blur", () => this.cursor.classList.remove("on"));
    canvas.addEventListener("pointerup", () => this.#sync());
    canvas.addEventListener("keydown", (event) => this.#walk(event));
    return this.board;
  }

  #foot() {
    this.extended = h("span", { class: "hint" });
    this.reset = h("button", { type: "button", class: "link", "data-t": "editor.reset", onclick: () => this.margins.reset() });
    return h("footer", { class: "editor-foot" }, this.extended, this.reset);
  }

  #point(event) {
    const box = this.mask.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.input.width, ((event.clientY - box.top) / box.height) * this.input.height];
  }

  #press(event) {
    if (event.button !== 0) return;
    event.currentTarget.setPointerCapture(event.pointerId);
    this.#move(this.#point(event));
    this.mask.begin(...this.at, this.size, this.erasing);
  }

  #drag(event) {
    const canvas = event.currentTarget;
    const path = event.getCoalescedEvents?.() ?? [];
    for (const one of path.length ? path : [event]) {
      this.#move(this.#point(one));
      if (canvas.hasPointerCapture(event.pointerId)) this.mask.go(...this.at);
    }
  }

  /** Painting by keyboard: arrows walk, space paints. */
  #walk(event) {
    const by = this.size / (event.shiftKey ? 1 : 3);
    const ways = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] };
    const way = ways[event.key];
    if (way) {
      const bound = (value, most) => Math.min(Math.max(value, 0), most);
      this.#move([bound(this.at[0] + way[0], this.input.width), bound(this.at[1] + way[1], this.input.height)]);
    } else if (event.key === " " || event.key === "Enter") {
      this.#change(() => this.mask.begin(...this.at, this.size, this.erasing));
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #move(point) {
    this.at = point;
    const { style } = this.cursor;
    style.left = `${(100 * point[0]) / this.input.width}%`;
    style.top = `${(100 * point[1]) / this.input.height}%`;
    style.width = style.height = `${this.size * this.scale}px`;
    this.cursor.classList.add("on");
  }

  #resize(size) {
    this.size = Math.min(Math.max(size, this.longer / 100), this.longer / 1.5);
    this.#sync();
    this.#move(this.at);
  }

  #erase(erasing) {
    this.erasing = erasing;
    this.#sync();
  }

  #change(act) {
    act();
    this.#sync();
  }

  #sync() {
    if (!this.element) return;
    translate(this.element);
    this.brush.setAttribute("aria-pressed", !this.erasing);
    this.eraser.setAttribute("aria-pressed", this.erasing);
    this.cursor.classList.toggle("erasing", this.erasing);
    this.undo.disabled = !this.mask.steps.length;
    this.redo.disabled = !this.mask.undone.length;
    this.sizer.value = Math.sqrt((this.size * 1.5) / this.longer) * 100;
    this.feather.value = state.settings.feather;
    this.feathered.textContent = `${state.settings.feather} px`;
    this.#tell();
  }

  #tell() {
    const { isEmpty, total } = this.margins;
    this.extended.textContent = isEmpty ? t("editor.extend") : t("editor.extended", total);
    this.reset.hidden = isEmpty;
  }

  /** Scale everything to the room that there is. */
  #fit() {
    const { width, height } = this.margins.total;
    const room = { width: this.board.clientWidth - 2 * PADDING, height: this.board.clientHeight - 2 * PADDING };
    if (room.width <= 0 || room.height <= 0) return;
    this.scale = Math.min(room.width / width, room.height / height, LARGEST);
    this.#place();
  }

  #place() {
    const { total, values } = this.margins;
    this.margins.scale = this.scale;
    const pixels = (length) => `${length * this.scale}px`;
    Object.assign(this.ground.style, { width: pixels(total.width), height: pixels(total.height) });
    Object.assign(this.paper.style, {
      left: pixels(values.left),
      top: pixels(values.top),
      width: pixels(this.input.width),
      height: pixels(this.input.height),
    });
    this.#tell();
  }
}

let editor = null;

/** The editor of the present input; a new input gets a new one. */
export function currentEditor() {
  if (editor && editor.input !== state.input) {
    editor.close();
    editor = null;
  }
  if (state.input) editor ??= new Editor(state.input);
  return editor;
}

export const editorIsShown = () => state.view === "editor" && $(".editor") !== null;
