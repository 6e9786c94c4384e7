/**
 * Text to token ids and back, exactly as the model's own tokenizer.json says.
 *
 * `@huggingface/tokenizers` turns plain text into ids. Control tokens are split off here, before it,
 * so that what users spell out stays text and what templates write becomes tokens (`encodeMarked`).
 * Files are hostile until checked: ArtifactError. Does not know templates nor streaming.
 */

import { check, flatten, piece, type Step } from "./decoding.js";
import { StreamDecoder } from "./detokenizer.js";
import { ArtifactError, RequestError } from "./errors.js";
import type { EncodeOptions, TextFiles, Tokenizer as TokenizerFace } from "./interfaces.js";
import { oneOf } from "./marking.js";
import { readSpecialTokens, tokenText, type SpecialTokens } from "./special_tokens.js";
import { isObject, readObject, type Json } from "./text_files.js";
import { Tokenizer as Backend } from "./vendor/tokenizers.js";

const MAX_EXPANSION = 1024;
const MAX_ADDED = 16;
const WORD_END = /[\p{L}\p{N}\p{M}_]$/u;
const WORD_START = /^[\p{L}\p{N}\p{M}_]/u;

interface Added {
  id: number;
  content: string;
  special: boolean;
  normalized: boolean;
  lstrip: boolean;
  rstrip: boolean;
  single_word: boolean;
}

type Encoder = (text: string) => number[];

/** A loaded tokenizer; see `interfaces.ts` for what its members mean. */
export class Tokenizer implements TokenizerFace {
  readonly vocabSize: number;
  readonly specialTokens: ReadonlyMap<string, number>;
  readonly bosId: number | null;
  readonly eosIds: readonly number[];
  readonly decoderSteps: readonly Step[];
  readonly #tokens: readonly (string | undefined)[];
  readonly #ids: ReadonlyMap<string, number>;
  readonly #added: ReadonlyMap<string, Added>;
  readonly #first: Encoder; // of the text's beginning
  readonly #later: Encoder; // of what follows a control token
  readonly #around: readonly [number[], number[]];

