/**
 * Requests as they come from callers, checked: every field is known and in its range, or refused.
 *
 * RequestError names the field, what was given and what is possible. Ranges are those of
 * engine/options.py, refusals those of engine/api_request.py. Knows no model.
 */

import type { ChatConfig } from "./chat_config.js";
import { RequestError } from "./errors.js";
import type { ChatRequest, CompletionRequest, SamplingFields } from "./protocol.js";
import type { SamplingOptions } from "./sampler.js";

interface Range {
  readonly lo: number;
  readonly hi: number;
  readonly whole: boolean;
}

const RANGES: Readonly<Record<string, Range>> = {
  temperature: { lo: 0, hi: Infinity, whole: false },
  top_p: { lo: 0, hi: 1, whole: false },
  top_k: { lo: 0, hi: Infinity, whole: true },
  min_p: { lo: 0, hi: 1, whole: false },
  repetition_penalty: { lo: 0.01, hi: 100, whole: false },
  presence_penalty: { lo: -2, hi: 2, whole: false },
  frequency_penalty: { lo: -2, hi: 2, whole: false },
  max_tokens: { lo: 1, hi: Infinity, whole: true },
  max_completion_tokens: { lo: 1, hi: Infinity, whole: true },
  n: { lo: 1, hi: 1, whole: true },
};
const SAMPLING = [
  "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
  "frequency_penalty", "logit_bias", "seed", "max_tokens", "stop", "ignore_eos",
];
const COMMON = [...SAMPLING, "model", "stream", "stream_options", "response_format", "n", "user", "logprobs"];
const CHAT = [
  ...COMMON, "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice",
  "parallel_tool_calls", "chat_template_kwargs", "extra_body",
];
const COMPLETION = [...COMMON, "prompt", "echo"];
const EXTRA = ["enable_thinking"];

const MAX_STOPS = 16;
const MAX_TOP = 20;
const [LEAST_SEED, END_OF_SEEDS] = [-(2n ** 63n), 2n ** 64n];

/** A chat request with its sampling options; RequestError for the first thing that is wrong. */
export function readChat(given: ChatRequest, config: ChatConfig): SamplingOptions {
  checkNames(given, CHAT, "");
  if (!Array.isArray(given.messages) || given.messages.length === 0) {
    throw new RequestError("messages is empty, possible is a list of messages", "messages");
  }
  for (const [i, message] of given.messages.entries()) checkMessage(message, `messages[${i}]`);
  checkNames(given.extra_body ?? {}, EXTRA, "extra_body.");
  const [newer, older] = [given.max_completion_tokens ?? null, given.max_tokens ?? null];
  if (newer !== null && older !== null && newer !== older) {
    throw new RequestError(
      `max_completion_tokens is ${newer} and max_tokens, its older name, is ${older}; give one`,
      "max_completion_tokens",
    );
  }
  const logprobs = flag(given.logprobs, "logprobs");
  const top = given.top_logprobs ?? 0;
  if (top !== 0 && !logprobs) throw new RequestError("top_logprobs needs logprobs: true", "top_logprobs");
  return options({ ...given, max_tokens: newer ?? older }, config, logprobs, top);
}

/** The same for a text completion, whose `logprobs` is a number. */
export function readCompletion(given: CompletionRequest, config: ChatConfig): SamplingOptions {
  checkNames(given, COMPLETION, "");
  const { prompt, logprobs = null } = given;
  const ids = Array.isArray(prompt) && prompt.every((id) => Number.isSafeInteger(id) && id >= 0);
  if (typeof prompt !== "string" && !ids) {
    throw new RequestError("prompt is neither a text nor a list of token ids", "prompt");
  }
  flag(given.echo, "echo");
  const format = given.response_format?.type ?? "text";
  if (typeof format !== "string") throw new RequestError("response_format has no type", "response_format");
  const top = typeof logprobs === "number" ? logprobs : 0;
  return options(given, config, logprobs !== null && logprobs !== false, top);
}

function options(given: SamplingFields, config: ChatConfig, logprobs: boolean, top: number): SamplingOptions {
  for (const [name, range] of Object.entries(RANGES)) checkRange(name, (given as Record<string, unknown>)[name], range);
  checkRange("top_logprobs", top, { lo: 0, hi: MAX_TOP, whole: true });
  for (const name of ["stream", "parallel_tool_calls"]) flag((given as Record<string, unknown>)[name], name);
  const number = (name: keyof SamplingFields & keyof typeof USUAL): number =>
    (given[name] ?? config.defaults[name] ?? USUAL[name]) as number;
  return {
    temperature: number("temperature"), top_p: number("top_p"), top_k: number("top_k"),
    min_p: number("min_p"), repetition_penalty: number("repetition_penalty"),
    presence_penalty: number("presence_penalty"), frequency_penalty: number("frequency_penalty"),
    logit_bias: bias(given.logit_bias ?? {}),
    seed: seed(given.seed ?? null),
    max_tokens: given.max_tokens ?? null,
    stop: stops(given.stop ?? []),
    ignore_eos: flag(given.ignore_eos, "ignore_eos"),
    logprobs,
    top_logprobs: top,
  };
}

