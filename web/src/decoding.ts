/**
 * What each decoder step of a tokenizer does to tokens, written so that it can run as a stream.
 *
 * In: the `decoder` object of a tokenizer.json; out: stages that turn tokens into text piece by
 * piece. The meaning of each step follows the `tokenizers` library's decoders/*.rs, as
 * text/decoding.py of the Python package does. Does not know ids.
 */

import { ArtifactError } from "./errors.js";

export type Step = Readonly<Record<string, unknown>> & { readonly type: string };

/** Takes tokens, gives tokens; `finish` gives what it held back. */
export interface Stage {
  put(tokens: string[]): string[];
  finish(): string[];
}

const KNOWN = ["ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece"];
/** What WordPiece's cleanup puts where, in this order. */
const CLEANUP: readonly (readonly [string, string])[] = [
  [" .", "."],
  [" ?", "?"],
  [" !", "!"],
  [" ,", ","],
  [" ' ", "'"],
  [" n't", "n't"],
  [" 'm", "'m"],
  [" do not", " don't"],
  [" 's", "'s"],
  [" 've", "'ve"],
  [" 're", "'re"],
];
const BYTE_TOKEN = /^<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>$/; // `+` is a sign that the library takes
const REPLACEMENT = "\ufffd";
const UTF8 = new TextEncoder();

/** GPT-2's map from printable characters to bytes (openai/gpt-2, encoder.py). */
export const ALPHABET: ReadonlyMap<string, number> = byteAlphabet();

function byteAlphabet(): Map<string, number> {
  const alphabet = new Map<string, number>();
  let spare = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable =
      (byte >= 0x21 && byte < 0x7f) || (byte >= 0xa1 && byte < 0xad) || byte >= 0xae;
    alphabet.set(String.fromCharCode(printable ? byte : spare++), byte);
  }
  return alphabet;
}

/** The steps of a decoder or normalizer in order, `Sequence` opened up. */
export function flatten(component: unknown): Step[] {
  if (component === null || component === undefined) return [];
  if (!isStep(component)) throw new ArtifactError("tokenizer.json has a step without a type");
  if (component.type !== "Sequence") return [component];
  const children = component["decoders"] ?? component["normalizers"] ?? [];
  if (!Array.isArray(children)) throw new ArtifactError("tokenizer.json has a sequence of nothing");
  return children.flatMap(flatten);
}

function isStep(value: unknown): value is Step {
  return typeof value === "object" && value !== null && typeof (value as Step).type === "string";
}

/** ArtifactError for a step that has no streaming form here. */
export function check(steps: readonly Step[]): void {
  let fused = false;
  for (const step of steps) {
    if (!supported(step, fused)) {
      throw new ArtifactError(
        `the tokenizer's decoder has a step ${JSON.stringify(step).slice(0, 200)} that Sterna ` +
          `does not support in this place; it knows ${KNOWN.join(", ")}`,
      );
    }
    fused ||= step.type === "Fuse" || step.type === "ByteLevel";
  }
}

function supported(step: Step, fused: boolean): boolean {
  switch (step.type) {
    case "Replace": {
      const pattern = replaced(step);
      return pattern !== "" && (!fused || [...pattern].length === 1);
    }
    case "Strip":
      return !step["stop"]; // the library itself fails on empty tokens there
    case "Metaspace":
    case "ByteFallback":
    case "ByteLevel":
    case "WordPiece":
      return !fused;
    default:
      return KNOWN.includes(step.type);
  }
}

/** The text that a `Replace` step looks for; empty where it is none. */
function replaced(step: Step): string {
  const pattern = step["pattern"] as { String?: unknown } | null | undefined;
  return typeof pattern?.String === "string" ? pattern.String : "";
}

/** Bytes of a byte-level token; one with a foreign character stands for itself. */
export function tokenBytes(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = ALPHABET.get(token[i]!);
    if (byte === undefined) return UTF8.encode(token);
    bytes[i] = byte;
  }
  return bytes;
}

/** Bytes of one token by itself, whatever stands before it. */
export function piece(steps: readonly Step[], token: string): Uint8Array {
  for (const step of steps) {
    if (step.type === "ByteLevel") return tokenBytes(token);
    if (step.type === "Replace") {
      token = token.split(replaced(step)).join(String(step["content"]));
    } else if (step.type === "Metaspace") {
      token = token.split(String(step["replacement"])).join(" ");
    } else if (step.type === "WordPiece") {
      token = wordPiece(step, token, false);
    } else if (step.type === "ByteFallback") {
      const byte = byteOf(token);
      if (byte !== null) return Uint8Array.of(byte);
    }
  }
  return UTF8.encode(token);
}

