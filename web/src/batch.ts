/**
 * A step's batch: checked, measured, and cut into query tiles, before the device sees it.
 *
 * In: a StepInput and the manifest's limits. Out: the values of the dims and the arrays that entry
 * points name as inputs, as runtime/batch.py makes them. Whatever passes `prepare` cannot make a
 * kernel read or write outside its buffers.
 */

import { QUERY_TILE } from "./artifact.js";
import type { Entry, Manifest } from "./artifact.js";
import { RequestError } from "./errors.js";
import type { Dims } from "./sizes.js";

export const DIMS = ["n", "b", "p", "r", "t"] as const;

/** One ragged batch of b sequences and n tokens; see runtime/executable.py. */
export interface StepInput {
  readonly tokens: Int32Array; // [n]
  readonly positions: Int32Array; // [n]
  readonly seq_indptr: Int32Array; // [b + 1]
  readonly page_indptr: Int32Array; // [b + 1]
  readonly page_table: Int32Array; // [p]
  readonly logit_rows: Int32Array; // [r]
}

export interface Prepared {
  readonly inputs: Readonly<Record<string, Int32Array>>;
  readonly dims: Dims;
}

/** Check a batch and complete it; RequestError says what is wrong with it. */
export function prepare(batch: StepInput, manifest: Manifest, numPages: number): Prepared {
  checkForm(batch);
  checkPositions(batch, manifest);
  checkPages(batch, manifest.kv_cache.page_size, numPages);
  const n = batch.tokens.length;
  const seqIds = new Int32Array(n);
  const ends = new Int32Array(n);
  const tiles: [number, number, number][] = [];
  for (const [s, from, to] of sequences(batch)) {
    seqIds.fill(s, from, to);
    ends.fill(at(batch.positions, to - 1), from, to);
    for (let start = from; start < to; start += QUERY_TILE) {
      tiles.push([start, Math.min(to - start, QUERY_TILE), s]);
    }
  }
  const column = (i: 0 | 1 | 2): Int32Array => Int32Array.from(tiles, (tile) => tile[i]);
  const { tokens, positions, seq_indptr, page_indptr, page_table, logit_rows } = batch;
  const inputs: Record<string, Int32Array> = {
    tokens, positions, seq_ids: seqIds, seq_indptr, page_indptr, page_table, logit_rows,
    tile_start: column(0), tile_size: column(1), tile_seq: column(2),
  };
  if (!manifest.model.causal) inputs["ends"] = whole(batch, ends);
  const dims = {
    n, b: seq_indptr.length - 1, p: page_table.length, r: logit_rows.length, t: tiles.length,
  };
  return { inputs, dims };
}

/** Decode if each sequence has one token, else verify, else prefill: the first that fits. */
export function choose(entries: readonly Entry[], dims: Dims): Entry {
  const names = ["verify", "prefill", "embed"];
  if (dims["n"] === dims["b"]) names.unshift("decode");
  for (const name of names) {
    const entry = entries.find((e) => e.name === name);
    if (entry?.dims.every((d) => within(dims[d.name], d.lo, d.hi)) === true) return entry;
  }
  const asked = DIMS.map((name) => `${name}=${dims[name]}`).join(", ");
  const possible = entries.map(
    (e) => `${e.name} with ${e.dims.map((d) => `${d.name} ${d.lo}..${d.hi}`).join(", ")}`,
  );
  throw new RequestError(
    `no entry point of the program takes a step of ${asked} (tokens, sequences, page-table ` +
      `entries, logit rows, query tiles); it has ${possible.join("; ")}`,
  );
}

function* sequences(batch: StepInput): Generator<[number, number, number]> {
  for (let s = 0; s + 1 < batch.seq_indptr.length; s++) {
    yield [s, at(batch.seq_indptr, s), at(batch.seq_indptr, s + 1)];
  }
}

function checkForm(batch: StepInput): void {
  const n = batch.tokens.length;
  if (n === 0 || batch.positions.length !== n) {
    throw new RequestError(
      `a step needs as many positions as tokens, and at least one: it has ${n} tokens and ` +
        `${batch.positions.length} positions`,
    );
  }
  checkIndptr("seq_indptr", batch.seq_indptr, n);
  checkIndptr("page_indptr", batch.page_indptr, batch.page_table.length);
  if (batch.seq_indptr.length !== batch.page_indptr.length) {
    throw new RequestError("seq_indptr and page_indptr of a step speak of different sequences");
  }
  const rows = batch.logit_rows;
  if (!rises(rows) || rows.some((row) => !within(row, 0, n - 1))) {
    throw new RequestError(`logit_rows of a step must ascend and lie in 0..${n - 1}`);
  }
}

function checkIndptr(name: string, indptr: Int32Array, total: number): void {
  const endsMatch = indptr.length >= 2 && indptr[0] === 0 && indptr[indptr.length - 1] === total;
  if (!endsMatch || !rises(indptr)) {
    throw new RequestError(
      `${name} of a step must rise from 0 to ${total}, with no sequence empty: ` +
        `[${indptr.slice(0, 8).join(", ")}]`,
    );
  }
}

function checkPositions(batch: StepInput, manifest: Manifest): void {
  const { vocab_size: vocab, context_window_size: window } = manifest.model;
  const wrong = batch.tokens.find((token) => !within(token, 0, vocab - 1));
  if (wrong !== undefined) {
    throw new RequestError(`token ${wrong} is not in the vocabulary of ${vocab} tokens`);
  }
  for (const [, from, to] of sequences(batch)) {
    const [first, last] = [at(batch.positions, from), at(batch.positions, to - 1)];
    if (first < 0 || (window > 0 && last >= window)) {
      const bad = first < 0 ? first : last;
      throw new RequestError(`position ${bad} is outside the context window of ${window} tokens`);
    }
    for (let i = from + 1; i < to; i++) {
      if (at(batch.positions, i) !== at(batch.positions, i - 1) + 1) {
        throw new RequestError("the positions of one sequence in a step must be consecutive");
      }
    }
  }
}

function checkPages(batch: StepInput, pageSize: number, numPages: number): void {
  const bad = batch.page_table.find((page) => !within(page, 0, numPages - 1));
  if (bad !== undefined) {
    throw new RequestError(`page ${bad} is not one of the cache's ${numPages} pages`);
  }
  for (const [s, , to] of sequences(batch)) {
    const last = at(batch.positions, to - 1);
    const have = at(batch.page_indptr, s + 1) - at(batch.page_indptr, s);
    if (Math.floor(last / pageSize) >= have) {
      throw new RequestError(
        `sequence ${s} of the step reaches position ${last} and has ${have} pages of ` +
          `${pageSize} tokens`,
      );
    }
  }
}

/** The last position of each token's sequence, which begins in this step. */
function whole(batch: StepInput, ends: Int32Array): Int32Array {
  for (const [, from] of sequences(batch)) {
    if (at(batch.positions, from) !== 0) {
      throw new RequestError(
        `a sequence of the step begins at position ${batch.positions[from]}; an encoder takes ` +
          "each sequence as a whole, from position 0",
      );
    }
  }
  return ends;
}

function rises(values: Int32Array): boolean {
  return values.every((v, i) => i === 0 || v > at(values, i - 1));
}

function within(value: number | undefined, lo: number, hi: number): boolean {
  return value !== undefined && value >= lo && value <= hi;
}

function at(array: Int32Array, i: number): number {
  return array[i] as number;
}
