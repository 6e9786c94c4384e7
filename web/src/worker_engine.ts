/**
 * An engine that runs in a worker, with the same face: the page stays free to draw.
 *
 *     const worker = new Worker("worker.js", { type: "module" });
 *     const engine = await CreateWebWorkerEngine(worker, "models/tern-webgpu/", { initProgressCallback });
 *
 * The worker's script makes a `WebWorkerEngineHandler`. Errors arrive as the classes they were.
 */

import type { AppConfig, ChatOptions, EngineConfig, EngineInterface } from "./engine.js";
import { fromRecord, SternaError } from "./errors.js";
import type { InitProgressCallback } from "./loader.js";
import type {
  ChatCompletion,
  ChatCompletionChunk,
  ChatRequest,
  Completion,
  CompletionRequest,
  Usage,
} from "./protocol.js";
import { speeds } from "./speeds.js";
import type { Answered, Asked, EngineState, Port } from "./worker_protocol.js";

type Unnumbered<T> = T extends unknown ? Omit<T, "id"> : never;

/** A request that waits: for its value, or for the pieces of its stream. */
interface Waiting {
  resolve(value: unknown): void;
  reject(error: Error): void;
  progress?: InitProgressCallback | undefined;
  stream?: Pieces;
}

export class WebWorkerEngine implements EngineInterface {
  readonly chat = {
    completions: { create: <R extends ChatRequest>(request: R) => this.chatCompletion(request) },
  };
  readonly completions = {
    create: <R extends CompletionRequest>(request: R) => this.completion(request),
  };
  readonly #waiting = new Map<number, Waiting>();
  #port: Port;
  #number = 0;
  #state: EngineState = { message: "", usage: null };
  readonly #listener = (event: MessageEvent): void => this.#heard(event.data as Answered);
  readonly #failed = (event: Event): void => {
    const reason = (event as ErrorEvent).message || "its script cannot be loaded";
    this.failAll(new SternaError(`the worker failed: ${reason}`));
  };

  constructor(
    worker: Worker | Port,
    private config: EngineConfig = {},
  ) {
    this.#port = worker;
    this.connect(worker);
  }

  async reload(model: string, chat: ChatOptions = {}): Promise<void> {
    const { appConfig, cache } = this.config;
    const config = { ...(appConfig && { appConfig }), ...(cache === undefined ? {} : { cache }) };
    await this.#ask({ kind: "reload", model, chat, config }, this.config.initProgressCallback);
  }

  async unload(): Promise<void> {
    await this.#ask({ kind: "unload" });
  }

  chatCompletion(request: ChatRequest & { stream: true }): Promise<AsyncGenerator<ChatCompletionChunk, void, void>>;
  chatCompletion(request: ChatRequest & { stream?: false | null }): Promise<ChatCompletion>;
  chatCompletion<R extends ChatRequest>(request: R): Promise<Answer<R, ChatCompletion, ChatCompletionChunk>>;
  async chatCompletion(request: ChatRequest): Promise<unknown> {
    await this.ready();
    return this.#ask({ kind: "chat", request });
  }

  completion(request: CompletionRequest & { stream: true }): Promise<AsyncGenerator<Completion, void, void>>;
  completion(request: CompletionRequest & { stream?: false | null }): Promise<Completion>;
  completion<R extends CompletionRequest>(request: R): Promise<Answer<R, Completion, Completion>>;
  async completion(request: CompletionRequest): Promise<unknown> {
    await this.ready();
    return this.#ask({ kind: "text", request });
  }

  interruptGenerate(): void {
    this.#send({ kind: "interrupt" });
  }

  async resetChat(keepStats = false): Promise<void> {
    await this.#ask({ kind: "reset", keepStats });
  }

  /** The text of the last answer that is complete. */
  async getMessage(): Promise<string> {
    return this.#state.message;
  }

  /** Counts and speeds of the last answer that is complete; null where there was none. */
  runtimeStats(): Usage | null {
    return this.#state.usage;
  }

  /** The same as a sentence. */
  async runtimeStatsText(): Promise<string> {
    return speeds(this.#state.usage);
  }

  setInitProgressCallback(callback?: InitProgressCallback): void {
    this.config = { ...this.config, initProgressCallback: callback };
  }

  getInitProgressCallback(): InitProgressCallback | undefined {
    return this.config.initProgressCallback;
  }

  setAppConfig(appConfig: AppConfig): void {
    this.config = { ...this.config, appConfig };
  }

  async getGPUVendor(): Promise<string> {
    return String(await this.#ask({ kind: "vendor" }));
  }

  async getMaxStorageBufferBindingSize(): Promise<number> {
    return Number(await this.#ask({ kind: "binding" }));
  }

  /** What a request has to wait for; its error is the request's. */
  protected ready(): Promise<void> {
    return Promise.resolve();
  }

  /** Talk to this port from now on. */
  protected connect(port: Port): void {
    this.#port.removeEventListener("message", this.#listener);
    this.#port = port;
    port.addEventListener("message", this.#listener);
    if (port instanceof EventTarget) port.addEventListener("error", this.#failed);
  }

  /** Nobody is there to answer what was asked. */
  protected failAll(error: Error): void {
    for (const waiting of this.#waiting.values()) {
      waiting.stream?.fail(error);
      waiting.reject(error);
    }
    this.#waiting.clear();
  }

  #ask(asked: Unnumbered<Exclude<Asked, { kind: "interrupt" }>>, progress?: InitProgressCallback): Promise<unknown> {
    const id = ++this.#number;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, progress });
      try {
        this.#send({ ...asked, id } as Asked);
      } catch (error) {
        this.#waiting.delete(id); // what cannot be cloned
        reject(error instanceof Error ? error : new SternaError(String(error)));
      }
    });
  }

  #send(asked: Asked): void {
    this.#port.postMessage(asked);
  }

  #heard(answered: Answered): void {
    const waiting = this.#waiting.get(answered.id);
    if (waiting === undefined) return;
    const { id } = answered;
    switch (answered.kind) {
      case "progress":
        waiting.progress?.(answered.report);
        return;
      case "opened":
        waiting.stream = new Pieces(
          () => this.#send({ kind: "pull", id, count: 1 }),
          () => this.#send({ kind: "close", id }),
        );
        waiting.resolve(waiting.stream.read());
        return;
      case "chunk":
        waiting.stream?.add(answered.value);
        return;
    }
    this.#waiting.delete(id);
    if (answered.kind === "error") {
      const error = fromRecord(answered.error);
      waiting.stream?.fail(error);
      waiting.reject(error);
      return;
    }
    this.#state = answered.state;
    if (answered.kind === "end") waiting.stream?.end();
    else waiting.resolve(answered.value);
  }
}

