/**
 * The engine's face: load a model, and ask it as OpenAI's API is asked.
 *
 *     const engine = await CreateEngine("/models/tern-webgpu/", { initProgressCallback });
 *     const stream = await engine.chat.completions.create({ messages, stream: true });
 *     for await (const chunk of stream) ...
 *
 * One model, one conversation, one request at a time: others wait. What WebLLM's users know works
 * under the same names.
 */

import type { CachedModel } from "./cache.js";
import { findAdapter } from "./device.js";
import { ModelNotLoaded, RequestError } from "./errors.js";
import { Progress, generate } from "./generate.js";
import type { Ask, Piece } from "./generate.js";
import type { LoadText } from "./interfaces.js";
import { folderOf, load, needsOf, openCache } from "./loader.js";
import type { InitProgressCallback, LoadOptions, Loaded, ModelNeeds } from "./loader.js";
import { Mutex } from "./mutex.js";
import type {
  ChatCompletion, ChatCompletionChunk, ChatRequest, Completion, CompletionRequest, Usage,
} from "./protocol.js";
import { readChat, readCompletion } from "./request.js";
import { chatChunks, head, textChunks, wholeChat, wholeText } from "./responses.js";
import type { SamplingOptions } from "./sampler.js";
import { speeds } from "./speeds.js";

/** A model under a short name, as WebLLM's lists have them. `model`: the address of its folder. */
export interface ModelRecord {
  readonly model_id: string;
  readonly model: string;
}

export interface AppConfig {
  readonly model_list: readonly ModelRecord[];
}

export interface EngineConfig {
  readonly initProgressCallback?: InitProgressCallback | undefined;
  readonly appConfig?: AppConfig | undefined;
  /** false: nothing is kept for the next visit. */
  readonly cache?: boolean | undefined;
  readonly loadText?: LoadText | undefined;
}

export interface ChatOptions {
  readonly context_window_size?: number;
}

/** An engine with a model: an address of a folder, or a `model_id` of `appConfig`. */
export async function CreateEngine(model: string, config: EngineConfig = {}, chat: ChatOptions = {}): Promise<Engine> {
  const engine = new Engine(config);
  await engine.reload(model, chat);
  return engine;
}

export class Engine {
  readonly chat = {
    completions: {
      create: <R extends ChatRequest>(request: R) => this.chatCompletion(request),
    },
  };
  readonly completions = {
    create: <R extends CompletionRequest>(request: R) => this.completion(request),
  };
  private readonly turns = new Mutex();
  private loaded: (Loaded & { readonly name: string }) | null = null;
  private loading = new AbortController();
  private interrupted = false;
  private message = "";
  private usage: Usage | null = null;

  constructor(private config: EngineConfig = {}) {}

  /** Load a model in place of the one that is there; a load that is still under way ends. */
  async reload(model: string, chat: ChatOptions = {}): Promise<void> {
    if (typeof model !== "string") throw new RequestError("model is no text; an engine holds one model", "model");
    for (const name of Object.keys(chat)) {
      if (name !== "context_window_size") throw new RequestError(`${name} is no option of a load, possible is context_window_size`, name);
    }
    await this.unload();
    const loading = (this.loading = new AbortController());
    await this.turns.run(async () => {
      const options: LoadOptions = { ...this.config, contextWindowSize: chat.context_window_size };
      this.loaded = { ...(await load(addressOf(model, this.config.appConfig), options, loading.signal)), name: model };
    });
  }

  /** Give all memory of the device back; ends what is under way. */
  async unload(): Promise<void> {
    this.loading.abort();
    this.interrupted = true;
    await this.turns.run(async () => {
      this.loaded?.runner.close();
      this.loaded = null;
    });
  }

