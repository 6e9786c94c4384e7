/**
 * How many tokens of a prompt a step takes.
 *
 * A step is submitted in pieces that are short, see pace.ts, and no piece is less than a launch. So
 * the first chunk is one tile; the longest launch of each says how large the next may be. A step ends
 * before somebody who interrupts it gets impatient. Kernels take some tokens together, which cost
 * what one does: chunks are whole numbers of these tiles, and one at least.
 */

const PATIENCE = 500; // ms of a step

export class Chunks {
  private size: number;

  /** `most`: tokens that a step takes. `tile`: those that kernels take together. */
  constructor(
    private readonly most: number,
    private readonly tile: number,
  ) {
    this.size = Math.min(tile, most);
  }

  /** Tokens of the next step, of so many that are left. */
  next(left: number): number {
    return Math.min(left, this.size);
  }

  /**
   * A step of so many tokens took `ms`; its longest launch that more tokens make longer may take
   * `room` times as long. Grows to the double at most, shrinks at once.
   */
  took(tokens: number, ms: number, room: number): void {
    if (tokens < this.size) return; // the rest of a prompt says little
    const times = Math.min(room, PATIENCE / Math.max(ms, 1), 2);
    const whole = Math.floor((tokens * times) / this.tile) * this.tile;
    this.size = Math.min(Math.max(this.tile, whole), this.most);
  }
}
