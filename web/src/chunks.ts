/**
 * How many tokens of a prompt a step takes, so that no step holds the GPU for long.
 *
 * The first chunks are small; each one's time says how large the next may be. A page that shares
 * the GPU with the model stays alive while a long prompt is read. Where even a step of one token
 * takes longer than that, as on adapters that a processor imitates, smaller chunks cannot keep the
 * promise and only read the weights more often: there they stay at a size that is worth it.
 */

export const LONGEST = 50; // ms of one step
const AIM = 35; // ms: times scatter
const FIRST = 16; // tokens
const WORTH = 64; // tokens for which weights are read and unpacked once, where a step is slow anyway

export class Chunks {
  private size = FIRST;
  private slow = false; // whether one token by itself takes longer than LONGEST

  constructor(private readonly most: number) {}

  /** Tokens of the next step, of so many that are left. */
  next(left: number): number {
    return Math.min(left, this.slow ? Math.max(WORTH, this.size) : this.size, this.most);
  }

  /** A step of so many tokens took `ms`. Grows to the double at most, shrinks at once. */
  took(tokens: number, ms: number): void {
    if (tokens === 1) this.slow = ms > LONGEST;
    if (tokens === 1 && this.slow) return;
    const fits = Math.floor((tokens * AIM) / Math.max(ms, 0.1));
    if (tokens < this.size && ms < LONGEST) return; // the rest of a prompt says little
    this.size = Math.max(1, Math.min(fits, 2 * tokens, this.most));
  }
}