  chatCompletion(request: ChatRequest & { stream: true }): Promise<AsyncGenerator<ChatCompletionChunk, void, void>>;
  chatCompletion(request: ChatRequest & { stream?: false | null }): Promise<ChatCompletion>;
  chatCompletion<R extends ChatRequest>(request: R): Promise<ChatAnswer<R>>;
  async chatCompletion(request: ChatRequest): Promise<ChatCompletion | AsyncGenerator<ChatCompletionChunk, void, void>> {
    const { text, config } = this.model(request.model);
    const options = readChat(request, config);
    if (text.template === null) {
      throw new RequestError("the model has no chat template; use completions.create with a prompt", "messages");
    }
    const prompt = text.template.render(request);
    const of = head("chatcmpl", this.model().name);
    const progress = new Progress(prompt.length);
    const pieces = this.pieces(progress, async () => ({
      ...this.ask(prompt, options),
      detokenizer: text.detokenizer(request),
      constraint: await text.constraint(request),
    }));
    const chunks = chatChunks(of, pieces, text.answer(request), text.tokenizer, options.logprobs);
    if (request.stream !== true) return wholeChat(of, chunks, () => progress.usage());
    return withUsage(chunks, request, (usage) => ({ ...of, object: "chat.completion.chunk", choices: [], usage }), progress);
  }

  completion(request: CompletionRequest & { stream: true }): Promise<AsyncGenerator<Completion, void, void>>;
  completion(request: CompletionRequest & { stream?: false | null }): Promise<Completion>;
  completion<R extends CompletionRequest>(request: R): Promise<TextAnswer<R>>;
  async completion(request: CompletionRequest): Promise<Completion | AsyncGenerator<Completion, void, void>> {
    const { text, config } = this.model(request.model);
    const options = readCompletion(request, config);
    const given = request.prompt;
    const prompt = typeof given === "string" ? text.tokenizer.encode(given) : given;
    const before = request.echo !== true ? "" : typeof given === "string" ? given : text.tokenizer.decode(given);
    const of = head("cmpl", this.model().name);
    const progress = new Progress(prompt.length);
    const pieces = this.pieces(progress, async () => ({
      ...this.ask(prompt, options),
      detokenizer: text.detokenizer(),
      constraint: await text.constraint(request),
    }));
    const chunks = textChunks(of, pieces, text.tokenizer, options.logprobs, before);
    if (request.stream !== true) return wholeText(of, chunks, () => progress.usage());
    return withUsage(chunks, request, (usage) => ({ ...of, object: "text_completion", choices: [], usage }), progress);
  }

  /** End the answer that is being made, before its next token; its finish reason is "abort". */
  interruptGenerate(): void {
    this.interrupted = true;
  }

  /** Forget the conversation that the cache holds. */
  async resetChat(keepStats = false): Promise<void> {
    this.interrupted = true;
    await this.turns.run(async () => {
      this.loaded?.runner.reset();
      this.message = "";
      if (!keepStats) this.usage = null;
    });
  }

  /** The text of the last answer. */
  async getMessage(): Promise<string> {
    return this.message;
  }

  /** Counts and speeds of the last answer; null where there was none. */
  runtimeStats(): Usage | null {
    return this.usage;
  }

  /** The same as a sentence. */
  async runtimeStatsText(): Promise<string> {
    return speeds(this.usage);
  }

  /** Change what is given; what is not stays as it was. */
  configure(config: EngineConfig): void {
    this.config = { ...this.config, ...config };
  }

  setInitProgressCallback(callback?: InitProgressCallback): void {
    this.configure({ initProgressCallback: callback });
  }

  getInitProgressCallback(): InitProgressCallback | undefined {
    return this.config.initProgressCallback;
  }

  setAppConfig(appConfig: AppConfig): void {
    this.configure({ appConfig });
  }

  async getMaxStorageBufferBindingSize(): Promise<number> {
    return (await findAdapter()).offer.limits["maxStorageBufferBindingSize"] ?? 0;
  }

  async getGPUVendor(): Promise<string> {
    return (await findAdapter()).adapter.info.vendor;
  }

