// The strip of pictures that were made.

import { $, h } from "../dom.js";
import { addressOf } from "../files.js";
import * as history from "../history.js";
import { t } from "../i18n.js";
import { set, state, watch } from "../state.js";
import { ask } from "./toasts.js";

export function showHistory() {
  $("#history-clear").addEventListener("click", clear);
  watch(["history", "language"], show);
  watch(["picture", "view"], mark);
}

function show() {
  const items = state.history.map((item) => {
    const label = t("history.item", { prompt: item.prompt || t("picture.variation"), seed: item.recipe.seed });
    const open = () => set({ picture: item, view: "picture" });
    const image = h("img", { src: addressOf(item.thumb ?? item.file), alt: "", loading: "lazy" });
    return h("button", { type: "button", class: "thumb", "data-id": item.id, "aria-label": label, title: label, onclick: open }, image);
  });
  $("#history-clear").hidden = !items.length;
  $("#history").replaceChildren(...(items.length ? items : [h("p", { class: "hint", text: t("history.empty") })]));
  mark();
}

function mark() {
  const shown = state.view === "picture" ? String(state.picture?.id) : "";
  for (const thumb of document.querySelectorAll("#history .thumb")) {
    if (thumb.dataset.id === shown) thumb.setAttribute("aria-current", "true");
    else thumb.removeAttribute("aria-current");
  }
}

async function clear() {
  const sure = await ask(t("history.clear"), (close) => [
    h("p", { text: t("history.clear.ask", { count: state.history.length }) }),
    h(
      "footer",
      {},
      h("button", { type: "button", class: "button", text: t("cancel"), onclick: () => close(false) }),
      h("button", { type: "button", class: "button danger", text: t("history.clear.yes"), onclick: () => close(true) }),
    ),
  ]);
  if (!sure) return;
  await history.clear().catch(() => {});
  set({ history: [], picture: null, view: state.view === "picture" ? "empty" : state.view });
}
