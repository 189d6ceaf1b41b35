// Short messages, and questions.

import { $, button, h } from "../dom.js";
import { t } from "../i18n.js";

const SECONDS = 6;

/** Say something; `action` {text, act} is a button beside it. */
export function toast(text, action) {
  const bar = h("div", { class: "toast" }, h("span", { text }));
  const close = () => bar.remove();
  if (action) bar.append(h("button", { type: "button", class: "link", text: action.text, onclick: () => (action.act(), close()) }));
  bar.append(button("close", t("close"), close, { quiet: true, class: "button plain square" }));
  $("#toasts").replaceChildren(bar);
  setTimeout(close, SECONDS * 1000 * (action ? 2 : 1));
}

/** What an error says, in the page's language where that is known. */
export function wordsOf(error) {
  if (error.code === "unreachable") return t("error.unreachable");
  if (error.code === "queue_full") return t("error.queue_full", { seconds: error.retryAfter });
  return error.message;
}

export const toastError = (error) => toast(wordsOf(error));

/** Show a dialog; `fill` is given `close` and makes its contents. Resolves to what `close` is given. */
export function ask(title, fill) {
  const dialog = $("#dialog");
  return new Promise((resolve) => {
    const close = (answer) => {
      dialog.close();
      resolve(answer);
    };
    const heading = h("h2", { id: "dialog-title", text: title });
    const shut = button("close", t("close"), () => close(null), { quiet: true, class: "button plain square" });
    dialog.setAttribute("aria-labelledby", "dialog-title");
    dialog.replaceChildren(h("header", {}, heading, shut), ...[fill(close)].flat());
    dialog.oncancel = () => resolve(null);
    dialog.showModal();
  });
}