/** The text of a token: what goes on with a word has a prefix, before others is a space. */
function wordPiece(step: Step, token: string, first: boolean): string {
  const prefix = String(step["prefix"]);
  if (!first) token = token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`;
  for (const [old, text] of step["cleanup"] === true ? CLEANUP : []) {
    token = token.split(old).join(text);
  }
  return token;
}

function byteOf(token: string): number | null {
  const found = BYTE_TOKEN.exec(token);
  return found === null ? null : Number.parseInt(found[1]!, 16);
}

/** Bytes of all tokens as one string; incomplete characters are held back. */
class ByteLevel implements Stage {
  readonly #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

  put(tokens: string[]): string[] {
    return tokens.map((token) => this.#utf8.decode(tokenBytes(token), { stream: true }));
  }

  finish(): string[] {
    return [this.#utf8.decode()];
  }
}

/**
 * Runs of `<0xNN>` become text where the whole run is valid UTF-8, else one U+FFFD a byte. A run is
 * held until it ends, because its last byte may still make all of it invalid.
 */
class ByteFallback implements Stage {
  #run: number[] = [];

  put(tokens: string[]): string[] {
    const out: string[] = [];
    for (const token of tokens) {
      const byte = byteOf(token);
      if (byte === null) out.push(...this.finish(), token);
      else this.#run.push(byte);
    }
    return out;
  }

  finish(): string[] {
    const run = Uint8Array.from(this.#run);
    this.#run = [];
    if (run.length === 0) return [];
    try {
      return [new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(run)];
    } catch {
      return Array.from(run, () => REPLACEMENT);
    }
  }
}

/** One string for another, within each token. */
class Replace implements Stage {
  constructor(
    readonly pattern: string,
    readonly content: string,
  ) {}

  put(tokens: string[]): string[] {
    return tokens.map((token) => token.split(this.pattern).join(this.content));
  }

  finish(): string[] {
    return [];
  }
}

/** `▁` is a space, except in the first token where the encoder had put it there. */
class Metaspace implements Stage {
  constructor(
    readonly replacement: string,
    private first: boolean,
  ) {}

  put(tokens: string[]): string[] {
    return tokens.map((token) => {
      const text = token.split(this.replacement).join(this.first ? "" : " ");
      this.first = false;
      return text;
    });
  }

  finish(): string[] {
    return [];
  }
}

/** Up to `count` leading characters `content`: of the fused text, or of each token. */
class StripStart implements Stage {
  constructor(
    readonly content: string,
    private count: number,
    readonly fused: boolean,
  ) {}

  put(tokens: string[]): string[] {
    return tokens.map((token) => this.#strip(token));
  }

  #strip(token: string): string {
    let start = 0;
    while (start < Math.min(this.count, token.length) && token[start] === this.content) start++;
    if (this.fused && token !== "") this.count = start === token.length ? this.count - start : 0;
    return token.slice(start);
  }

  finish(): string[] {
    return [];
  }
}

/** BERT's: a space before each token but the first and those that go on with a word. */
class WordPiece implements Stage {
  #first = true;

  constructor(readonly step: Step) {}

  put(tokens: string[]): string[] {
    return tokens.map((token) => {
      const text = wordPiece(this.step, token, this.#first);
      this.#first = false;
      return text;
    });
  }

  finish(): string[] {
    return [];
  }
}

/** A tokenizer without a decoder: tokens joined by a space. */
class Spaced implements Stage {
  #first = true;

  put(tokens: string[]): string[] {
    const out = tokens.map((token, i) => (this.#first && i === 0 ? token : ` ${token}`));
    this.#first &&= tokens.length === 0;
    return out;
  }

  finish(): string[] {
    return [];
  }
}

/** Fresh stages for a chain of steps that `check` accepted. */
export function stages(steps: readonly Step[]): Stage[] {
  const chain: Stage[] = steps.length === 0 ? [new Spaced()] : [];
  let fused = false;
  for (const step of steps) {
    const stage = stageOf(step, fused);
    if (stage !== null) chain.push(stage);
    fused ||= step.type === "Fuse" || step.type === "ByteLevel";
  }
  return chain;
}

function stageOf(step: Step, fused: boolean): Stage | null {
  switch (step.type) {
    case "ByteLevel":
      return new ByteLevel();
    case "ByteFallback":
      return new ByteFallback();
    case "Replace":
      return new Replace(replaced(step), String(step["content"]));
    case "Metaspace":
      return new Metaspace(String(step["replacement"]), step["prepend_scheme"] !== "never");
    case "WordPiece":
      return new WordPiece(step);
    case "Strip":
      return new StripStart(String(step["content"]), Number(step["start"]), fused);
    default:
      return null; // Fuse: every stage gives texts that are joined anyway
  }
}
