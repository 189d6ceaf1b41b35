// Shortcuts.

import { $, h } from "../dom.js";
import { t } from "../i18n.js";
import { cancel } from "../run.js";
import { state } from "../state.js";
import { currentEditor, editorIsShown } from "./editor.js";
import { step } from "./picture.js";
import { isRunning } from "./run.js";
import { ask } from "./toasts.js";

const LISTED = [
  ["Ctrl ↵", "generate"],
  ["Esc", "escape"],
  ["/", "prompt"],
  ["← →", "arrows"],
  ["B  E", "tools"],
  ["[  ]", "size"],
  ["Ctrl Z  ⇧", "undo"],
  ["?", "help"],
];

export function listen(onGo) {
  $("#help").addEventListener("click", help);
  document.addEventListener("keydown", (event) => {
    if ($("#dialog").open) return;
    if (act(event, onGo)) event.preventDefault();
  });
}

function act(event, onGo) {
  const { key, target } = event;
  if ((event.ctrlKey || event.metaKey) && key === "Enter") {
    if (!$("#go").disabled && !$("#go").hidden) onGo();
    return true;
  }
  if (key === "Escape" && isRunning(state.run)) {
    cancel();
    return true;
  }
  const typing = target.matches("textarea, select, input:not([type=radio], [type=range])");
  if (typing) return false;
  if (editorIsShown() && currentEditor().key(event)) return true;
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  if (key === "/") $(state.mode === "edit" ? "#instruction" : "#prompt").focus();
  else if (key === "?") help();
  else if (key === "ArrowLeft" && state.view === "picture" && !target.matches("input")) step(-1);
  else if (key === "ArrowRight" && state.view === "picture" && !target.matches("input")) step(1);
  else return false;
  return true;
}

function help() {
  const rows = LISTED.map(([keys, what]) => h("div", {}, h("dt", {}, ...keys.split(" ").filter(Boolean).map((key) => h("kbd", { text: key }))), h("dd", { text: t(`keys.${what}`) })));
  return ask(t("help"), () => h("dl", { class: "keys" }, ...rows));
}
