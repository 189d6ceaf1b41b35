// Pictures that are dropped onto the page, or pasted.

import { $, h, icon } from "../dom.js";
import { t } from "../i18n.js";
import { addReference, restoreFrom, useAsInput } from "../pictures.js";
import { watch } from "../state.js";

export function takeDrops() {
  const overlay = $("#drop");
  const show = (shown) => (overlay.hidden = !shown);
  watch(["language"], () => overlay.replaceChildren(zone("edit", edit), zone("restore", ([file]) => restoreFrom(file))));
  document.addEventListener("dragenter", (event) => isFile(event) && show(true));
  document.addEventListener("dragover", (event) => isFile(event) && event.preventDefault());
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && show(false));
  document.addEventListener("drop", (event) => {
    if (!isFile(event)) return;
    event.preventDefault(); // beside both, nothing happens
    show(false);
  });
  document.addEventListener("paste", (event) => {
    const files = picturesOf(event.clipboardData);
    if (files.length) {
      event.preventDefault();
      edit(files);
    }
  });
}

function zone(name, act) {
  const icons = { edit: "edit", restore: "restore" };
  const element = h("div", { class: "zone", id: `drop-${name}` }, icon(icons[name]), h("strong", { text: t(`drop.${name}`) }), h("span", { text: t(`drop.${name}.text`) }));
  element.addEventListener("dragenter", () => element.classList.add("over"));
  element.addEventListener("dragleave", (event) => element.contains(event.relatedTarget) || element.classList.remove("over"));
  element.addEventListener("drop", (event) => {
    element.classList.remove("over");
    const files = picturesOf(event.dataTransfer);
    if (files.length) act(files);
  });
  return element;
}

function edit([first, ...others]) {
  useAsInput(first, first.name);
  others.forEach(addReference);
}

const isFile = (event) => event.dataTransfer?.types.includes("Files");
const picturesOf = (transfer) => [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
