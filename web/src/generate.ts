/**
 * One answer as it grows: sampled tokens in, pieces for the caller out.
 *
 * Ends at an end token, a stop string wherever token borders fall, the end of its grammar, or the
 * last token it may have. As engine/generation.py; knows no device.
 */

import { ContextWindowExceeded, RequestError } from "./errors.js";
import type { Constraint, Detokenizer, StopStrings } from "./interfaces.js";
import type { FinishReason, Usage } from "./protocol.js";
import type { Runner } from "./runner.js";
import { sampleInput, withLogprobs } from "./sampler.js";
import type { Sample, SamplingOptions } from "./sampler.js";

/** One prompt with all that decides its answer. */
export interface Ask {
  readonly prompt: readonly number[];
  readonly options: SamplingOptions;
  readonly vocabulary: number; // ids that can be told apart
  readonly stopIds: ReadonlySet<number>;
  readonly constraint: Constraint | null;
  readonly detokenizer: Detokenizer;
  readonly stops: StopStrings;
}

/** What a sampled token added. The last one has a finish reason. */
export interface Piece {
  readonly text: string;
  readonly sample: Sample | null; // with log probabilities, where they were asked for
  readonly finish: FinishReason | null;
}

/** Counts and times of one answer, filled while it grows; seconds. */
export class Progress {
  cached = 0;
  output = 0;
  private readonly began = performance.now();
  private first: number | null = null;
  private last = this.began;

  constructor(readonly prompt: number) {}

  token(): void {
    this.last = performance.now();
    this.first ??= this.last;
    this.output++;
  }

  usage(): Usage {
    const first = this.first ?? this.last;
    const toFirst = (first - this.began) / 1000;
    const after = (this.last - first) / 1000;
    const later = Math.max(0, this.output - 1);
    return {
      prompt_tokens: this.prompt,
      completion_tokens: this.output,
      total_tokens: this.prompt + this.output,
      prompt_tokens_details: { cached_tokens: this.cached },
      extra: {
        prefill_tokens_per_s: rate(this.prompt - this.cached, toFirst),
        decode_tokens_per_s: rate(later, after),
        time_to_first_token_s: toFirst,
        time_per_output_token_s: later > 0 ? after / later : 0,
        e2e_latency_s: (this.last - this.began) / 1000,
      },
    };
  }
}

function rate(tokens: number, seconds: number): number {
  return seconds > 0 && tokens > 0 ? tokens / seconds : 0;
}

/** The pieces of an answer; the caller holds the runner until they end. */
export async function* generate(
  runner: Runner,
  ask: Ask,
  progress: Progress,
  interrupted: () => boolean,
): AsyncGenerator<Piece, void, void> {
  const { prompt, options } = ask;
  const most = Math.min(runner.window - prompt.length, options.max_tokens ?? Infinity);
  checkLength(prompt.length, runner.window);
  const vocabSize = runner.manifest.model.vocab_size;
  const tokens = [...prompt];
  const answer = new Answer(ask, most);
  progress.cached = runner.begin(prompt);
  const history = { tokens, promptLength: prompt.length };
  const sample = async () =>
    sampleInput(options, history, ask.vocabulary, vocabSize, (await ask.constraint?.mask()) ?? null);
  while (answer.finish === null) {
    const token = await runner.next(tokens, sample, interrupted);
    if (token === null) {
      yield { text: answer.flush(), sample: null, finish: "abort" };
      return;
    }
    const told = options.logprobs
      ? withLogprobs(token, (await runner.logits()).subarray(0, ask.vocabulary), options.top_logprobs)
      : null;
    tokens.push(token);
    progress.token();
    const text = answer.append(token);
    yield { text, sample: told, finish: answer.finish };
  }
}

function checkLength(length: number, window: number): void {
  if (length === 0) throw new RequestError("the prompt has no tokens, possible is one at least", "prompt");
  if (length >= window) {
    throw new ContextWindowExceeded(
      `the prompt has ${length} tokens and the model's window ${window}, one of them for the answer; ` +
        "shorten the conversation",
    );
  }
}

/** The text of the tokens so far, and whether it is complete. */
class Answer {
  finish: FinishReason | null = null;
  private count = 0;

  constructor(
    private readonly ask: Ask,
    private readonly most: number,
  ) {}

  append(token: number): string {
    const { detokenizer, stops, constraint, options } = this.ask;
    this.count++;
    const endless = options.ignore_eos && constraint === null;
    if (!endless && this.ask.stopIds.has(token)) {
      this.finish = "stop";
      return this.flush();
    }
    let text = stops.put(detokenizer.put([token]));
    if (stops.stopped) this.finish = "stop";
    if (this.finish === null && constraint !== null) {
      constraint.accept(token);
      if (constraint.finished) {
        text += this.flush();
        this.finish = "stop";
      }
    }
    if (this.finish === null && this.count >= this.most) {
      text += this.flush();
      this.finish = stops.stopped ? "stop" : "length";
    }
    return text;
  }

  /** What decoder and stop strings held back; it may still complete a stop string. */
  flush(): string {
    const { detokenizer, stops } = this.ask;
    const text = stops.put(detokenizer.finish());
    return stops.stopped ? text : text + stops.finish();
  }
}
