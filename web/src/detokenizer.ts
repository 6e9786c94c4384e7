/**
 * Text as it is generated: ids in, text out, piece by piece.
 *
 * `StreamDecoder` gives the text of a growing list of ids, never half a character. `StopAt` cuts
 * that text at the first stop string, wherever token borders fall. Neither knows requests or models.
 */

import { stages, type Stage, type Step } from "./decoding.js";
import { RequestError } from "./errors.js";
import type { Detokenizer, StopStrings } from "./interfaces.js";

/** What a decoder needs of a tokenizer. */
export interface Vocabulary {
  readonly decoderSteps: readonly Step[];
  idToToken(id: number): string | null;
  isSpecial(token: string): boolean;
}

/** `shown`: special tokens that are text all the same. */
export class StreamDecoder implements Detokenizer {
  readonly #stages: Stage[];

  constructor(
    private readonly vocabulary: Vocabulary,
    private readonly skipSpecialTokens = true,
    private readonly shown: ReadonlySet<number> = new Set(),
  ) {
    this.#stages = stages(vocabulary.decoderSteps);
  }

  put(ids: readonly number[]): string {
    let tokens = ids.map((id) => this.#visible(id)).filter((token) => token !== null);
    for (const stage of this.#stages) tokens = stage.put(tokens);
    return tokens.join("");
  }

  /** What was held back; an unfinished character becomes U+FFFD. */
  finish(): string {
    let tokens: string[] = [];
    for (const stage of this.#stages) tokens = [...stage.put(tokens), ...stage.finish()];
    return tokens.join("");
  }

  #visible(id: number): string | null {
    const token = this.vocabulary.idToToken(id);
    if (token === null || !this.skipSpecialTokens || this.shown.has(id)) return token;
    return this.vocabulary.isSpecial(token) ? null : token;
  }
}

/**
 * Cuts a stream of text before the stop string that is complete first; where two become complete at
 * the same character, the longer one counts. One Knuth-Morris-Pratt automaton a stop string.
 */
export class StopAt implements StopStrings {
  readonly #stops: readonly string[];
  readonly #failures: readonly (readonly number[])[];
  readonly #matched: number[];
  #held = "";
  stopped = false;

  constructor(stops: readonly string[]) {
    if (stops.includes("")) throw new RequestError("a stop string may not be empty", "stop");
    this.#stops = [...stops];
    this.#failures = stops.map(failure);
    this.#matched = stops.map(() => 0);
  }

  /** The text that is certain to come before any stop. */
  put(text: string): string {
    if (this.#stops.length === 0) return text;
    if (this.stopped) return "";
    const start = this.#held.length;
    const all = this.#held + text;
    for (let end = start; end < all.length; end++) {
      const length = this.#advance(all[end]!);
      if (length > 0) {
        this.stopped = true;
        this.#held = "";
        return all.slice(0, end + 1 - length);
      }
    }
    const cut = all.length - Math.max(...this.#matched);
    this.#held = all.slice(cut);
    return all.slice(0, cut);
  }

  finish(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  /** Feed one UTF-16 unit to every automaton; the length of the stop it completes, or 0. */
  #advance(unit: string): number {
    let complete = 0;
    this.#stops.forEach((stop, i) => {
      let n = this.#matched[i]!;
      if (n === stop.length) n = this.#failures[i]![n - 1]!;
      while (n > 0 && stop[n] !== unit) n = this.#failures[i]![n - 1]!;
      if (stop[n] === unit) n++;
      this.#matched[i] = n;
      if (n === stop.length) complete = Math.max(complete, n);
    });
    return complete;
  }
}

/** KMP: for each prefix, the length of its longest proper border. */
function failure(stop: string): number[] {
  const table = [0];
  let n = 0;
  for (let i = 1; i < stop.length; i++) {
    while (n > 0 && stop[n] !== stop[i]) n = table[n - 1]!;
    if (stop[n] === stop[i]) n++;
    table.push(n);
  }
  return table;
}
