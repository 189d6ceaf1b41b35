// English and Chinese.

import { read, state, set, write } from "./state.js";
import { WORDS } from "./words.js";

const STORED = "arimage.language";
const preferred = navigator.languages.map((language) => language.slice(0, 2)).find((language) => language in WORDS);

state.language = read(STORED) ?? preferred ?? "en";

/** A text in the chosen language, with its values filled in. */
export function t(key, values = {}) {
  const text = WORDS[state.language][key] ?? WORDS.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** What elements say: `data-t` their text, `data-t-ATTRIBUTE` an attribute. */
export function translate(root = document) {
  document.documentElement.lang = state.language === "zh" ? "zh-Hans" : "en";
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const attribute of ["placeholder", "aria-label", "title"]) {
    for (const element of root.querySelectorAll(`[data-t-${attribute}]`)) {
      element.setAttribute(attribute, t(element.getAttribute(`data-t-${attribute}`)));
    }
  }
}

export function switchLanguage() {
  const language = state.language === "en" ? "zh" : "en";
  write(STORED, language);
  set({ language });
}
