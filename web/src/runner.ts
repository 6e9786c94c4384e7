/**
 * Tokens in, the next token out: prompts cut into chunks, and a lost device taken up again.
 *
 * What the model has not yet seen of a sequence is all the state there is: a prompt, a chunk of one,
 * a decode, and everything after the device was lost are the same case with other numbers.
 */

import { Chunks } from "./chunks.js";
import { Conversation } from "./conversation.js";
import { DeviceError, DeviceLost } from "./errors.js";
import type { Clock, Executable } from "./executable.js";
import { Pages } from "./pages.js";
import { NONE } from "./sampling.js";
import type { SampleInput } from "./sampling.js";

/** Loads the same model once more, where its device was lost. */
export type Recover = (error: DeviceLost) => Promise<Executable>;

export class Runner {
  private conversation: Conversation;
  private readonly chunks: Chunks;

  constructor(
    private executable: Executable,
    private readonly recover: Recover,
    private readonly clock: Clock = () => performance.now(),
  ) {
    this.conversation = emptyFor(executable);
    const prefill = executable.manifest.entries.find((e) => e.name === "prefill");
    const most = prefill?.dims.find((d) => d.name === "n")?.hi ?? 1;
    this.chunks = new Chunks(most, prefill?.tile ?? 1);
  }

  get manifest(): Executable["manifest"] {
    return this.executable.manifest;
  }

  /** Tokens of prompt and answer together: what was compiled, or as many as there are pages for. */
  get window(): number {
    const { context_window_size: window } = this.manifest.model;
    const room = this.executable.numPages * this.manifest.kv_cache.page_size;
    return window > 0 ? Math.min(window, room) : room;
  }

  /** Keep what the cache has in common with a prompt; how many tokens that is. */
  begin(prompt: readonly number[]): number {
    return this.conversation.begin(prompt);
  }

  reset(): void {
    this.conversation.truncate(0);
  }

  /**
   * Compute what is new of `tokens` and choose the next one; null when `interrupted` before that.
   * A device lost twice in one call is an error.
   */
  async next(
    tokens: readonly number[],
    sample: () => Promise<SampleInput>,
    interrupted: () => boolean,
  ): Promise<number | null> {
    for (let recovered = false; ; recovered = true) {
      try {
        return await this.compute(tokens, await sample(), interrupted);
      } catch (error) {
        if (!(error instanceof DeviceLost) || recovered) throw error;
        this.executable = await this.recover(error);
        this.conversation = emptyFor(this.executable);
      }
    }
  }

  /** Logits of the token that was chosen last. */
  logits(): Promise<Float32Array> {
    return this.executable.logits();
  }

  close(): void {
    this.executable.close();
  }

  private async compute(
    tokens: readonly number[],
    sample: SampleInput,
    interrupted: () => boolean,
  ): Promise<number | null> {
    for (;;) {
      if (interrupted()) return null;
      const left = tokens.slice(this.conversation.length);
      const part = left.slice(0, left.length === 1 ? 1 : this.chunks.next(left.length));
      const last = part.length === left.length;
      const began = this.clock();
      const chosen = await this.executable.step(this.conversation.batch(part), last ? sample : null);
      this.conversation.computed(part);
      this.chunks.took(part.length, this.clock() - began, this.executable.room);
      if (!last) continue;
      const token = chosen?.[0] ?? NONE;
      if (token !== NONE) return token;
      throw new DeviceError(
        `the model computed no numbers at position ${tokens.length}, or allows no token there; its ` +
          "weights are damaged or its arithmetic overflowed",
      );
    }
  }
}

function emptyFor(executable: Executable): Conversation {
  return new Conversation(new Pages(executable.numPages), executable.manifest.kv_cache.page_size);
}