  private model(named: string | null = null): Loaded & { readonly name: string } {
    if (this.loaded === null) throw new ModelNotLoaded("no model is loaded; call reload with the address of one");
    if (named !== null && named !== this.loaded.name) {
      throw new RequestError(`model is ${JSON.stringify(named)}, and ${JSON.stringify(this.loaded.name)} is loaded`, "model");
    }
    return this.loaded;
  }

  private ask(prompt: readonly number[], options: SamplingOptions): Omit<Ask, "detokenizer" | "constraint"> {
    const { text, config, index } = this.model();
    const vocabulary = Math.min(index.model.vocab_size, text.tokenizer.vocabSize);
    for (const id of options.logit_bias.keys()) {
      if (id >= vocabulary) throw new RequestError(`logit_bias has the token ${id}, possible are 0 to ${vocabulary - 1}`, "logit_bias");
    }
    return {
      prompt, options, vocabulary,
      stopIds: new Set([...config.stopIds, ...text.tokenizer.eosIds]),
      stops: text.stopStrings([...config.stopStrings, ...options.stop]),
    };
  }

  /** The pieces of an answer, begun when the first is asked for and the answers before are done. */
  private async *pieces(progress: Progress, make: () => Promise<Ask>): AsyncGenerator<Piece, void, void> {
    const { runner } = this.model();
    const done = await this.turns.enter();
    let ask: Ask | null = null;
    try {
      if (this.model().runner !== runner) throw new ModelNotLoaded("the model was unloaded before its answer began");
      this.interrupted = false;
      this.message = "";
      ask = await make();
      for await (const piece of generate(runner, ask, progress, () => this.interrupted)) {
        this.message += piece.text;
        this.usage = progress.usage();
        yield piece;
      }
    } finally {
      ask?.constraint?.dispose();
      done();
    }
  }
}

type ChatAnswer<R extends ChatRequest> = R extends { stream: true }
  ? AsyncGenerator<ChatCompletionChunk, void, void>
  : R extends { stream: boolean }
    ? ChatCompletion | AsyncGenerator<ChatCompletionChunk, void, void>
    : ChatCompletion;
type TextAnswer<R extends CompletionRequest> = R extends { stream: true }
  ? AsyncGenerator<Completion, void, void>
  : R extends { stream: boolean }
    ? Completion | AsyncGenerator<Completion, void, void>
    : Completion;

async function* withUsage<T>(
  chunks: AsyncIterable<T>,
  request: ChatRequest | CompletionRequest,
  last: (usage: Usage) => T,
  progress: Progress,
): AsyncGenerator<T, void, void> {
  yield* chunks;
  if (request.stream_options?.include_usage === true) yield last(progress.usage());
}

/** What an engine does, wherever it runs. */
export type EngineInterface = Omit<Engine, "configure">;

/** A `model_id` of the list, or an address as it is. */
function addressOf(model: string, appConfig?: AppConfig): string {
  return appConfig?.model_list.find((record) => record.model_id === model)?.model ?? model;
}

/** What a model needs, and whether this browser has it: throws what a load would. */
export function modelNeeds(model: string, appConfig?: AppConfig): Promise<ModelNeeds> {
  return needsOf(addressOf(model, appConfig));
}

/** The models of which anything is kept. */
export async function listCachedModels(): Promise<CachedModel[]> {
  return (await openCache({})).list();
}

/** Whether a load of the model needs no network. */
export async function hasModelInCache(model: string, appConfig?: AppConfig): Promise<boolean> {
  const url = folderOf(addressOf(model, appConfig));
  const found = (await listCachedModels()).find((kept) => kept.url === url);
  return found?.complete ?? false;
}

/** Forget all files of a model. */
export async function deleteModelInCache(model: string, appConfig?: AppConfig): Promise<void> {
  await (await openCache({})).delete(folderOf(addressOf(model, appConfig)));
}

export type { EngineInterface as MLCEngineInterface };
export { Engine as MLCEngine, CreateEngine as CreateMLCEngine, deleteModelInCache as deleteModelAllInfoInCache };
