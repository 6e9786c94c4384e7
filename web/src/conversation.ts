/**
 * The one sequence that the cache holds: which tokens it has computed, and where they lie.
 *
 * A new prompt keeps what it has in common with what is cached, so the next turn of a chat computes
 * only what was added. Knows no device and no text.
 */

import type { StepInput } from "./batch.js";
import type { Pages } from "./pages.js";

export class Conversation {
  private cached: number[] = [];
  private table: number[] = [];

  constructor(
    private readonly pages: Pages,
    private readonly pageSize: number,
  ) {}

  /** Tokens whose keys and values are in the cache. */
  get length(): number {
    return this.cached.length;
  }

  /** The pages of the sequence, in order. */
  get pageTable(): readonly number[] {
    return this.table;
  }

  /** Keep the longest common beginning; its length. At least one token is always computed. */
  begin(prompt: readonly number[]): number {
    const most = Math.min(this.cached.length, prompt.length - 1);
    let same = 0;
    while (same < most && this.cached[same] === prompt[same]) same++;
    this.truncate(same);
    return same;
  }

  /** Forget everything past `length` tokens, and give the pages back. */
  truncate(length: number): void {
    this.cached.length = Math.min(length, this.cached.length);
    const needed = Math.ceil(this.cached.length / this.pageSize);
    this.pages.free(this.table.splice(needed));
  }

  /** A step that computes these tokens after those that are cached, and the last one's logits. */
  batch(tokens: readonly number[]): StepInput {
    const [start, count] = [this.cached.length, tokens.length];
    const needed = Math.ceil((start + count) / this.pageSize);
    this.table.push(...this.pages.allocate(Math.max(0, needed - this.table.length)));
    return {
      tokens: Int32Array.from(tokens),
      positions: Int32Array.from(tokens, (_, i) => start + i),
      seq_indptr: Int32Array.of(0, count),
      page_indptr: Int32Array.of(0, needed),
      page_table: Int32Array.from(this.table.slice(0, needed)),
      logit_rows: Int32Array.of(count - 1),
    };
  }

  /** The step was computed. */
  computed(tokens: readonly number[]): void {
    this.cached.push(...tokens);
  }
}
