/**
 * How many tokens of a prompt a step takes.
 *
 * A step is submitted in pieces that are short, see pace.ts, and no piece is less than a launch. So
 * the first chunk is one tile; the longest launch of each says how large the next may be. A step ends
 * before somebody who interrupts it gets impatient. Kernels take some tokens together, which cost
 * what one does: chunks are whole numbers of these, and one at least.
 */

import { AIM } from "./pace.js";

const TOGETHER = 4; // tokens: the tile of kernels for imitated GPUs, the only ones so slow
const PATIENCE = 500; // ms of a step

export class Chunks {
  private size: number;

  constructor(private readonly most: number) {
    this.size = Math.min(TOGETHER, most);
  }

  /** Tokens of the next step, of so many that are left. */
  next(left: number): number {
    return Math.min(left, this.size);
  }

  /**
   * A step of so many tokens took `ms`, of them `longest` in one launch that more tokens make
   * longer. Grows to the double at most, shrinks at once.
   */
  took(tokens: number, ms: number, longest: number): void {
    if (tokens < this.size) return; // the rest of a prompt says little
    const fits = Math.min((tokens * AIM) / Math.max(longest, 0.1), (tokens * PATIENCE) / Math.max(ms, 1));
    const whole = Math.floor(Math.min(fits, 2 * tokens) / TOGETHER) * TOGETHER;
    this.size = Math.min(Math.max(TOGETHER, whole), this.most);
  }
}
