// The middle of the page: what is asked for, under way, or made.

import { $, button, h, icon } from "../dom.js";
import { pick } from "../files.js";
import { t } from "../i18n.js";
import { useAsInput } from "../pictures.js";
import { choose, state, watch } from "../state.js";
import { currentEditor } from "./editor.js";
import { pictureView } from "./picture.js";
import { isRunning, runView, spoken } from "./run.js";

const EXAMPLES = [1, 2, 3, 4];
const NARROW = "(max-width: 820px)"; // where the stage may be out of sight
let shown = { key: [], update: () => {} };

export function showStage() {
  watch(["view", "run", "picture", "input", "mode", "ready", "server", "language"], show);
}

function show() {
  const key = keyOf();
  if (key.length !== shown.key.length || key.some((part, number) => part !== shown.key[number])) {
    const { element, update = () => {} } = build();
    shown = { key, update };
    $("#stage").replaceChildren(element);
    document.body.dataset.view = state.view;
    if (key[0] !== "empty" && matchMedia(NARROW).matches) $(".stage").scrollIntoView({ block: "nearest" });
  }
  shown.update();
  const words = spoken();
  if ($("#status").textContent !== words) $("#status").textContent = words;
}

/** What the view depends on; where this stays, it is only brought up to date. */
function keyOf() {
  const { view, run, picture, input, mode, ready, server, language } = state;
  if (view === "run" && run) return ["run", run, language];
  if (view === "picture" && picture) return ["picture", picture, mode, input, isRunning(run), language];
  if (view === "editor" && input) return ["editor", input];
  return ["empty", mode, ready, server, language];
}

function build() {
  const [kind] = keyOf();
  if (kind === "run") return runView(state.run);
  if (kind === "picture") return { element: pictureView(state.picture) };
  if (kind === "editor") return { element: currentEditor().element };
  return { element: emptyView() };
}

function emptyView() {
  if (!state.ready) return waitingView();
  return state.mode === "edit" ? emptyEdit() : emptyCreate();
}

function waitingView() {
  const kind = state.server === "unreachable" ? "away" : "loading";
  const mark = kind === "away" ? icon("warning") : h("span", { class: "spinner" });
  return h("div", { class: "empty" }, mark, h("h2", { text: t(`${kind}.title`) }), h("p", { text: t(`${kind}.text`) }));
}

function emptyCreate() {
  const take = (text) => {
    choose({ prompt: text });
    $("#prompt").focus();
  };
  const examples = EXAMPLES.map((number) => {
    const text = t(`example.${number}`);
    return h("li", {}, h("button", { type: "button", class: "chip", text, onclick: () => take(text) }));
  });
  return h(
    "div",
    { class: "empty" },
    h("div", { class: "sketch", "aria-hidden": "true" }, ...Array.from({ length: 16 }, () => h("i"))),
    h("h2", { text: t("empty.title") }),
    h("p", { text: t("empty.text") }),
    h("p", { class: "label", text: t("empty.try") }),
    h("ul", { class: "chips" }, ...examples),
    state.model?.abilities.notice ? h("p", { class: "hint notice", text: sentence(state.model.abilities.notice) }) : null,
  );
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

function emptyEdit() {
  const choosing = async () => {
    const [file] = await pick();
    if (file) useAsInput(file, file.name);
  };
  return h(
    "div",
    { class: "empty target" },
    icon("picture"),
    h("h2", { text: t("empty.edit.title") }),
    h("p", { text: t("empty.edit.text") }),
    button("plus", t("input.choose"), choosing),
  );
}
