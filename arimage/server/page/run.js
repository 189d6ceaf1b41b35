// A request under way, from its fields to pictures in the history.

import { ApiError, make, UNREACHABLE } from "./api.js";
import { addressOf, blobOf, forget, thumbOf } from "./files.js";
import * as history from "./history.js";
import { t } from "./i18n.js";
import { commonFields } from "./recipes.js";
import { choose, set, state } from "./state.js";
import { toast, toastError } from "./views/toasts.js";

const SEEDS = 2 ** 32;

/** Make pictures of the prompt. */
export function generate() {
  const { settings } = state;
  const fields = { prompt: settings.prompt, size: `${settings.width}x${settings.height}`, ...withSeed() };
  return start("generations", fields, null, { width: settings.width, height: settings.height });
}

/** Edit the input; `mask` and `margins` say where, and may be null. */
export async function edit(mask, margins) {
  const { settings, input, references } = state;
  const fields = { prompt: settings.instruction, ...withSeed() };
  if (settings.strength < 1) fields.strength = settings.strength;
  if (margins) fields.outpaint = [margins.left, margins.top, margins.right, margins.bottom].join(",");
  if (mask || margins) fields.feather = settings.feather;
  const files = { images: [input.blob, ...references.map((one) => one.blob)], mask };
  const { left = 0, top = 0, right = 0, bottom = 0 } = margins ?? {};
  const size = { width: input.width + left + right, height: input.height + top + bottom };
  return start("edits", fields, files, { ...size, before: input.blob, offset: [left, top] });
}

/** Pictures like this one. */
export function vary(item) {
  const { rewrite, ...fields } = withSeed(); // there is no prompt
  if (state.settings.strength < 1) fields.strength = state.settings.strength;
  const { width, height } = item;
  return start("variations", fields, { images: [item.file] }, { width, height, before: item.file, offset: [0, 0] });
}

/** The same request once more. */
export function again(run) {
  return start(run.kind, run.fields, run.files, run.ground);
}

export function cancel() {
  state.run?.abort.abort();
}

function withSeed() {
  if (!state.settings.seedLocked || !state.settings.seed) {
    choose({ seed: String(Math.floor(Math.random() * SEEDS)) });
  }
  return commonFields(state.settings);
}

/** `ground`: {width, height} of the pictures, and of an edit {before, offset}. */
async function start(kind, fields, files, ground) {
  cancel();
  const run = {
    kind,
    fields,
    files,
    ground,
    status: "queued", // "tokens", "diffusion", "done", "cancelled", "failed"
    cells: Array.from({ length: fields.n }, () => ({ preview: null, previews: [], item: null })),
    tokens: [0, 0],
    diffusion: [0, 0],
    began: performance.now(),
    seconds: 0,
    error: null,
    abort: new AbortController(),
  };
  set({ run, picture: null, view: "run" });
  const tell = () => state.run === run && set({ run });
  const clock = setInterval(() => {
    run.seconds = (performance.now() - run.began) / 1000;
    tell();
  }, 200);
  let taken = Promise.resolve(); // one event after the other, so that the history has pictures in their order
  const onEvent = (event) => {
    taken = taken.then(() => take(run, event, tell));
    taken.catch(() => {});
  };
  try {
    await make(kind, fields, files, onEvent, run.abort.signal);
    await taken;
    if (run.cells.some((cell) => !cell.item)) throw new ApiError(0, UNREACHABLE);
    run.status = "done";
  } catch (error) {
    run.status = run.abort.signal.aborted ? "cancelled" : "failed";
    run.error = run.status === "failed" ? error : null;
  } finally {
    clearInterval(clock);
    run.seconds = (performance.now() - run.began) / 1000;
  }
  if (state.run !== run) return;
  if (run.status === "done" && state.view !== "run") {
    toast(t("toast.finished"), { text: t("toast.show"), act: () => set({ view: "run" }) });
  } else if (run.status === "failed" && state.view !== "run") {
    toastError(run.error);
  }
  const only = run.cells.length === 1 ? run.cells[0].item : null;
  set(only && state.view === "run" ? { run, picture: only, view: "picture" } : { run });
}

async function take(run, event, tell) {
  if (event.type.endsWith(".progress")) {
    run.status = event.stage;
    run[event.stage] = [event.done, event.total];
  } else {
    const cell = run.cells[event.image_index];
    const blob = blobOf(event.b64_json, event.output_format);
    if (event.type.endsWith(".partial_image")) {
      cell.preview = addressOf(blob);
      cell.previews.push(blob);
    } else if (event.type.endsWith(".completed")) {
      cell.item = await keep(run, event, blob);
      forget(...cell.previews);
    }
  }
  tell();
}

async function keep(run, event, file) {
  const bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  const thumb = await thumbOf(bitmap);
  bitmap.close();
  const item = {
    time: Date.now(),
    kind: run.kind,
    prompt: run.fields.prompt ?? "", // as it was asked for; the recipe has the one that was used
    recipe: { ...event.recipe, seed: String(event.recipe.seed) },
    notices: event.notices ?? [],
    seconds: (performance.now() - run.began) / 1000,
    width,
    height,
    file,
    thumb,
    before: run.ground.before ?? null,
    offset: run.ground.offset ?? [0, 0],
  };
  try {
    await history.add(item);
  } catch {
    item.id ??= `unkept-${item.time}-${event.image_index}`; // a private window, or no space: it lasts until the page is left
  }
  set({ history: [item, ...state.history] });
  return item;
}
