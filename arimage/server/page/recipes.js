// Settings as fields of a request, and as a picture's recipe tells them.

import { shapeOf, sideOf } from "./shapes.js";
import { DEFAULTS } from "./state.js";

/** What every request says. */
export function commonFields(settings) {
  const fields = {
    n: settings.n,
    seed: settings.seed,
    tier: settings.tier,
    output_format: settings.format,
    stream: true,
    partial_images: 3,
    progress: true,
  };
  if (!settings.rewrite) fields.rewrite = false;
  if (settings.steps) fields.steps = Number(settings.steps);
  if (settings.guidance) fields.guidance = Number(settings.guidance);
  if (settings.negative_text.trim()) fields.negative_text = settings.negative_text;
  return fields;
}

/** The settings that make a recipe's picture again. */
export function settingsOf(recipe, model) {
  const usual = model.abilities.tiers[recipe.tier] ?? {};
  const own = (name) => (recipe.settings[name] === usual[name] ? "" : String(recipe.settings[name] ?? ""));
  const edit = recipe.task === "edit";
  const [width, height] = edit ? [null, null] : recipe.size;
  return {
    ...(edit ? { instruction: recipe.prompt } : { prompt: recipe.prompt, width, height, shape: shapeOf(width, height, model) }),
    tier: recipe.tier,
    steps: own("steps"),
    guidance: own("guidance"),
    negative_text: recipe.settings.negative_text ?? "",
    strength: recipe.settings.strength ?? 1,
    feather: recipe.settings.feather ?? DEFAULTS.feather,
    n: 1,
    seed: String(recipe.seed),
    seedLocked: true,
  };
}

/** What another program says of a picture, as far as it means the same here. */
export function settingsOfParameters({ prompt, seed, size }, model) {
  const [width, height] = (size ?? []).map((side) => sideOf(side, model));
  return {
    prompt,
    n: 1,
    ...(seed === null ? {} : { seed, seedLocked: true }),
    ...(size ? { width, height, shape: shapeOf(width, height, model) } : {}),
  };
}
