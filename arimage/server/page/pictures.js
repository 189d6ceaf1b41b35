// What is done with a picture: it becomes the input, a reference, or tells its settings.

import { readOrigin } from "./api.js";
import { encode, canvasOf } from "./files.js";
import { t } from "./i18n.js";
import { settingsOf, settingsOfParameters } from "./recipes.js";
import { choose, set, state } from "./state.js";
import { toast, toastError } from "./views/toasts.js";

/** Edit a picture. */
export async function useAsInput(blob, name) {
  const bitmap = await opened(blob);
  if (!bitmap) return;
  set({ input: { blob, name, width: bitmap.width, height: bitmap.height, bitmap }, mode: "edit", view: "editor" });
  if (!(blob instanceof File)) return;
  const { recipe } = await readOrigin(blob).catch(() => ({}));
  if (recipe) toast(t("toast.has_recipe"), { text: t("picture.reuse"), act: () => restore(recipe) });
}

export async function addReference(blob) {
  const bitmap = await opened(blob);
  bitmap?.close();
  const most = (state.model?.abilities.max_pictures ?? 16) - 1;
  if (bitmap) set({ references: [...state.references, { blob }].slice(0, most) });
}

/** Take over the settings that a file's recipe tells. */
export async function restoreFrom(blob) {
  try {
    const { recipe, parameters } = await readOrigin(blob);
    if (recipe) restore(recipe);
    else if (parameters) takeOver(settingsOfParameters(parameters, state.model), "create");
    else toast(t("toast.no_recipe"), { text: t("drop.edit"), act: () => useAsInput(blob, blob.name) });
  } catch (error) {
    toastError(error);
  }
}

export function restore(recipe) {
  takeOver(settingsOf(recipe, state.model), recipe.task === "edit" ? "edit" : "create");
}

function takeOver(settings, mode) {
  choose(settings);
  set({ mode });
  toast(t("toast.restored"));
}

async function opened(blob) {
  try {
    return await createImageBitmap(blob);
  } catch {
    toast(t("error.picture"));
    return null;
  }
}

/** The part of a bitmap that lies at an offset in a larger picture, as large as that. */
export async function placed(bitmap, width, height, [left, top]) {
  const canvas = canvasOf(width, height);
  canvas.getContext("2d").drawImage(bitmap, left, top);
  return encode(canvas);
}