type Answer<R extends { stream?: boolean | null }, Whole, Piece> = R extends { stream: true }
  ? AsyncGenerator<Piece, void, void>
  : R extends { stream: boolean }
    ? Whole | AsyncGenerator<Piece, void, void>
    : Whole;

/** Pieces that have come and are not read yet; there are few, for the worker waits for room. */
class Pieces {
  readonly #queue: unknown[] = [];
  #wake: (() => void) | null = null;
  #over = false;
  #error: Error | null = null;

  constructor(
    private readonly pull: () => void,
    private readonly close: () => void,
  ) {}

  add(piece: unknown): void {
    this.#queue.push(piece);
    this.#woken();
  }

  end(): void {
    this.#over = true;
    this.#woken();
  }

  fail(error: Error): void {
    this.#error = error;
    this.end();
  }

  async *read(): AsyncGenerator<unknown, void, void> {
    try {
      for (;;) {
        while (this.#queue.length === 0 && !this.#over) {
          await new Promise<void>((resolve) => (this.#wake = resolve));
        }
        if (this.#queue.length === 0) break;
        this.pull();
        yield this.#queue.shift();
      }
      if (this.#error !== null) throw this.#error;
    } finally {
      if (!this.#over) this.close();
    }
  }

  #woken(): void {
    this.#wake?.();
    this.#wake = null;
  }
}

/** An engine in a worker, with a model. */
export async function CreateWebWorkerEngine(
  worker: Worker | Port,
  model: string,
  config: EngineConfig = {},
  chat: ChatOptions = {},
): Promise<WebWorkerEngine> {
  const engine = new WebWorkerEngine(worker, config);
  await engine.reload(model, chat);
  return engine;
}

export {
  WebWorkerEngine as WebWorkerMLCEngine,
  CreateWebWorkerEngine as CreateWebWorkerMLCEngine,
};
