/** Writing and reading pieces of shards: the origin's private file system against the Cache API. */

import { openStore } from "/dist/store.js";

/** Seconds to write and to read `count` pieces of `mib` MiB, in the package's own back ends. */
export async function storage(count, mib) {
  const piece = new Uint8Array(mib << 20);
  for (let i = 0; i < piece.length; i += 65536) crypto.getRandomValues(piece.subarray(i, i + 65536));
  const found = {};
  for (const kind of ["opfs", "cache"]) {
    const store = await withoutOther(kind, openStore);
    if (store.kind !== kind) throw new Error(`asked for ${kind}, got ${store.kind}`);
    const names = Array.from({ length: count }, (_, i) => `benchmark.${i}`);
    let begin = performance.now();
    for (const name of names) await store.put(name, piece);
    const write = (performance.now() - begin) / 1000;
    begin = performance.now();
    for (const name of names) {
      const data = await store.get(name);
      if (data.length !== piece.length || data[12345] !== piece[12345]) throw new Error(`${kind} changed ${name}`);
    }
    const read = (performance.now() - begin) / 1000;
    for (const name of names) await store.delete(name);
    found[kind] = { write_s: write, read_s: read };
  }
  return found;
}

/** The store that opens where files cannot be written, for `cache`. */
async function withoutOther(kind, open) {
  const files = FileSystemFileHandle.prototype;
  const writable = files.createWritable;
  if (kind === "cache") delete files.createWritable;
  try {
    return await open();
  } finally {
    files.createWritable = writable;
  }
}
