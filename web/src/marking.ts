/**
 * Special tokens that users spell out, told apart from those a chat template writes.
 *
 * In: messages as plain data, and the special tokens' texts. Out: the same data with a mark, one
 * private-use character that occurs nowhere in it, inside every spelled-out special token. A
 * template passes marks on with the text they are in, so in its output a special token is whole only
 * where the template wrote it. See text/marking.py of the Python package. Knows no tokenizer.
 */

import { RequestError } from "./errors.js";

const FIRST_PRIVATE = 0xe000;
const LAST_PRIVATE = 0xf8ff;

/** Marks what users wrote. Built once for a tokenizer's special tokens. */
export class Marker {
  readonly #pattern: RegExp | null;
  readonly #heads = new Set<string>();
  readonly #longest: number;

  constructor(specials: Iterable<string>) {
    const breakable = [...new Set(specials)].filter((text) => text.length > 1).sort();
    this.#pattern = breakable.length === 0 ? null : new RegExp(oneOf(breakable), "g");
    for (const text of breakable) {
      for (let n = 1; n < text.length; n++) this.#heads.add(text.slice(0, n));
    }
    this.#longest = Math.max(0, ...[...this.#heads].map((head) => head.length));
  }

  /** `value` with its strings marked, and the mark; null where nothing had to be. */
  mark<T>(value: T): [T, string | null] {
    const texts = [...strings(value)];
    if (texts.every((text) => this.#marked(text, "x") === text)) return [value, null];
    const mark = unused(texts);
    return [mapped(value, (text) => this.#marked(text, mark)) as T, mark];
  }

  #marked(text: string, mark: string): string {
    if (this.#pattern === null) return text;
    for (;;) {
      // Again, where special tokens overlap.
      const broken = text.replace(this.#pattern, (found) => broke(found, mark));
      if (broken === text) break;
      text = broken;
    }
    // A beginning of a special token at the end: what the template puts after it may complete it.
    for (let length = Math.min(this.#longest, text.length); length > 0; length--) {
      if (this.#heads.has(text.slice(-length))) {
        const head = text.slice(0, text.length - length);
        return head + broke(text.slice(-length), mark);
      }
    }
    return text;
  }
}

/** The mark after the first character. */
function broke(text: string, mark: string): string {
  const first = String.fromCodePoint(text.codePointAt(0)!);
  return first + mark + text.slice(first.length);
}

/**
 * A regular expression for any of `texts`, the longest where several fit: a tree of prefixes.
 * Deciding takes one pass over the characters, however many texts there are.
 */
export function oneOf(texts: readonly string[]): string {
  const tails = new Map<string, string[]>();
  for (const text of texts) {
    if (text === "") continue;
    const rest = tails.get(text[0]!);
    if (rest === undefined) tails.set(text[0]!, [text.slice(1)]);
    else rest.push(text.slice(1));
  }
  const branches = [...tails].sort().map(([head, rest]) => escaped(head) + oneOf(rest));
  if (branches.length === 0) return "";
  const joined = branches.length === 1 ? branches[0]! : `(?:${branches.join("|")})`;
  return texts.includes("") ? `(?:${joined})?` : joined;
}

function escaped(unit: string): string {
  return /[a-zA-Z0-9]/.test(unit)
    ? unit
    : `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
}

function* strings(value: unknown): Generator<string> {
  if (typeof value === "string") yield value;
  else if (Array.isArray(value)) for (const item of value) yield* strings(item);
  else if (typeof value === "object" && value !== null) {
    for (const [key, item] of Object.entries(value)) {
      yield key;
      yield* strings(item);
    }
  }
}

function mapped(value: unknown, change: (text: string) => string): unknown {
  if (typeof value === "string") return change(value);
  if (Array.isArray(value)) return value.map((item) => mapped(item, change));
  if (typeof value !== "object" || value === null) return value;
  const pairs = Object.entries(value).map(([key, item]) => [change(key), mapped(item, change)]);
  return Object.fromEntries(pairs);
}

function unused(texts: readonly string[]): string {
  const used = new Set(texts.flatMap((text) => text.match(/[\ue000-\uf8ff]/g) ?? []));
  for (let code = FIRST_PRIVATE; code <= LAST_PRIVATE; code++) {
    const mark = String.fromCharCode(code);
    if (!used.has(mark)) return mark;
  }
  throw new RequestError("the messages use every private-use character of Unicode's basic plane");
}
