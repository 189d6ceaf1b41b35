// Pictures as blobs, bitmaps and files.

const THUMB = 192;
const KINDS = { png: "image/png", jpeg: "image/jpeg", webp: "image/webp" };

/** What an answer holds as text. */
export function blobOf(base64, format) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: KINDS[format] });
}

/** A small copy for the history. */
export async function thumbOf(bitmap) {
  const scale = Math.min(1, THUMB / Math.max(bitmap.width, bitmap.height));
  const canvas = canvasOf(Math.max(1, bitmap.width * scale), Math.max(1, bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return encode(canvas, "image/webp");
}

export function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(width);
  canvas.height = Math.round(height);
  return canvas;
}

export function encode(canvas, type = "image/png") {
  return new Promise((resolve) => canvas.toBlob(resolve, type));
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${name}.${blob.type.split("/")[1] ?? "png"}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** Let the user choose pictures. */
export function pick(multiple = false) {
  return new Promise((resolve) => {
    const input = document.createElement("input");
    input.type = "file";
    input.accept = "image/*";
    input.multiple = multiple;
    input.addEventListener("change", () => resolve([...input.files]));
    input.addEventListener("cancel", () => resolve([]));
    input.click();
  });
}

const addresses = new WeakMap();

/** An address of a blob, one for each. */
export function addressOf(blob) {
  if (!addresses.has(blob)) addresses.set(blob, URL.createObjectURL(blob));
  return addresses.get(blob);
}

/** Let the memory of blobs go that are not shown any more. */
export function forget(...blobs) {
  for (const blob of blobs.filter((one) => addresses.has(one))) {
    URL.revokeObjectURL(addresses.get(blob));
    addresses.delete(blob);
  }
}
