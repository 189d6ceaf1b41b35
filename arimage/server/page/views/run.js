// A request under way: a cell for each picture, and how far both halves are.

import { button, h, icon } from "../dom.js";
import { addressOf, canvasOf } from "../files.js";
import { t } from "../i18n.js";
import { again } from "../run.js";
import { set, state } from "../state.js";
import { wordsOf } from "./toasts.js";

const TOKEN = 32; // pixels of a visual token's side

export const isRunning = (run) => run !== null && !["done", "cancelled", "failed"].includes(run.status);

/** Builds the view of a run; gives its element and what brings it up to date. */
export function runView(run) {
  const cells = run.cells.map((_, number) => new Cell(run, number));
  const grid = h("div", { class: `grid of-${run.cells.length}` }, ...cells.map((cell) => cell.element));
  grid.style.setProperty("--aspect", run.ground.width / run.ground.height);
  grid.style.setProperty("--columns", columnsOf(run));
  const head = new Head();
  const trouble = h("div", { class: "trouble", role: "alert", hidden: true });
  const element = h("div", { class: "run" }, head.element, trouble, grid);
  const update = () => {
    head.show(run);
    cells.forEach((cell) => cell.show());
    if (run.error && trouble.hidden) explain(run, trouble);
    grid.hidden = run.status === "failed" && run.cells.every((cell) => !cell.item && !cell.preview);
  };
  return { element, update };
}

function columnsOf(run) {
  const count = run.cells.length;
  return count <= 1 ? 1 : count <= 4 ? 2 : count <= 9 ? 3 : 4;
}

/** Status, seconds, and a bar of both halves. */
class Head {
  constructor() {
    this.status = h("strong");
    this.seconds = h("span", { class: "value" });
    this.halves = ["tokens", "diffusion"].map((name) => {
      const bar = h("i");
      const value = h("span", { class: "value" });
      const label = h("span", { text: t(`half.${name}`) });
      const track = h("div", { class: "track", role: "progressbar", "aria-label": t(`half.${name}`), "aria-valuemin": 0 }, bar);
      return { name, bar, value, track, element: h("div", { class: "half" }, h("div", {}, label, value), track) };
    });
    const bars = h("div", { class: "halves" }, ...this.halves.map((half) => half.element));
    this.element = h("header", { class: "run-head" }, h("div", { class: "run-status" }, this.status, this.seconds), bars);
  }

  show(run) {
    this.status.textContent = t(`run.${run.status}`);
    this.seconds.textContent = t("run.seconds", { seconds: run.seconds.toFixed(1) });
    this.element.dataset.status = run.status;
    for (const { name, bar, value, track } of this.halves) {
      const [done, total] = run[name];
      bar.style.width = `${total ? (100 * done) / total : 0}%`;
      value.textContent = total ? `${done} / ${total}` : "";
      track.setAttribute("aria-valuemax", total || 1);
      track.setAttribute("aria-valuenow", done);
    }
  }
}

/** One picture: its tokens, its previews, itself. */
class Cell {
  constructor(run, number) {
    this.run = run;
    this.number = number;
    this.mosaic = new Mosaic(run.ground, number);
    this.preview = h("img", { class: "preview", alt: "", hidden: true });
    this.element = h("button", { type: "button", class: "cell", disabled: true, onclick: () => this.#open() });
    this.element.append(this.mosaic.canvas, this.preview);
  }

  show() {
    const { run, number, element } = this;
    const cell = run.cells[number];
    if (cell.item && !this.done) {
      this.done = true;
      element.classList.remove("busy", "ended");
      element.replaceChildren(h("img", { src: addressOf(cell.item.file), alt: t("picture.alt", { prompt: cell.item.prompt }) }));
      element.disabled = false;
      element.setAttribute("aria-label", t("cell.open", { number: number + 1 }));
    } else if (!cell.item) {
      const [done, total] = run.tokens;
      this.mosaic.show(run.status === "diffusion" ? 1 : total ? done / total : 0);
      this.preview.hidden = !cell.preview;
      if (cell.preview && this.preview.src !== cell.preview) this.preview.src = cell.preview;
      this.preview.dataset.number = cell.previews.length;
      element.classList.toggle("busy", isRunning(run));
      element.classList.toggle("ended", !isRunning(run));
      element.setAttribute("aria-label", t(isRunning(run) ? "cell.waiting" : "cell.cancelled", { number: number + 1 }));
    }
  }

  #open() {
    set({ picture: this.run.cells[this.number].item, view: "picture" });
  }
}

/** Tokens as they come: a square each. Their colours say nothing, only their number does. */
class Mosaic {
  constructor({ width, height }, number) {
    this.canvas = canvasOf(Math.max(1, width / TOKEN), Math.max(1, height / TOKEN));
    this.canvas.className = "mosaic";
    this.number = number;
    this.drawn = 0;
  }

  show(share) {
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    context.fillStyle = getComputedStyle(this.canvas).color;
    for (const end = Math.round(share * width * height); this.drawn < end; this.drawn += 1) {
      const noise = Math.sin((this.drawn + 1) * 12.9898 + this.number * 78.233) * 43758.5453;
      context.globalAlpha = 0.12 + 0.5 * (noise - Math.floor(noise));
      context.fillRect(this.drawn % width, Math.floor(this.drawn / width), 1, 1);
    }
  }
}

function explain(run, trouble) {
  const { error } = run;
  const request = error.request ? h("p", { class: "hint", text: t("error.request", { request: error.request }) }) : null;
  const retry = button("restore", t("again"), () => again(run));
  trouble.hidden = false;
  trouble.replaceChildren(icon("warning"), h("div", {}, h("h2", { text: t("error.title") }), h("p", { text: wordsOf(error) }), request, retry));
}

/** What is read out: stages, not every number. */
export function spoken() {
  const { run } = state;
  return run ? t(`run.${run.status}`) : "";
}
