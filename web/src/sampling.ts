/**
 * What the engine asks of a device's sampler, and its meaning in numbers.
 *
 * In: for each row to sample, which row of the last step's logits it is and how to choose. Out: a
 * token a row. It equals runtime/sampling.py to the last token: weights are whole numbers, so sums
 * have no order. A program's own kernel does it where there is one; `sampleRows` serves the rest.
 */

import { drawBits } from "./philox.js";

export const UNIT_BITS = 30; // a weight of 1 is 2^30
export const SHARE_BITS = 16; // a top_p of 1 is 2^16
export const NONE = -1; // where the largest logit is no number

/** r rows to sample; see SampleInput in runtime/sampling.py. */
export interface SampleInput {
  readonly vocabulary: number;
  readonly rows: Int32Array; // [r] rows of the last step's logits
  readonly inverse_temperature: Float32Array; // [r] 0: the largest
  readonly limits: Int32Array; // [r, 3] top_k, top_p in 2^-16, the least weight in 2^-30
  readonly keys: Uint32Array; // [r, 5] seed, answer, position in words, low first
  readonly masked: Int32Array; // [r] whether `allowed` counts
  readonly allowed: Uint32Array; // [r, ceil(vocab_size / 32)] a bit a token
  readonly edit_indptr: Int32Array; // [r + 1]
  readonly edit_ids: Int32Array; // [e]
  readonly edits: Float32Array; // [e, 4] bias, scale where positive, scale elsewhere, what is taken away
}

const fround = Math.fround;
const LARGEST = fround(3e38);

/** The token of each row of `logits` [rows, width], NONE where the largest is no number. */
export function sampleRows(logits: Float32Array, width: number, given: SampleInput): Int32Array {
  return Int32Array.from(given.rows, (row, i) => {
    const x = logits.slice(row * width, row * width + given.vocabulary);
    edit(x, given, i);
    return token(x, given, i);
  });
}

function edit(x: Float32Array, given: SampleInput, i: number): void {
  if (at(given.masked, i) !== 0) {
    const words = given.allowed.length / given.rows.length;
    for (let t = 0; t < x.length; t++) {
      const bit = (at(given.allowed, i * words + (t >> 5)) >>> (t & 31)) & 1;
      if (bit === 0) x[t] = -Infinity;
    }
  }
  for (let e = at(given.edit_indptr, i); e < at(given.edit_indptr, i + 1); e++) {
    const id = at(given.edit_ids, e);
    const [bias, above, below, less] = [0, 1, 2, 3].map((k) => at(given.edits, 4 * e + k)) as [number, number, number, number];
    const moved = fround(at(x, id) + bias);
    x[id] = fround(fround(moved * (moved > 0 ? above : below)) - less);
  }
}

function token(x: Float32Array, given: SampleInput, i: number): number {
  const first = largest(x);
  const peak = at(x, first);
  if (!(Math.abs(peak) <= LARGEST)) return NONE;
  const inverse = at(given.inverse_temperature, i);
  if (inverse === 0) return first;
  const slope = fround(inverse * LOG2E);
  const weights = Uint32Array.from(x, (v) => weigh(v, peak, slope));
  keep(weights, at(given.limits, 3 * i), at(given.limits, 3 * i + 1), at(given.limits, 3 * i + 2));
  const key = [0, 1, 2, 3, 4].map((k) => at(given.keys, 5 * i + k)) as [number, number, number, number, number];
  const bits = drawBits(pair(key[1], key[0]), key[2], Number(pair(key[4], key[3])));
  const point = Number((bits * BigInt(total(weights, 0))) >> 64n);
  let sum = 0;
  return weights.findIndex((w) => (sum += w) > point);
}

/** The first largest, or the first that is no number. */
export function largest(x: Float32Array): number {
  let best = 0;
  let value = at(x, 0);
  for (let i = 0; i < x.length; i++) {
    const v = at(x, i);
    if (v !== v) return i;
    if (v > value) [best, value] = [i, v];
  }
  return best;
}

/** Set the weights that may not be drawn to 0: beyond top_k, beyond the share, below the floor. */
function keep(weights: Uint32Array, topK: number, share: number, floor: number): void {
  let [least, ties] = [0, 0];
  const cutsK = topK > 0 && topK < weights.length;
  const cutsShare = share < 2 ** SHARE_BITS;
  if (cutsK || cutsShare) {
    const falling = weights.toSorted().reverse();
    if (cutsK) {
      least = at(falling, topK - 1);
      ties = least ? topK - falling.findIndex((w) => w <= least) : 0;
    }
    if (cutsShare) {
      const mass = BigInt(total(weights, least) + least * ties);
      const target = Math.max(Number((mass * BigInt(share)) >> BigInt(SHARE_BITS)), 1);
      let sum = 0;
      least = falling.find((w) => (sum += w) >= target) ?? at(falling, falling.length - 1);
      ties = Math.ceil((target - total(weights, least)) / least);
    }
  }
  for (let t = 0; t < weights.length; t++) {
    const w = at(weights, t);
    const kept = w > least || (w === least && least > 0 && ties-- > 0);
    if (!kept || w < floor) weights[t] = 0;
  }
}

/** The sum of the weights above `least`: exact, for a vocabulary of 2^22 stays below 2^53. */
function total(weights: Uint32Array, least: number): number {
  let sum = 0;
  for (const w of weights) if (w > least) sum += w;
  return sum;
}

/** 2^30 * 2^((x - peak) * slope), operation by operation as kernels do it. */
export function weigh(x: number, peak: number, slope: number): number {
  const halvings = Math.min(fround(fround(peak - x) * slope), 31);
  const steps = Math.trunc(halvings * 2 ** 24);
  const share = (steps & (2 ** 24 - 1)) * 2 ** -24;
  let p = TERMS[0] as number;
  for (let k = 1; k < TERMS.length; k++) p = (TERMS[k] as number) - Math.trunc(fround(share * p));
  return (p << (UNIT_BITS - 24)) >> (steps >> 24);
}

const LOG2E = fround(1.4426950408889634);
const TERMS = [16850, 156793, 929616, 4030137, 11629076, 2 ** 24]; // of 2^-f: see kernels/weights.py

function pair(high: number, low: number): bigint {
  return (BigInt(high) << 32n) | BigInt(low);
}

function at(array: Int32Array | Uint32Array | Float32Array, i: number): number {
  return array[i] as number;
}
