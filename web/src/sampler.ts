/**
 * The sampler's orders: a request's options in, what the device's sampler takes out.
 *
 * A token depends on nothing but its row, its own history, and (seed, answer, position). Order: bias,
 * penalties, what is allowed, temperature, top-k, top-p, min-p, draw. Log probabilities are the
 * model's own, before any of that. As engine/sampler.py.
 */

import { SHARE_BITS, UNIT_BITS } from "./sampling.js";
import type { SampleInput } from "./sampling.js";

/** How one request's tokens are chosen and when it ends, checked; see engine/options.py. */
export interface SamplingOptions {
  readonly temperature: number;
  readonly top_p: number;
  readonly top_k: number;
  readonly min_p: number;
  readonly repetition_penalty: number;
  readonly presence_penalty: number;
  readonly frequency_penalty: number;
  readonly logit_bias: ReadonlyMap<number, number>;
  readonly seed: bigint;
  readonly max_tokens: number | null;
  readonly stop: readonly string[];
  readonly ignore_eos: boolean;
  readonly logprobs: boolean;
  readonly top_logprobs: number;
}

/** What came before the token: prompt and answer. */
export interface History {
  readonly tokens: readonly number[];
  readonly promptLength: number;
}

/** A token; log probabilities when asked for, `top` likeliest first. */
export interface Sample {
  readonly token: number;
  readonly logprob: number | null;
  readonly top: readonly (readonly [number, number])[];
}

const STEEPEST = 1e30; // the most that logits are divided by a temperature for

/** What the device takes for the one row of a step. `allowed`: a bit a token; null: all are. */
export function sampleInput(
  options: SamplingOptions,
  history: History,
  vocabulary: number,
  vocabSize: number,
  allowed: Uint32Array | null = null,
): SampleInput {
  const mask = new Uint32Array(Math.ceil(vocabSize / 32));
  if (allowed !== null) mask.set(allowed.subarray(0, mask.length));
  const { ids, numbers } = edits(options, history, vocabulary);
  const position = BigInt(history.tokens.length);
  const words = [options.seed, options.seed >> 32n, 0n, position, position >> 32n];
  return {
    vocabulary,
    rows: Int32Array.of(0),
    inverse_temperature: Float32Array.of(inverse(options.temperature)),
    limits: Int32Array.from(limits(options)),
    keys: Uint32Array.from(words, (word) => Number(word & 0xffffffffn)),
    masked: Int32Array.of(allowed === null ? 0 : 1),
    allowed: mask,
    edit_indptr: Int32Array.of(0, ids.length),
    edit_ids: ids,
    edits: numbers,
  };
}

/** 1 / temperature, 0 for the largest. */
function inverse(temperature: number): number {
  if (temperature === 0) return 0;
  return temperature * STEEPEST < 1 ? STEEPEST : 1 / temperature;
}

/** top_k, top_p in units of 2^-16, the least weight in units of 2^-30. */
function limits(options: SamplingOptions): [number, number, number] {
  const whole = 2 ** SHARE_BITS;
  const share = options.top_p === 1 ? whole : Math.min(toEven(options.top_p * whole), whole - 1);
  return [
    Math.min(options.top_k, 2 ** 31 - 1), share, Math.max(1, Math.ceil(options.min_p * 2 ** UNIT_BITS)),
  ];
}

/** Rounds halves to the even neighbour, as Python does. */
function toEven(x: number): number {
  const floor = Math.floor(x);
  const half = x - floor === 0.5;
  return half ? floor + (floor % 2) : Math.round(x);
}

/** Bias and penalties. `repetition_penalty` counts the prompt too, the others do not. */
function edits(o: SamplingOptions, history: History, vocabulary: number): { ids: Int32Array; numbers: Float32Array } {
  const found = new Map<number, [number, number, number, number]>();
  const of = (id: number): [number, number, number, number] => {
    const known = found.get(id) ?? [0, 1, 1, 0];
    found.set(id, known);
    return known;
  };
  for (const [id, bias] of o.logit_bias) of(id)[0] = bias;
  if (o.repetition_penalty !== 1) {
    for (const id of history.tokens) of(id).splice(1, 2, 1 / o.repetition_penalty, o.repetition_penalty);
  }
  if (o.presence_penalty !== 0 || o.frequency_penalty !== 0) {
    const counts = new Map<number, number>();
    for (const id of history.tokens.slice(history.promptLength)) counts.set(id, (counts.get(id) ?? 0) + 1);
    for (const [id, count] of counts) of(id)[3] = o.presence_penalty + o.frequency_penalty * count;
  }
  const ids = [...found.keys()].filter((id) => id < vocabulary).sort((a, b) => a - b);
  return { ids: Int32Array.from(ids), numbers: Float32Array.from(ids.flatMap(of)) };
}

/** Log probabilities of the token and of the `count` likeliest, equal ones by id. */
export function withLogprobs(token: number, logits: Float32Array, count: number): Sample {
  const peak = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  let sum = 0;
  for (const x of logits) sum += Math.exp(x - peak);
  const norm = peak + Math.log(sum);
  const told = (id: number): number => (logits[id] as number) - norm;
  const top = count > 0 ? ranked(logits, count).map((id) => [id, told(id)] as const) : [];
  return { token, logprob: told(token), top };
}

function ranked(row: Float32Array, count: number): number[] {
  const order = (a: number, b: number): number => (row[b] as number) - (row[a] as number) || a - b;
  const least = row.toSorted()[Math.max(0, row.length - count)] as number;
  return Array.from(row.keys()).filter((id) => (row[id] as number) >= least).sort(order).slice(0, count);
}
