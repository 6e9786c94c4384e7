/**
 * Grammars that answers must follow: source in, the tokens that may come next out.
 *
 * The matcher is `@mlc-ai/web-xgrammar`, a wasm library that works on the tokens' bytes. It is given
 * grammars only: JSON schemas become grammars in `json_schema.ts`, since its own reader of schemas
 * passes over keywords (`multipleOf`, `not`, `allOf`) and a request would be promised too much.
 * Whatever goes wrong is a RequestError. Loaded when a request first needs it.
 */

import { ALPHABET } from "./decoding.js";
import { RequestError } from "./errors.js";
import type { Constraint } from "./interfaces.js";
import type { Source } from "./grammar_source.js";
import type { Tokenizer } from "./tokenizer.js";
import {
  GrammarCompiler,
  GrammarMatcher,
  TokenizerInfo,
  type CompiledGrammar,
} from "./vendor/xgrammar.js";

const KEPT = 16; // compiled grammars
const MAX_SOURCE = 512 * 1024;

/** Compiles sources for one tokenizer; keeps the latest. */
export class Grammars {
  readonly #compiler: Promise<GrammarCompiler>;
  readonly #kept = new Map<string, Promise<CompiledGrammar>>();

  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly endIds: readonly number[],
  ) {
    this.#compiler = this.#makeCompiler();
  }

  /** Begin an answer; RequestError where the source cannot be kept to. */
  async start(source: Source): Promise<Constraint> {
    if (this.endIds.length === 0) {
      throw new RequestError("the model has no end token, which a grammar needs", source.what);
    }
    const compiled = await this.#compiled(source);
    const ends = this.endIds.filter((id) => id < this.tokenizer.vocabSize);
    const matcher = await GrammarMatcher.createGrammarMatcher(compiled, ends);
    const constraint = new Matching(matcher, source.what, this.tokenizer.vocabSize);
    await constraint.mask(); // some mistakes show only here
    return constraint;
  }

  async #compiled({ text, what }: Source): Promise<CompiledGrammar> {
    if (text.length > MAX_SOURCE) {
      throw new RequestError(
        `${what} makes a grammar of ${text.length} characters, possible are up to ${MAX_SOURCE}`,
        what,
      );
    }
    const known = this.#kept.get(text);
    if (known !== undefined) return known;
    const made = this.#compiler
      .then((compiler) => compiler.compileGrammar(text))
      .catch((error: unknown) => {
        this.#kept.delete(text);
        throw new RequestError(`${what} cannot be enforced: ${String(error).slice(0, 300)}`, what);
      });
    this.#kept.set(text, made);
    if (this.#kept.size > KEPT) this.#kept.delete(this.#kept.keys().next().value!);
    return made;
  }

  /** The library takes tokens in GPT-2's alphabet of bytes; special tokens stand for their text. */
  async #makeCompiler(): Promise<GrammarCompiler> {
    const letters = new Array<string>(256);
    for (const [letter, byte] of ALPHABET) letters[byte] = letter;
    const words = Array.from({ length: this.tokenizer.vocabSize }, (_, id) =>
      Array.from(this.tokenizer.idToPiece(id), (byte) => letters[byte]!).join(""),
    );
    const size = this.tokenizer.vocabSize;
    const ends = [...this.endIds];
    const info = await TokenizerInfo.createTokenizerInfo(words, "byte_level", false, size, ends);
    return GrammarCompiler.createGrammarCompiler(info, false);
  }
}

/** How far one answer has come in its grammar. */
class Matching implements Constraint {
  #mask: Promise<Uint32Array> | null = null;
  #disposed = false;

  constructor(
    private readonly matcher: GrammarMatcher,
    private readonly what: string,
    private readonly vocabSize: number,
  ) {}

  get finished(): boolean {
    return this.matcher.isTerminated();
  }

  mask(): Promise<Uint32Array> {
    this.#mask ??= this.#next();
    return this.#mask;
  }

  accept(token: number): void {
    this.#mask = null;
    if (!this.matcher.acceptToken(token)) {
      throw new RequestError(`the answer cannot be kept to its grammar: token ${token} does not fit`);
    }
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.matcher.dispose();
  }

  async #next(): Promise<Uint32Array> {
    const found = Uint32Array.from(await this.matcher.getNextTokenBitmask());
    const words = Math.ceil(this.vocabSize / 32);
    const spare = words * 32 - this.vocabSize;
    if (spare > 0) found[words - 1]! &= 0xffffffff >>> spare; // bits past the last token
    if (!found.some((word) => word !== 0)) {
      throw new RequestError(`${this.what} cannot be enforced: no token of the model fits`, this.what);
    }
    return found;
  }
}
