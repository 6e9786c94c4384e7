/**
 * Which special tokens a model's files name, as text and as ids. Does not know the vocabulary.
 */

import { ArtifactError } from "./errors.js";
import type { TextFiles } from "./interfaces.js";
import { isObject, readObject } from "./text_files.js";

const NAMES = [
  "bos_token",
  "eos_token",
  "unk_token",
  "sep_token",
  "pad_token",
  "cls_token",
  "mask_token",
];
const ID_FILES = ["generation_config.json", "mlc-chat-config.json", "config.json"];

/**
 * `texts`: name to token text. `stated`: names the files mention at all, null included. `bosIds` and
 * `eosIds` are the numbers in the generation or model configuration.
 */
export interface SpecialTokens {
  readonly texts: Readonly<Record<string, string>>;
  readonly stated: ReadonlySet<string>;
  readonly bosIds: readonly number[];
  readonly eosIds: readonly number[];
}

/** tokenizer_config.json wins over special_tokens_map.json. */
export async function readSpecialTokens(files: TextFiles): Promise<SpecialTokens> {
  const merged = {
    ...(await readObject(files, "special_tokens_map.json")),
    ...(await readObject(files, "tokenizer_config.json")),
  };
  const stated = NAMES.filter((name) => name in merged);
  const given = stated.filter((name) => merged[name] !== null);
  return {
    texts: Object.fromEntries(given.map((name) => [name, tokenText(merged[name], name)])),
    stated: new Set(stated),
    bosIds: await ids(files, "bos_token_id"),
    eosIds: await ids(files, "eos_token_id"),
  };
}

/** The text of a token that is written as a string or as an object with `content`. */
export function tokenText(value: unknown, name: string): string {
  const text = isObject(value) ? value["content"] : value;
  if (typeof text === "string") return text;
  throw new ArtifactError(`${name} must be a string or an object with 'content'`);
}

/** The ids under `key` in the first file that states them. */
async function ids(files: TextFiles, key: string): Promise<number[]> {
  for (const name of ID_FILES) {
    const value = (await readObject(files, name))[key];
    if (value === undefined || value === null) continue;
    const found: unknown[] = [value].flat();
    if (!found.every((item) => Number.isSafeInteger(item))) {
      throw new ArtifactError(`${name}: ${key} must be an id or a list of ids`);
    }
    return (found as number[]).filter((item) => item >= 0);
  }
  return [];
}