  constructor(json: Json, added: readonly Added[], special: SpecialTokens) {
    const plain = added.filter((token) => !token.special && token.normalized);
    const backend = build({ ...json, added_tokens: plain });
    const vocabulary = backend.get_vocab(true);
    const ids = new Map(vocabulary);
    for (const token of added) ids.set(token.content, token.id);
    const tokens: (string | undefined)[] = [];
    for (const [text, id] of ids) tokens[id] = text;
    this.#ids = ids;
    this.#tokens = tokens;
    this.vocabSize = tokens.length;
    this.#added = new Map(
      added.filter((t) => t.content !== "" && !plain.includes(t)).map((t) => [t.content, t]),
    );
    this.specialTokens = new Map(added.filter((t) => t.special).map((t) => [t.content, t.id]));
    this.decoderSteps = flatten(json["decoder"]);
    check(this.decoderSteps);
    const words = backend.pre_tokenizer;
    this.#first = encoder(backend, words);
    this.#later = encoder(backend, prefixes(json) ? unprefixed(json) : words);
    this.#around = this.#putAround(backend);
    this.bosId = this.#findBos(special);
    this.eosIds = this.#findEos(special);
  }

  /** ArtifactError where there is no tokenizer.json that works. */
  static async load(files: TextFiles): Promise<Tokenizer> {
    const json = await readObject(files, "tokenizer.json");
    if (Object.keys(json).length === 0) {
      throw new ArtifactError("the model has no tokenizer.json: compile it again for the web");
    }
    refuseExpansion(flatten(json["normalizer"]));
    refuseExpansion(flatten(json["decoder"]));
    const added = readAdded(json, await readObject(files, "tokenizer_config.json"));
    return new Tokenizer(json, added, await readSpecialTokens(files));
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    checkUnicode(text);
    const { addSpecialTokens = true, allowSpecial = false } = options;
    const ids = this.#split(text, (token) => !token.special || allowSpecial, null);
    if (!addSpecialTokens) return ids;
    const [before, after] = this.#around;
    const around = [...before, ...ids, ...after];
    const doubled = before.length > 0 && before[0] === this.bosId && around[1] === this.bosId;
    return doubled ? around.slice(1) : around;
  }

  /**
   * Ids of a rendered template without those that users spelled out: a special token with the mark
   * in it is plain text, a whole one is the token.
   */
  encodeMarked(text: string, mark: string): number[] {
    checkUnicode(text.replaceAll(mark, ""));
    return this.#split(text, () => true, mark);
  }

  decode(ids: readonly number[], options: { skipSpecialTokens?: boolean } = {}): string {
    const decoder = new StreamDecoder(this, options.skipSpecialTokens ?? true);
    return decoder.put(ids) + decoder.finish();
  }

  tokenToId(token: string): number | null {
    return this.#ids.get(token) ?? null;
  }

  idToToken(id: number): string | null {
    return this.#tokens[id] ?? null;
  }

  idToPiece(id: number): Uint8Array {
    const token = this.idToToken(id);
    return token === null ? new Uint8Array() : piece(this.decoderSteps, token);
  }

  isSpecial(token: string): boolean {
    return this.specialTokens.has(token);
  }

  /** Added tokens that `wanted` are ids, text between them goes through the library. */
  #split(text: string, wanted: (token: Added) => boolean, mark: string | null): number[] {
    const looked = [...this.#added.values()].filter(wanted).map((token) => token.content);
    if (looked.length === 0) return this.#first(text);
    const out: number[] = [];
    const plain = (from: number, to: number): void => {
      const part = mark === null ? text.slice(from, to) : text.slice(from, to).replaceAll(mark, "");
      if (part !== "") out.push(...(from === 0 ? this.#first(part) : this.#later(part)));
    };
    const whole = mark === null ? "" : `(?!${mark})`;
    let done = 0;
    for (const found of text.matchAll(new RegExp(`(?:${oneOf(looked)})${whole}`, "g"))) {
      const token = this.#added.get(found[0])!;
      let [start, end] = [found.index, found.index + found[0].length];
      if (start < done || (token.single_word && inWord(text, start, end))) continue;
      if (token.lstrip) start = done + text.slice(done, start).trimEnd().length;
      if (token.rstrip) end = text.length - text.slice(end).trimStart().length;
      plain(done, start);
      out.push(token.id);
      done = end;
    }
    plain(done, text.length);
    return out;
  }

  /** What the post-processor puts before and after any text. */
  #putAround(backend: Backend): [number[], number[]] {
    const all = backend.encode("a", { add_special_tokens: true }).tokens;
    const bare = backend.encode("a", { add_special_tokens: false }).tokens;
    if (all.length > bare.length + MAX_ADDED) {
      throw new ArtifactError("the tokenizer adds too many tokens to every text: it is damaged");
    }
    const at = all.findIndex((_, i) => bare.every((token, j) => all[i + j] === token));
    const known = (token: string): number => {
      const id = this.#ids.get(token);
      if (id !== undefined) return id;
      throw new ArtifactError(`the tokenizer puts in ${token}, which its vocabulary does not have`);
    };
    return [all.slice(0, at).map(known), all.slice(at + bare.length).map(known)];
  }

  #findBos(special: SpecialTokens): number | null {
    if (special.stated.has("bos_token")) {
      const text = special.texts["bos_token"];
      return text === undefined ? null : this.tokenToId(text);
    }
    return special.bosIds.find((id) => id < this.vocabSize) ?? null;
  }

  #findEos(special: SpecialTokens): number[] {
    const own = this.tokenToId(special.texts["eos_token"] ?? "");
    return [...new Set([...(own === null ? [] : [own]), ...special.eosIds])];
  }
}

function build(json: Json): Backend {
  try {
    return new Backend({ ...json, pre_tokenizer: digits(json["pre_tokenizer"]) }, {});
  } catch (error) {
    throw new ArtifactError(`tokenizer.json cannot be used: ${String(error)}`);
  }
}

