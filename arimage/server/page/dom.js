// Elements and icons.

const PATHS = {
  back: "M15 5l-7 7 7 7",
  brush: "M10.6 14.2 18.9 4.9a1.6 1.6 0 0 1 2.3 2.2l-8.6 9M4 20.5c2.4.4 7.6.3 8.4-3.6a2.9 2.9 0 0 0-5.3-2c-.9 1.6-.4 4.4-3.1 5.6z",
  close: "M6 6l12 12M18 6 6 18",
  compare: "M12 3v18M8.5 8 4.5 12l4 4M15.5 8l4 4-4 4",
  dice: "M7 4h10a3 3 0 0 1 3 3v10a3 3 0 0 1-3 3H7a3 3 0 0 1-3-3V7a3 3 0 0 1 3-3zM8.5 8.5h.01M15.5 15.5h.01M15.5 8.5h.01M8.5 15.5h.01M12 12h.01",
  edit: "M4 20l1-4.2L15.8 5a2 2 0 0 1 2.8 0l.4.4a2 2 0 0 1 0 2.8L8.2 19zM13.5 7.3l3.2 3.2",
  eraser: "M8 20h12M5 16.4 14.6 6.8a2 2 0 0 1 2.8 0l2.3 2.3a2 2 0 0 1 0 2.8L11.6 20H8.6L5 16.4a0 0 0 0 1 0 0zM10.2 11.2l5 5",
  help: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM9.4 9.4a2.7 2.7 0 1 1 3.8 2.5c-.8.4-1.2 1-1.2 1.9M12 16.8h.01",
  info: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM12 11v5.2M12 7.8h.01",
  invert: "M12 3.5a8.5 8.5 0 1 0 0 17 8.5 8.5 0 0 0 0-17zM12 3.5v17M12 8h7.4M12 12h8.5M12 16h7.4",
  lock: "M7 11h10a1.5 1.5 0 0 1 1.5 1.5v6A1.5 1.5 0 0 1 17 20H7a1.5 1.5 0 0 1-1.5-1.5v-6A1.5 1.5 0 0 1 7 11zM8.5 11V7.8a3.5 3.5 0 0 1 7 0V11",
  minus: "M6 12h12",
  monitor: "M5 4.5h14A1.5 1.5 0 0 1 20.5 6v9a1.5 1.5 0 0 1-1.5 1.5H5A1.5 1.5 0 0 1 3.5 15V6A1.5 1.5 0 0 1 5 4.5zM9 20h6M12 16.5V20",
  moon: "M20 14.3A8.3 8.3 0 0 1 9.7 4a8.3 8.3 0 1 0 10.3 10.3z",
  picture: "M5.5 4.5h13A1.5 1.5 0 0 1 20 6v12a1.5 1.5 0 0 1-1.5 1.5h-13A1.5 1.5 0 0 1 4 18V6a1.5 1.5 0 0 1 1.5-1.5zM4 16l4.6-4.6 4 4 2.6-2.6L20 17.5M15 9h.01",
  plus: "M12 6v12M6 12h12",
  redo: "M16 4.5 20 8.5l-4 4M20 8.5H9.8a5.6 5.6 0 0 0 0 11.2H13",
  restore: "M4 5v5h5M4.7 10A8 8 0 1 1 4 13.5",
  save: "M12 4v11M7.5 11 12 15.5 16.5 11M5 19.5h14",
  sun: "M12 8.2a3.8 3.8 0 1 0 0 7.6 3.8 3.8 0 0 0 0-7.6zM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4",
  trash: "M4.5 7h15M9.5 7V4.5h5V7M6.5 7l.9 12.5h9.2L17.5 7M10.3 11v5M13.7 11v5",
  undo: "M8 4.5 4 8.5l4 4M4 8.5h10.2a5.6 5.6 0 0 1 0 11.2H11",
  unlock: "M7 11h10a1.5 1.5 0 0 1 1.5 1.5v6A1.5 1.5 0 0 1 17 20H7a1.5 1.5 0 0 1-1.5-1.5v-6A1.5 1.5 0 0 1 7 11zM8.5 11V7.8a3.5 3.5 0 0 1 6.7-1.4",
  vary: "M3 7h3.2c4.2 0 5.6 10 9.8 10h5M18 14l3 3-3 3M3 17h3.2c1.7 0 2.9-1.6 3.9-3.6M13.3 9.8C14.1 8.2 15 7 16.3 7H21M18 4l3 3-3 3",
  warning: "M12 4 3 19.5h18zM12 10v4.5M12 17h.01",
};

/** An element. `props`: attributes; `on…`: listeners; `class`, `text`, and properties that are no attributes. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = value;
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A decorative icon. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", PATHS[name]);
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(path);
  return svg;
}

/** A button with an icon; its text is shown, or, where `quiet`, read out and shown as a hint. */
export function button(name, text, onclick, { quiet = false, ...props } = {}) {
  const shown = quiet ? [] : [h("span", { text })];
  const named = quiet ? { "aria-label": text, title: text } : {};
  return h("button", { type: "button", class: "button", onclick, ...named, ...props }, icon(name), ...shown);
}

export const $ = (selector) => document.querySelector(selector);
