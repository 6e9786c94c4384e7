/**
 * The inside of a worker: an engine that answers a page's messages.
 *
 *     import { WebWorkerEngineHandler } from "./sterna/worker_handler.js";
 *     new WebWorkerEngineHandler();
 *
 * Several ports may share one engine (`service_worker.ts`); answers wait for each other in it.
 */

import { Engine } from "./engine.js";
import { RequestError, toRecord } from "./errors.js";
import type { InitProgressReport } from "./loader.js";
import { AHEAD, type Answered, type Asked, type EngineState, type Port } from "./worker_protocol.js";

type Chunks = AsyncGenerator<unknown, void, void>;

/** A stream under way: how many pieces the reader has room for, and who waits for room. */
export interface Running {
  begun: boolean; // its turn has come: a piece was made
  room: number;
  wake: (() => void) | null;
  closed: boolean;
}

/** Answers one port's messages with an engine. */
export class WebWorkerEngineHandler {
  readonly #running = new Map<number, Running>();
  readonly #listener = (event: MessageEvent): void => void this.#heard(event.data as Asked);

  constructor(
    protected readonly port: Port = globalThis as unknown as Port,
    protected readonly engine: Engine = new Engine(),
  ) {
    port.addEventListener("message", this.#listener);
  }

  /** For scripts that hand messages on, as WebLLM's do: the handler has heard them already. */
  onmessage(_event: MessageEvent): void {}

  /** Stop answering; streams that are under way end. */
  close(): void {
    this.port.removeEventListener("message", this.#listener);
    for (const id of [...this.#running.keys()]) this.#close(id);
  }

  protected async reload(asked: Asked & { kind: "reload" }): Promise<void> {
    const initProgressCallback = (report: InitProgressReport): void =>
      this.say({ kind: "progress", id: asked.id, report });
    this.engine.configure({ ...asked.config, initProgressCallback });
    await this.engine.reload(asked.model, asked.chat);
  }

  protected unload(): Promise<void> {
    return this.engine.unload();
  }

  protected interrupt(): void {
    if ([...this.#running.values()].some((one) => this.hasTurn(one))) this.engine.interruptGenerate();
  }

  /** Whether the engine may be at work on this stream, and on no other port's. */
  protected hasTurn(_running: Running): boolean {
    return true;
  }

  protected say(message: Answered): void {
    this.port.postMessage(message);
  }

  async #heard(asked: Asked): Promise<void> {
    if (asked.kind === "interrupt") return this.interrupt();
    if (asked.kind === "pull") return this.#give(asked.id, asked.count);
    if (asked.kind === "close") return this.#close(asked.id);
    try {
      await this.#answer(asked);
    } catch (error) {
      this.#running.delete(asked.id);
      this.say({ kind: "error", id: asked.id, error: toRecord(error) });
    }
  }

  async #answer(asked: Exclude<Asked, { kind: "interrupt" | "pull" | "close" }>): Promise<void> {
    switch (asked.kind) {
      case "reload":
        return this.#done(asked.id, await this.reload(asked));
      case "unload":
        return this.#done(asked.id, await this.unload());
      case "reset":
        return this.#done(asked.id, await this.engine.resetChat(asked.keepStats));
      case "vendor":
        return this.#done(asked.id, await this.engine.getGPUVendor());
      case "binding":
        return this.#done(asked.id, await this.engine.getMaxStorageBufferBindingSize());
      case "chat":
        return this.#run(asked.id, await this.engine.chatCompletion(asked.request));
      case "text":
        return this.#run(asked.id, await this.engine.completion(asked.request));
      default:
        throw new RequestError(`a message of the kind ${JSON.stringify((asked as Asked).kind)} is unknown`);
    }
  }

  async #done(id: number, value: unknown): Promise<void> {
    this.say({ kind: "value", id, value, state: await this.#state() });
  }

  async #state(): Promise<EngineState> {
    return { message: await this.engine.getMessage(), usage: this.engine.runtimeStats() };
  }

  async #run(id: number, answer: unknown): Promise<void> {
    if (!isStream(answer)) return this.#done(id, answer);
    const running: Running = { begun: false, room: AHEAD, wake: null, closed: false };
    this.#running.set(id, running);
    this.say({ kind: "opened", id });
    for await (const value of answer) {
      running.begun = true;
      this.say({ kind: "chunk", id, value });
      running.room--;
      if (running.room <= 0 && !running.closed) {
        await new Promise<void>((resolve) => (running.wake = resolve));
      }
      if (running.closed) break;
    }
    this.#running.delete(id);
    this.say({ kind: "end", id, state: await this.#state() });
  }

  #give(id: number, count: number): void {
    const running = this.#running.get(id);
    if (running === undefined) return;
    running.room += count;
    running.wake?.();
    running.wake = null;
  }

  /** The reader left: what is being made ends before its next token. */
  #close(id: number): void {
    const running = this.#running.get(id);
    if (running === undefined) return;
    running.closed = true;
    if (this.hasTurn(running)) this.engine.interruptGenerate();
    this.#give(id, 1);
  }
}

function isStream(answer: unknown): answer is Chunks {
  return typeof answer === "object" && answer !== null && Symbol.asyncIterator in answer;
}

export { WebWorkerEngineHandler as WebWorkerMLCEngineHandler };
