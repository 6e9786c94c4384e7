/**
 * What a model's `mlc-chat-config.json` says on how it wants to be asked: sampling defaults and what
 * ends an answer. Files are checked, not trusted. Knows no weights and no tokenizer.
 */

import { ArtifactError } from "./errors.js";
import type { SamplingFields } from "./protocol.js";

export interface ChatConfig {
  readonly defaults: SamplingFields;
  readonly stopIds: readonly number[];
  readonly stopStrings: readonly string[];
  /** MLC's own template, for folders whose tokenizer has none. */
  readonly convTemplate: Readonly<Record<string, unknown>> | null;
}

const NUMBERS = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "repetition_penalty",
  "presence_penalty",
  "frequency_penalty",
] as const;
const RAW = "LM"; // MLC's name for no template at all

/** Read the file's bytes; ArtifactError where a value makes no sense. null: there is no such file. */
export function readChatConfig(data: Uint8Array | null): ChatConfig {
  const config = data === null ? {} : parse(data);
  const defaults: SamplingFields = {};
  for (const name of NUMBERS) {
    const value = config[name];
    if (value === undefined || value === null) continue;
    if (typeof value !== "number" || !Number.isFinite(value)) {
      throw new ArtifactError(`mlc-chat-config.json: ${name} is ${JSON.stringify(value)}, no number`);
    }
    defaults[name] = value;
  }
  const found = config["conv_template"];
  const template = isRecord(found) ? found : {}; // older folders have a name there
  return {
    defaults,
    stopIds: list(template["stop_token_ids"], isId, "token ids"),
    stopStrings: list(template["stop_str"], isText, "strings").filter((text) => text !== ""),
    convTemplate: !isRecord(found) || found["name"] === RAW ? null : found,
  };
}

function parse(data: Uint8Array): Record<string, unknown> {
  let found: unknown;
  try {
    found = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(data));
  } catch (error) {
    throw new ArtifactError(`mlc-chat-config.json is not JSON: ${String(error)}`);
  }
  if (!isRecord(found)) throw new ArtifactError("mlc-chat-config.json is no JSON object");
  return found;
}

function list<T>(value: unknown, is: (x: unknown) => x is T, kind: string): T[] {
  const items: unknown[] = value === undefined || value === null ? [] : [value].flat();
  if (!items.every(is)) {
    throw new ArtifactError(
      `mlc-chat-config.json has ${JSON.stringify(value)} where ${kind} are possible`,
    );
  }
  return items;
}

function isRecord(x: unknown): x is Record<string, unknown> {
  return typeof x === "object" && x !== null && !Array.isArray(x);
}

function isId(x: unknown): x is number {
  return Number.isSafeInteger(x) && (x as number) >= 0;
}

function isText(x: unknown): x is string {
  return typeof x === "string";
}
