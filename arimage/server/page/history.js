// Pictures that were made, kept in this browser (IndexedDB).
//
// An item: {id, time, kind, prompt, recipe, notices, seconds, width, height, file, thumb, before, offset}; `file`,
// `thumb` and `before` (the picture that was edited, which lies at `offset` in an outpainted one) are blobs.

const MOST = 200;
let opened;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("arimage", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function ask(mode, act) {
  const transaction = (await database()).transaction("pictures", mode);
  const request = act(transaction.objectStore("pictures"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

/** All items, the newest first. */
export async function readAll() {
  return (await ask("readonly", (store) => store.getAll())).reverse();
}

/** Keep an item; the oldest go when there are too many. */
export async function add(item) {
  item.id = await ask("readwrite", (store) => store.add(item));
  const ids = await ask("readonly", (store) => store.getAllKeys());
  for (const id of ids.slice(0, Math.max(0, ids.length - MOST))) await remove(id);
  return item;
}

export const remove = (id) => ask("readwrite", (store) => store.delete(id));
export const clear = () => ask("readwrite", (store) => store.clear());