/** The library's `Digits` knows 0 to 9 only, Rust's all that Unicode calls a number. */
function digits(step: unknown): unknown {
  if (!isObject(step)) return step;
  if (step["type"] === "Digits") {
    const pattern = { Regex: step["individual_digits"] === true ? "\\p{N}" : "\\p{N}+" };
    return { type: "Split", pattern, behavior: "Isolated", invert: false };
  }
  const steps = step["pretokenizers"];
  return Array.isArray(steps) ? { ...step, pretokenizers: steps.map(digits) } : step;
}

/** Text to ids with one of several ways to split it into words. */
function encoder(backend: Backend, words: Backend["pre_tokenizer"]): Encoder {
  return (text) => {
    backend.pre_tokenizer = words;
    return backend.encode(text, { add_special_tokens: false }).ids.filter(isId);
  };
}

function isId(id: number | undefined): id is number {
  return id !== undefined; // what no token stands for is left out, as the library in Rust does
}

function checkUnicode(text: string): void {
  if (text.isWellFormed()) return;
  throw new RequestError("the text holds a lone surrogate, which is not valid Unicode");
}

function inWord(text: string, start: number, end: number): boolean {
  return WORD_END.test(text.slice(0, start)) || WORD_START.test(text.slice(end));
}

/** Whether the text's beginning is split otherwise than the rest: `prepend_scheme` "first". */
function prefixes(json: Json): boolean {
  return JSON.stringify(json["pre_tokenizer"] ?? null).includes('"prepend_scheme":"first"');
}

function unprefixed(json: Json): Backend["pre_tokenizer"] {
  const text = JSON.stringify(json["pre_tokenizer"]);
  const later: unknown = JSON.parse(
    text.replaceAll('"prepend_scheme":"first"', '"prepend_scheme":"never"'),
  );
  const model = { type: "BPE", vocab: {}, merges: [] };
  return build({ ...json, model, pre_tokenizer: later, added_tokens: [] }).pre_tokenizer;
}

/** The file's added tokens, and those of the configuration that it lacks. */
function readAdded(json: Json, config: Json): Added[] {
  const listed = json["added_tokens"] ?? [];
  if (!Array.isArray(listed)) throw new ArtifactError("tokenizer.json: added_tokens is no list");
  const added = listed.map((token) => addedToken(token, isObject(token) ? token["id"] : null));
  const known = new Set(added.map((token) => token.content));
  const described = config["added_tokens_decoder"];
  for (const [id, token] of Object.entries(isObject(described) ? described : {})) {
    if (!known.has(tokenText(token, `added token ${id}`))) {
      added.push(addedToken(token, Number(id)));
    }
  }
  return added;
}

function addedToken(token: unknown, id: unknown): Added {
  const text = tokenText(token, "an added token");
  if (!isObject(token) || !Number.isSafeInteger(id) || (id as number) < 0) {
    throw new ArtifactError(`the added token ${JSON.stringify(text)} has no id`);
  }
  const flag = (name: string): boolean => token[name] === true;
  return {
    id: id as number,
    content: text,
    special: flag("special"),
    normalized: flag("normalized"),
    lstrip: flag("lstrip"),
    rstrip: flag("rstrip"),
    single_word: flag("single_word"),
  };
}

/** Refuse a chain of replacements that could blow a short text up beyond all memory. */
function refuseExpansion(steps: readonly Step[]): void {
  let factor = 1;
  for (const step of steps) {
    if (step.type !== "Replace") continue;
    const pattern = step["pattern"] as { String?: string } | undefined;
    const length = Math.max(1, pattern?.String?.length ?? 1);
    factor *= Math.max(1, String(step["content"]).length / length);
  }
  if (factor > MAX_EXPANSION) {
    throw new ArtifactError(`tokenizer.json lets a text grow ${factor.toFixed(0)} times: hostile`);
  }
}
