// The server's endpoints.

const KEY = "arimage.key";
export const UNREACHABLE = { error: { code: "unreachable", message: "" } };

export class ApiError extends Error {
  constructor(status, body, headers) {
    const error = body?.error ?? {};
    super(error.message ?? `HTTP ${status}`);
    this.status = status;
    this.code = error.code ?? "";
    this.param = error.param ?? "";
    this.retryAfter = Number(headers?.get("retry-after")) || 0;
    this.request = headers?.get("x-request-id") ?? "";
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function send(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, UNREACHABLE);
  }
  if (!answer.ok) throw new ApiError(answer.status, await answer.json().catch(() => null), answer.headers);
  return answer;
}

/** Facts about the model that is served. */
export async function readModel() {
  const { data } = await (await send("/v1/models")).json();
  return data[0];
}

/** "ready", "loading", "closing", "failed", or "unreachable". */
export async function readState() {
  try {
    return (await (await fetch("/health/ready")).json()).status;
  } catch {
    return "unreachable";
  }
}

/** {recipe, parameters} of a picture, each may be null. Seeds are texts: they may be larger than a number here can be. */
export async function readOrigin(blob) {
  const form = new FormData();
  form.append("image", blob, "picture");
  const text = await (await send("/v1/images/recipe", { method: "POST", body: form })).text();
  return JSON.parse(text.replace(/"seed":(\d+)/g, '"seed":"$1"'));
}

/**
 * Ask for pictures, and hear how they come about.
 *
 * @param kind "generations", "edits" or "variations"
 * @param fields of the API; seed is text
 * @param files {images: [Blob], mask: Blob} of edits and variations
 * @param onEvent is given each event's data
 */
export async function make(kind, fields, files, onEvent, signal) {
  const options = { method: "POST", signal };
  if (files) {
    options.body = new FormData();
    for (const [name, value] of Object.entries(fields)) options.body.append(name, String(value));
    for (const image of files.images) options.body.append("image[]", image, "picture");
    if (files.mask) options.body.append("mask", files.mask, "mask.png");
  } else {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(fields).replace(/"seed":"(\d+)"/, '"seed":$1');
  }
  const answer = await send(`/v1/images/${kind}`, options);
  for await (const data of events(answer.body)) {
    if (data.error) throw new ApiError(500, data, answer.headers);
    onEvent(data);
  }
}

/** The data of Server-Sent Events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError(0, UNREACHABLE);
      });
      if (done) return;
      text += value;
      for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
        const lines = text.slice(0, end).split("\n");
        const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
        if (data.length) yield JSON.parse(data.join("\n"));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
