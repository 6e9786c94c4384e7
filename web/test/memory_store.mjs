/** A store in memory, and a server in place of `fetch`: what tests of the cache stand on. */

export class MemoryStore {
  kind = "memory";
  files = new Map();
  room = Infinity;
  fullError = null; // thrown where there is no room

  async get(name) {
    return this.files.get(name)?.slice() ?? null;
  }
  async put(name, data) {
    const used = [...this.files.values()].reduce((sum, file) => sum + file.length, 0);
    if (used + data.length > this.room) throw this.fullError;
    this.files.set(name, data.slice());
  }
  async names() {
    return [...this.files.keys()];
  }
  async delete(name) {
    this.files.delete(name);
  }
}

/** Answers `fetch` from a map of addresses to bytes, and notes what was asked. */
export class FakeServer {
  asked = [];
  files = new Map();
  cutAfter = new Map(); // address -> bytes after which the connection breaks, once
  down = false;
  ranges = true;

  fetch = async (url, { headers = {}, signal } = {}) => {
    signal?.throwIfAborted();
    const start = Number(/bytes=(\d+)-/.exec(headers.Range ?? "")?.[1] ?? 0);
    if (this.down) throw new TypeError("fetch failed");
    this.asked.push([url, start]);
    const data = this.files.get(url);
    if (data === undefined) return new Response("", { status: 404, statusText: "Not Found" });
    const from = this.ranges ? start : 0;
    const cut = this.cutAfter.get(url);
    this.cutAfter.delete(url);
    return new Response(streamOf(data.subarray(from), cut), { status: from > 0 ? 206 : 200 });
  };
}

function streamOf(data, cut = Infinity) {
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      if (at >= cut) return controller.error(new TypeError("network error"));
      const end = Math.min(at + 1_000_003, data.length, cut);
      if (end > at) controller.enqueue(data.slice(at, end));
      at = end;
      if (at === data.length) controller.close();
    },
  });
}
