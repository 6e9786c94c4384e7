/**
 * One engine in a service worker for all tabs of a site, as a tab sees it: the model is in memory once.
 *
 * The service worker's script makes a `ServiceWorkerEngineHandler` (`service_worker_handler.ts`); each
 * tab says `await CreateServiceWorkerEngine("models/tern-webgpu/")`. Browsers end a service worker
 * that nobody speaks to: tabs send a heartbeat. One that was ended all the same is noticed by its new
 * instance: what was under way fails as Interrupted, and the next request loads the model again.
 */

import type { ChatOptions, EngineConfig } from "./engine.js";
import { Interrupted, SternaError } from "./errors.js";
import { WebWorkerEngine } from "./worker_engine.js";

export const HEARTBEAT = 5_000; // ms; browsers end a service worker after about 30 s of silence

/** What a tab says to the service worker itself; a port of its own carries the rest. */
export interface Call {
  readonly sterna: "connect" | "heartbeat" | "leave";
  readonly tab: string;
}

/** The answer; `instance` is "" where the service worker does not know the tab. */
export interface Alive {
  readonly sterna: "alive";
  readonly instance: string;
}

/** An engine of the site's service worker, as a tab sees it. */
export class ServiceWorkerEngine extends WebWorkerEngine {
  readonly #tab = crypto.randomUUID();
  readonly #timer: ReturnType<typeof setInterval>;
  readonly #leave = (): void => this.#call("leave");
  #instance: string | null = null;
  #loaded: [string, ChatOptions] | null = null;
  #again: Promise<void> | null = Promise.resolve(); // null: ended by the browser, and not loaded anew

  constructor(
    private readonly worker: ServiceWorker,
    config: EngineConfig = {},
  ) {
    super(new MessageChannel().port1, config);
    this.#connect();
    navigator.serviceWorker.addEventListener("message", (event) => this.#alive(event.data as Alive));
    addEventListener("pagehide", this.#leave);
    this.#timer = setInterval(() => this.#call("heartbeat"), HEARTBEAT);
  }

  override async reload(model: string, chat: ChatOptions = {}): Promise<void> {
    this.#loaded = [model, chat];
    this.#again = Promise.resolve();
    await super.reload(model, chat);
  }

  override async unload(): Promise<void> {
    this.#loaded = null;
    await super.unload();
  }

  /** Leave the service worker: the model stays for other tabs. */
  close(): void {
    clearInterval(this.#timer);
    removeEventListener("pagehide", this.#leave);
    this.#leave();
  }

  /** A tab that nobody uses does not load a model each time that its service worker was ended. */
  protected override ready(): Promise<void> {
    this.#again ??= this.#loadAgain();
    return this.#again;
  }

  async #loadAgain(): Promise<void> {
    try {
      if (this.#loaded !== null) await super.reload(...this.#loaded);
    } catch (error) {
      this.#again = null;
      throw error;
    }
  }

  #connect(): void {
    const { port1, port2 } = new MessageChannel();
    this.connect(port1);
    port1.start();
    this.#call("connect", [port2]);
  }

  #call(sterna: Call["sterna"], transfer: Transferable[] = []): void {
    this.worker.postMessage({ sterna, tab: this.#tab }, transfer);
  }

  #alive(reply: Alive): void {
    if (reply?.sterna !== "alive" || reply.instance === this.#instance) return;
    const first = this.#instance === null;
    this.#instance = reply.instance === "" ? null : reply.instance;
    if (first) return;
    this.failAll(new Interrupted("the browser ended the service worker; ask again, which loads the model again"));
    this.#connect();
    this.#again = null;
  }
}

/** Wait for the page's service worker, which must be registered, and load a model in it. */
export async function CreateServiceWorkerEngine(
  model: string,
  config: EngineConfig = {},
  chat: ChatOptions = {},
): Promise<ServiceWorkerEngine> {
  if (!("serviceWorker" in navigator)) {
    throw new SternaError("this page has no service workers: it must be served over https or from localhost");
  }
  const { active } = await navigator.serviceWorker.ready;
  if (active === null) throw new SternaError("the site's service worker is not active");
  const engine = new ServiceWorkerEngine(active, config);
  await engine.reload(model, chat);
  return engine;
}

export {
  ServiceWorkerEngine as ServiceWorkerMLCEngine,
  CreateServiceWorkerEngine as CreateServiceWorkerMLCEngine,
};
