/**
 * A model without a device: the next token is a hash of the tokens that lie in the pages it is given,
 * so a wrong page is a wrong token. As runtime/null.py.
 */

import { DeviceLost } from "../dist/errors.js";

export const VOCABULARY = 50;

const record = (name, dims) => ({
  name, symbol: name, inputs: [], outputs: [], arena: [], arena_bytes: 0, scratch_bytes: 0, steps: [],
  dims: Object.entries(dims).map(([n, hi]) => ({ name: n, lo: 1, hi })),
});

export const manifest = {
  model: { vocab_size: VOCABULARY, context_window_size: 128, causal: true },
  kv_cache: { page_size: 4 },
  entries: [{ ...record("prefill", { n: 32, b: 1, p: 64, r: 1, t: 32 }), tile: 4 }],
};

export function nextToken(tokens) {
  return tokens.reduce((hash, token) => (hash * 31 + token + 7) % 1009, 1) % VOCABULARY;
}

export class NullExecutable {
  manifest = manifest;
  room = Infinity;
  steps = []; // tokens that each computed
  loseAt = Infinity; // the step at which the device is lost
  closed = false;

  constructor(numPages = 32) {
    this.numPages = numPages;
    this.pages = Array.from({ length: numPages }, () => []);
  }

  async step({ tokens, positions, page_table }, sample) {
    await new Promise((resolve) => setTimeout(resolve));
    if (this.steps.length >= this.loseAt) throw new DeviceLost("gone");
    this.steps.push([...tokens]);
    tokens.forEach((token, i) => {
      const page = this.pages[page_table[Math.floor(positions[i] / 4)]];
      page[positions[i] % 4] = token;
    });
    const length = positions.at(-1) + 1;
    const seen = [...page_table].flatMap((page) => this.pages[page]).slice(0, length);
    this.seen = seen;
    if (sample === null) return null;
    const id = nextToken(seen);
    const allowed = (t) => sample.masked[0] === 0 || (sample.allowed[t >> 5] >>> (t & 31)) & 1;
    return Int32Array.of(allowed(id) ? id : Array.from({ length: VOCABULARY }, (_, t) => t).find(allowed));
  }

  async logits() {
    const id = nextToken(this.seen);
    return Float32Array.from({ length: VOCABULARY }, (_, t) => (t === id ? 3 : 0));
  }

  close() {
    this.closed = true;
  }
}

/** What the model says after a prompt, by itself. */
export function continued(prompt, count) {
  const tokens = [...prompt];
  for (let i = 0; i < count; i++) tokens.push(nextToken(tokens));
  return tokens.slice(prompt.length);
}