const USUAL = {
  temperature: 1, top_p: 1, top_k: 0, min_p: 0, repetition_penalty: 1, presence_penalty: 0,
  frequency_penalty: 0,
};

function checkNames(given: object, known: readonly string[], before: string): void {
  if (typeof given !== "object" || given === null || Array.isArray(given)) {
    throw new RequestError(`${before.slice(0, -1) || "the request"} is no object`);
  }
  for (const name of Object.keys(given)) {
    if (known.includes(name)) continue;
    const given_ = JSON.stringify(name.slice(0, 80));
    throw new RequestError(`${before}${given_} is not supported in the browser; possible are ${known.join(", ")}`, before + name);
  }
}

const ROLES = ["system", "developer", "user", "assistant", "tool"];

function checkMessage(message: unknown, at: string): void {
  const { role, content = null, tool_calls: calls = null } = (message ?? {}) as Record<string, unknown>;
  if (!ROLES.includes(role as string)) {
    throw new RequestError(`${at}.role is ${show(role)}, possible are ${ROLES.join(", ")}`, `${at}.role`);
  }
  const texts = Array.isArray(content) && content.every((p) => p?.type === "text" && typeof p.text === "string");
  const missing = content === null && (role !== "assistant" || calls === null);
  if (missing || (content !== null && typeof content !== "string" && !texts)) {
    throw new RequestError(`${at}.content is ${show(content)}, possible is a text or a list of text parts`, `${at}.content`);
  }
}

function checkRange(name: string, value: unknown, { lo, hi, whole }: Range): void {
  if (value === undefined || value === null) return;
  const fits = typeof value === "number" && Number.isFinite(value) && value >= lo && value <= hi;
  if (fits && (!whole || Number.isSafeInteger(value))) return;
  if (lo === hi) throw new RequestError(`${name} is ${show(value)}, only ${lo} is possible`, name);
  const noun = whole ? "a whole number" : "a number";
  const bounds = hi === Infinity ? `of at least ${lo}` : `from ${lo} to ${hi}`;
  throw new RequestError(`${name} is ${show(value)}, possible is ${noun} ${bounds}`, name);
}

function flag(value: unknown, name: string): boolean {
  if (value === undefined || value === null) return false;
  if (typeof value !== "boolean") throw new RequestError(`${name} is ${show(value)}, possible is true or false`, name);
  return value;
}

function bias(given: Record<string, number>): Map<number, number> {
  const found = new Map<number, number>();
  for (const [key, value] of Object.entries(given)) {
    if (!/^\d{1,10}$/.test(key)) throw new RequestError(`logit_bias has the key ${show(key)}, possible are token ids`, "logit_bias");
    if (typeof value !== "number" || !(Math.abs(value) <= 100)) {
      throw new RequestError(`logit_bias[${key}] is ${show(value)}, possible is -100 to 100`, "logit_bias");
    }
    found.set(Number(key), value);
  }
  return found;
}

/** 64 bits; drawn where none was given. */
function seed(given: unknown): bigint {
  if (given === null) return crypto.getRandomValues(new BigUint64Array(1))[0] as bigint;
  const whole = typeof given === "bigint" || Number.isSafeInteger(given);
  const value = whole ? BigInt(given as number | bigint) : END_OF_SEEDS;
  if (value < LEAST_SEED || value >= END_OF_SEEDS) {
    throw new RequestError(`seed is ${show(given)}, possible is a whole number of 64 bits`, "seed");
  }
  return BigInt.asUintN(64, value);
}

function stops(given: unknown): string[] {
  const list: unknown[] = Array.isArray(given) ? given : [given];
  if (!list.every((s) => typeof s === "string" && s !== "")) {
    throw new RequestError(`stop is ${show(given)}, possible is one or more strings, none of them empty`, "stop");
  }
  if (list.length > MAX_STOPS) throw new RequestError(`stop has ${list.length} strings, possible are up to ${MAX_STOPS}`, "stop");
  return list as string[];
}

function show(value: unknown): string {
  const text = typeof value === "bigint" ? String(value) : (JSON.stringify(value) ?? String(value));
  return text.length > 80 ? `${text.slice(0, 80)}...` : text;
}
