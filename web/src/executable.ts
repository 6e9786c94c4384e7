/** What the engine asks of a loaded model, whatever runs it: see runtime/executable.py. */

import type { Manifest } from "./artifact.js";
import type { StepInput } from "./batch.js";
import type { SampleInput } from "./sampling.js";

/** Milliseconds since some moment. */
export type Clock = () => number;

export interface Executable {
  readonly manifest: Manifest;
  /** Pages in the cache, fixed when the model was loaded. */
  readonly numPages: number;
  /** How many times as long the longest launch of the last step may take, of those that grow with tokens. */
  readonly room: number;
  /**
   * Append the batch's keys and values to the cache, and choose a token a row of `sample`; null:
   * none. Done once the device is. DeviceLost when it went away.
   */
  step(batch: StepInput, sample: SampleInput | null): Promise<Int32Array | null>;
  /** Logits [r, vocab_size] of the last step, which chose a token. */
  logits(): Promise<Float32Array>;
  close(): void;
}
