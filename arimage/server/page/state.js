// What the page knows. Views read it, and are called when a part that they watch changes.

const STORED = "arimage.settings";

export const DEFAULTS = {
  prompt: "",
  instruction: "",
  n: 1,
  shape: "square",
  width: null, // the model's usual size
  height: null,
  tier: "fast",
  steps: "", // the tier's own
  guidance: "",
  negative_text: "",
  seed: "",
  seedLocked: false,
  strength: 1,
  feather: 8,
  format: "png",
  rewrite: true,
};

export const state = {
  model: null, // as /v1/models tells of it
  ready: false,
  mode: "create", // or "edit"
  view: "empty", // "run", "picture", "editor"
  settings: { ...DEFAULTS, ...read(STORED) },
  input: null, // {blob, name, width, height, bitmap, url}
  references: [],
  run: null,
  picture: null, // an item of the history
  history: [],
};

const watchers = new Set();

/** Call `act` now and whenever one of these parts is set, until what is given back is called. */
export function watch(parts, act) {
  const watcher = { parts, act };
  watchers.add(watcher);
  act();
  return () => watchers.delete(watcher);
}

/** Set parts, and tell whoever watches them. */
export function set(changes) {
  Object.assign(state, changes);
  for (const { parts, act } of watchers) if (parts.some((part) => part in changes)) act();
}

/** Set settings, which are kept for the next visit. */
export function choose(changes) {
  set({ settings: { ...state.settings, ...changes } });
  write(STORED, state.settings);
}

export function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
}

export function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // Without storage the page works, and forgets.
  }
}
