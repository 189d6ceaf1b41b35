// One finished picture, large, and what can be done with it.

import { $, button, h } from "../dom.js";
import { addressOf, forget, save } from "../files.js";
import * as history from "../history.js";
import { t } from "../i18n.js";
import { restore, useAsInput } from "../pictures.js";
import { vary } from "../run.js";
import { set, state } from "../state.js";
import { compared } from "./compare.js";
import { isRunning } from "./run.js";

let details = false;
const comparing = { edits: true, variations: false }; // by kind of picture

export function pictureView(item) {
  const alt = t("picture.alt", { prompt: item.prompt || t("picture.variation") });
  const frame = h("div", { class: "frame" });
  const about = aboutOf(item);
  const show = () => {
    about.hidden = !details;
    const shown = item.before && comparing[item.kind] ? compared(item, alt) : h("img", { src: addressOf(item.file), alt });
    frame.style.setProperty("--aspect", item.width / item.height);
    frame.replaceChildren(shown);
  };
  const toggle = (name, key, value, act) => {
    const pressed = button(name, t(key), () => {
      act();
      pressed.setAttribute("aria-pressed", value());
      show();
    });
    pressed.setAttribute("aria-pressed", value());
    return pressed;
  };
  const tools = h(
    "div",
    { class: "tools", role: "group" },
    button("edit", t("picture.use"), () => useAsInput(item.file, nameOf(item)), { id: "use" }),
    button("vary", t("picture.vary"), () => vary(item), { id: "vary" }),
    button("save", t("picture.save"), () => save(item.file, nameOf(item)), { id: "save" }),
    item.before && toggle("compare", "picture.compare", () => comparing[item.kind], () => (comparing[item.kind] = !comparing[item.kind])),
    toggle("info", "picture.details", () => details, () => (details = !details)),
  );
  show();
  return h("div", { class: "picture" }, headOf(item), h("div", { class: "picture-body" }, frame, about), tools);
}

/** A name for the file. */
const nameOf = (item) => `arimage-${item.recipe.seed}`;

function headOf(item) {
  const head = h("header", { class: "picture-head" });
  const back = (key, view, id) => head.append(button("back", t(key), () => set({ view }), { class: "button plain", id }));
  if (isRunning(state.run)) back("picture.under_way", "run");
  else if (state.mode === "edit" && state.input) {
    back("picture.mask", "editor", "back-to-mask");
  } else if (state.run && state.run.cells.length > 1 && state.run.cells.some((cell) => cell.item === item)) {
    back("picture.back", "run");
  }
  head.append(h("p", { class: "caption", text: item.prompt || t("picture.variation"), title: item.prompt }));
  return head;
}

function aboutOf(item) {
  const { recipe } = item;
  const rows = {
    ...(item.prompt && item.prompt !== recipe.prompt ? { asked: item.prompt } : {}),
    prompt: recipe.prompt || "–",
    seed: recipe.seed,
    size: `${item.width} × ${item.height}`,
    tier: t(`tier.${recipe.tier}`),
    steps: recipe.settings.steps,
    guidance: recipe.settings.guidance,
    model: recipe.model,
    time: new Date(item.time).toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" }),
    took: t("run.seconds", { seconds: item.seconds.toFixed(1) }),
    ...(item.notices.length ? { notices: item.notices.join(" ") } : {}),
  };
  const list = Object.entries(rows).map(([name, value]) => [h("dt", { text: t(`details.${name}`) }), h("dd", { text: value })]);
  const reuse = button("restore", t("picture.reuse"), () => restore(recipe), { id: "reuse" });
  const remove = button("trash", t("picture.remove"), () => removeItem(item), { quiet: true, class: "button square danger", id: "remove" });
  return h("aside", { class: "about", "aria-label": t("picture.details") }, h("dl", {}, ...list), h("div", { class: "about-tools" }, reuse, remove));
}

async function removeItem(item) {
  await history.remove(item.id).catch(() => {});
  forget(item.thumb);
  const left = state.history.filter((other) => other !== item);
  set({ history: left, picture: left[0] ?? null, view: left.length ? "picture" : "empty" });
}

/** Show the newer (-1) or older (1) one. */
export function step(by) {
  const number = state.history.indexOf(state.picture) + by;
  if (state.picture && number >= 0 && number < state.history.length) {
    set({ picture: state.history[number] });
    $(`#history [data-id="${state.picture.id}"]`)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}
