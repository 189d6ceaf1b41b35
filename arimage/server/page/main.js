// The page: what it shows is in views/, what it knows in state.js, what it asks the server in api.js.

import { readModel, readState, setKey } from "./api.js";
import { $, h, icon } from "./dom.js";
import * as history from "./history.js";
import { switchLanguage, t, translate } from "./i18n.js";
import { edit, generate } from "./run.js";
import { sizeOf } from "./shapes.js";
import { choose, read, set, state, watch, write } from "./state.js";
import { takeDrops } from "./views/drop.js";
import { currentEditor } from "./views/editor.js";
import { showHistory } from "./views/history.js";
import { listen } from "./views/keyboard.js";
import { showSettings } from "./views/settings.js";
import { showStage } from "./views/stage.js";
import { ask, toast, toastError } from "./views/toasts.js";

const SOON = 1000;
const LATER = 15000;
const THEMES = { auto: "monitor", light: "sun", dark: "moon" };

async function go() {
  if (state.mode === "create") return generate();
  const [mask, margins] = await currentEditor().read();
  return edit(mask, margins);
}

/** Ask again and again how the server is. */
async function attend() {
  const server = await readState();
  if (server === "ready" && !state.model) await meet().catch(toastError);
  if (server !== state.server) set({ server, ready: server === "ready" && state.model !== null });
  setTimeout(attend, state.ready ? LATER : SOON);
}

/** Learn about the model; a key is asked for where one is wanted. */
async function meet() {
  for (;;) {
    try {
      const model = await readModel();
      set({ model });
      const { width, height } = state.settings;
      const { max_side: most } = model.abilities;
      if (!width || !height || Math.max(width, height) > most) choose(sizeOf(state.settings.shape || "square", model));
      return;
    } catch (error) {
      if (error.status !== 401) throw error;
      setKey((await askKey()) ?? "");
    }
  }
}

function askKey() {
  return ask(t("key.title"), (close) => {
    const input = h("input", { type: "password", id: "key", autocomplete: "off", autofocus: true });
    const send = (event) => {
      event.preventDefault();
      close(input.value);
    };
    return h(
      "form",
      { class: "key", onsubmit: send },
      h("label", { class: "label", for: "key", text: t("key.label") }),
      input,
      h("p", { class: "hint", text: t("key.text") }),
      h("button", { class: "button primary", text: t("key.enter") }),
    );
  });
}

function showTop() {
  const theme = { name: read("arimage.theme") ?? "auto" };
  const showTheme = () => {
    document.documentElement.dataset.theme = theme.name;
    const label = t(`theme.${theme.name}`);
    $("#theme").replaceChildren(icon(THEMES[theme.name]));
    for (const name of ["aria-label", "title"]) $("#theme").setAttribute(name, label);
  };
  $("#theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    theme.name = names[(names.indexOf(theme.name) + 1) % names.length];
    write("arimage.theme", theme.name);
    showTheme();
  });
  $("#language").addEventListener("click", switchLanguage);
  watch(["language"], () => {
    translate();
    showTheme();
  });
  watch(["model", "server"], () => {
    $("#model").textContent = state.model?.id ?? "";
    $("#model").dataset.server = state.server;
  });
}

showTop();
showSettings(go);
showStage();
showHistory();
takeDrops();
listen(go);
attend();
history.readAll().then((items) => set({ history: items }), () => toast(t("toast.unkept")));
