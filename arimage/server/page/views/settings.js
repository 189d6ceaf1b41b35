// The panel: prompt, settings, and the button that starts.

import { $, button, h, icon } from "../dom.js";
import { addressOf, pick } from "../files.js";
import { t, translate } from "../i18n.js";
import { addReference, restoreFrom, useAsInput } from "../pictures.js";
import { cancel } from "../run.js";
import { SHAPES, shapeOf, sideOf, sizeOf } from "../shapes.js";
import { choose, DEFAULTS, set, state, watch } from "../state.js";
import { isRunning } from "./run.js";

const TEXTS = ["prompt", "instruction", "negative_text", "steps", "guidance", "format"];

export function showSettings(onGo) {
  const panel = $("#panel");
  for (const [id, name] of [["less", "minus"], ["more", "plus"], ["dice", "dice"], ["help", "help"]]) $(`#${id}`).append(icon(name));
  buildShapes();
  panel.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!$("#go").disabled) onGo();
  });
  panel.addEventListener("input", (event) => take(event.target));
  panel.addEventListener("change", (event) => settle(event.target));
  $("#less").addEventListener("click", () => count(state.settings.n - 1));
  $("#more").addEventListener("click", () => count(state.settings.n + 1));
  $("#dice").addEventListener("click", () => choose({ seed: String(Math.floor(Math.random() * 2 ** 32)), seedLocked: true }));
  $("#lock").addEventListener("click", () => choose({ seedLocked: !state.settings.seedLocked }));
  $("#cancel").addEventListener("click", cancel);
  $("#restore").addEventListener("click", async () => {
    const [file] = await pick();
    if (file) restoreFrom(file);
  });
  $("#reset").addEventListener("click", () => {
    const { prompt, instruction } = state.settings;
    choose({ ...DEFAULTS, prompt, instruction, ...sizeOf(DEFAULTS.shape, state.model) });
  });
  watch(["settings", "model", "language"], sync);
  watch(["mode"], showMode);
  watch(["input", "language"], showInput);
  watch(["references", "language"], showReferences);
  watch(["run"], showBlame);
  watch(["run", "settings", "model", "ready", "mode", "input", "language"], showButtons);
}

function buildShapes() {
  for (const shape of SHAPES) {
    const figure = h("i", { class: `figure ${shape}` });
    const word = h("span", { class: "visually-hidden", "data-t": `shape.${shape}` });
    const input = h("input", { type: "radio", name: "shape", value: shape });
    $("#shapes").append(h("label", { "data-t-title": `shape.${shape}` }, input, figure, word));
  }
  translate();
}

/** A control has changed. */
function take({ name, value, checked }) {
  if (TEXTS.includes(name) || name === "tier") choose({ [name]: value });
  else if (name === "shape") choose({ shape: value, ...sizeOf(value, state.model) });
  else if (name === "strength") choose({ strength: Number(value) });
  else if (name === "seed") choose({ seed: value.replace(/\D/g, ""), seedLocked: /\d/.test(value) });
  else if (name === "rewrite") choose({ rewrite: checked });
  else if (name === "mode") set({ mode: value, view: viewOf(value) });
}

/** A number is typed to its end: bring it to one that the model can take. */
function settle({ name, value }) {
  if (name === "n") count(Number(value));
  if (name !== "width" && name !== "height") return;
  const { width, height } = { ...state.settings, [name]: sideOf(Number(value), state.model) };
  choose({ width, height, shape: shapeOf(width, height, state.model) });
}

function count(n) {
  choose({ n: Math.min(Math.max(Math.round(n) || 1, 1), state.model?.abilities.max_n ?? 10) });
}

function viewOf(mode) {
  if (mode === "edit") return "editor";
  if (state.picture) return "picture";
  return state.run ? "run" : "empty";
}

