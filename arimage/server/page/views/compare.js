// A slider between the picture before and after.

import { h } from "../dom.js";
import { addressOf } from "../files.js";
import { t } from "../i18n.js";
import { placed } from "../pictures.js";

/** `item.before` under `item.file`, of which the part to the right of the slider is shown. */
export function compared(item, alt) {
  const before = h("img", { alt: "", draggable: "false" });
  const after = h("img", { class: "over", src: addressOf(item.file), alt, draggable: "false" });
  const slider = h("input", { type: "range", min: 0, max: 100, value: 50, class: "visually-hidden", "aria-label": t("compare.slider") });
  const tags = ["before", "after"].map((side) => h("span", { class: `tag ${side}`, text: t(`compare.${side}`), "aria-hidden": "true" }));
  const frame = h("div", { class: "compare" }, before, after, h("i", { class: "divide" }), ...tags, slider);
  const move = (share) => {
    slider.value = share;
    frame.style.setProperty("--share", `${share}%`);
  };
  slider.addEventListener("input", () => move(slider.value));
  const drag = (event) => {
    const box = frame.getBoundingClientRect();
    move(Math.min(100, Math.max(0, ((event.clientX - box.left) / box.width) * 100)));
  };
  frame.addEventListener("pointerdown", (event) => {
    frame.setPointerCapture(event.pointerId);
    drag(event);
    slider.focus({ preventScroll: true });
    event.preventDefault();
  });
  frame.addEventListener("pointermove", (event) => frame.hasPointerCapture(event.pointerId) && drag(event));
  move(50);
  showBefore(item, before);
  return frame;
}

async function showBefore(item, image) {
  const bitmap = await createImageBitmap(item.before);
  const same = bitmap.width === item.width && bitmap.height === item.height;
  image.src = addressOf(same ? item.before : await placed(bitmap, item.width, item.height, item.offset));
  bitmap.close();
}