function sync() {
  const { settings, model } = state;
  for (const name of [...TEXTS, "n", "seed", "strength", "width", "height"]) {
    const element = $(`#${name}`);
    if (element.value !== String(settings[name] ?? "")) element.value = settings[name] ?? "";
  }
  for (const name of ["shape", "tier"]) {
    for (const input of document.getElementsByName(name)) input.checked = input.value === settings[name];
  }
  $("#strength-value").textContent = `${Math.round(settings.strength * 100)} %`;
  $("#lock").setAttribute("aria-pressed", settings.seedLocked);
  $("#lock").replaceChildren(icon(settings.seedLocked ? "lock" : "unlock"));
  if (!model) return;
  const { steps, guidance } = model.abilities.tiers[settings.tier];
  $("#size").textContent = settings.width ? `${settings.width} × ${settings.height}` : "";
  $("#tier-steps").textContent = t("tier.steps", { steps: settings.steps || steps });
  $("#steps").placeholder = steps;
  $("#guidance").placeholder = guidance;
  for (const name of ["width", "height"]) {
    Object.assign($(`#${name}`), { min: model.abilities.side_step, max: model.abilities.max_side, step: model.abilities.side_step });
  }
  $("#rewrite").checked = settings.rewrite;
  $("#rewrite-field").hidden = !model.abilities.rewrites;
  $("#n").max = model.abilities.max_n;
  $("#less").disabled = settings.n <= 1;
  $("#more").disabled = settings.n >= model.abilities.max_n;
}

function showMode() {
  document.body.dataset.mode = state.mode;
  for (const input of document.getElementsByName("mode")) input.checked = input.value === state.mode;
  for (const part of document.querySelectorAll("[data-only]")) part.hidden = part.dataset.only !== state.mode;
}

function showInput() {
  const { input } = state;
  const change = async () => {
    const [file] = await pick();
    if (file) useAsInput(file, file.name);
  };
  if (!input) {
    $("#input-card").replaceChildren(button("picture", t("input.choose"), change, { class: "button wide dashed", id: "choose-input" }));
    return;
  }
  const image = h("img", { src: addressOf(input.blob), alt: "" });
  const about = h("div", {}, h("strong", { text: input.name }), h("span", { class: "hint", text: `${input.width} × ${input.height}` }));
  const replace = h("button", { type: "button", class: "link", text: t("input.replace"), onclick: change });
  const remove = button("close", t("input.remove"), () => set({ input: null }), { quiet: true, class: "button plain square" });
  $("#input-card").replaceChildren(image, about, replace, remove);
}

function showReferences() {
  const shown = state.references.map((one, number) => {
    const remove = () => set({ references: state.references.filter((other) => other !== one) });
    const label = t("references.remove", { number: number + 1 });
    const image = h("img", { src: addressOf(one.blob), alt: "" });
    return h("button", { type: "button", class: "reference", "aria-label": label, title: label, onclick: remove }, image, icon("close"));
  });
  const more = button("plus", t("references.add"), async () => (await pick(true)).forEach(addReference), { quiet: true, class: "button square dashed" });
  $("#references").replaceChildren(...shown, more);
}

/** Mark the field that an error names. */
function showBlame() {
  const param = state.run?.error?.param ?? "";
  for (const element of $("#panel").elements) {
    const blamed = param !== "" && element.name === param;
    if (blamed) element.setAttribute("aria-invalid", "true");
    else element.removeAttribute("aria-invalid");
    if (blamed && element.closest("details")) element.closest("details").open = true;
  }
}

function showButtons() {
  const { mode, settings, input } = state;
  const text = mode === "edit" ? settings.instruction : settings.prompt;
  const running = isRunning(state.run);
  const go = $("#go");
  const focused = [go, $("#cancel")].includes(document.activeElement);
  const label = t(mode === "edit" ? "apply" : "generate");
  if (go.textContent !== label) go.textContent = label;
  go.hidden = running;
  go.disabled = !state.ready || !state.model || !text.trim() || (mode === "edit" && !input);
  $("#cancel").hidden = !running;
  if (focused) (running ? $("#cancel") : go).focus();
}
