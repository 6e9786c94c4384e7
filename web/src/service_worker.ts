/**
 * One engine in a service worker for all tabs of a site: the model is in memory once.
 *
 * In the service worker's script, which must be a module:
 *
 *     import { ServiceWorkerEngineHandler } from "./sterna/service_worker.js";
 *     new ServiceWorkerEngineHandler();
 *
 * and in each tab `await CreateServiceWorkerEngine("models/tern-webgpu/")`. Browsers end a service
 * worker that nobody speaks to: tabs send a heartbeat. One that was ended all the same is noticed by
 * its new instance: what was under way fails as Interrupted, and the model is loaded again.
 */

import { Engine, type ChatOptions, type EngineConfig } from "./engine.js";
import { Interrupted, RequestError, SternaError } from "./errors.js";
import { WebWorkerEngine } from "./worker_engine.js";
import { WebWorkerEngineHandler, type Running } from "./worker_handler.js";
import type { Asked } from "./worker_protocol.js";

const HEARTBEAT = 5_000; // ms; browsers end a service worker after about 30 s of silence
const SILENCE = 20_000; // ms after which a tab counts as closed

type Call = { sterna: "connect"; tab: string } | { sterna: "heartbeat"; tab: string };
interface Reply {
  sterna: "alive";
  instance: string;
}

/** What service workers' scope has of what is used here. */
interface Scope {
  addEventListener(kind: "message", listener: (event: TabMessage) => void): void;
  addEventListener(kind: "install" | "activate", listener: (event: Lasting) => void): void;
  skipWaiting(): Promise<void>;
  clients: { claim(): Promise<void> };
}
interface Lasting extends Event {
  waitUntil(task: Promise<unknown>): void;
}
interface TabMessage extends MessageEvent, Lasting {
  readonly source: MessagePort | null;
}

/** The inside of the service worker: an engine, and a handler for each tab. */
export class ServiceWorkerEngineHandler {
  readonly #engine = new Engine();
  readonly #instance = crypto.randomUUID();
  readonly #tabs = new Map<string, { handler: TabHandler; heard: number }>();
  readonly #shared = new SharedModel(this.#engine);

  constructor(scope: Scope = globalThis as unknown as Scope) {
    scope.addEventListener("install", (event) => event.waitUntil(scope.skipWaiting()));
    scope.addEventListener("activate", (event) => event.waitUntil(scope.clients.claim()));
    scope.addEventListener("message", (event) => this.#heard(event));
  }

  #heard(event: TabMessage): void {
    const call = event.data as Call;
    const port = event.ports[0];
    if (call?.sterna === "connect" && port !== undefined) {
      this.#tabs.get(call.tab)?.handler.close();
      const handler = new TabHandler(call.tab, port, this.#engine, this.#shared);
      this.#tabs.set(call.tab, { handler, heard: Date.now() });
      port.start();
    } else if (call?.sterna !== "heartbeat") return;
    const tab = this.#tabs.get(call.tab);
    if (tab !== undefined) tab.heard = Date.now();
    this.#dropSilent();
    const known = tab === undefined ? "" : this.#instance;
    event.source?.postMessage({ sterna: "alive", instance: known } satisfies Reply);
    event.waitUntil(new Promise((resolve) => setTimeout(resolve, HEARTBEAT)));
  }

  /** A tab that was closed says nothing: what it asked for ends, and its claim on the model too. */
  #dropSilent(): void {
    for (const [name, { handler, heard }] of this.#tabs) {
      if (Date.now() - heard < SILENCE) continue;
      handler.close();
      this.#tabs.delete(name);
      void this.#shared.leave(name);
    }
  }
}

/** The model that tabs share: loaded once, unloaded when the last one leaves it. */
class SharedModel {
  readonly #users = new Set<string>();
  #model: string | null = null;
  #loading: Promise<void> | null = null;
  readonly #progress = new Set<(report: never) => void>();

  constructor(private readonly engine: Engine) {}

  async enter(tab: string, asked: Asked & { kind: "reload" }, progress: (report: never) => void): Promise<void> {
    const { model, chat, config } = asked;
    const wanted = JSON.stringify([model, chat]);
    const others = [...this.#users].filter((user) => user !== tab);
    if (this.#model !== wanted && others.length > 0) {
      throw new RequestError("other tabs use another model in this service worker; close them first", "model");
    }
    this.#users.add(tab);
    this.#progress.add(progress);
    try {
      if (this.#model !== wanted || this.#loading === null) {
        this.#model = wanted;
        if (config.appConfig !== undefined) this.engine.setAppConfig(config.appConfig);
        this.engine.setInitProgressCallback((report) => {
          for (const listener of this.#progress) listener(report as never);
        });
        this.#loading = this.engine.reload(model, chat);
      }
      await this.#loading;
    } catch (error) {
      this.#loading = null;
      this.#users.delete(tab);
      throw error;
    } finally {
      this.#progress.delete(progress);
    }
  }

  async leave(tab: string): Promise<void> {
    this.#users.delete(tab);
    if (this.#users.size > 0) return;
    this.#model = this.#loading = null;
    await this.engine.unload();
  }
}

/** One tab's handler: it may interrupt its own answers only, and leaves the model to the others. */
class TabHandler extends WebWorkerEngineHandler {
  constructor(
    private readonly tab: string,
    port: MessagePort,
    engine: Engine,
    private readonly shared: SharedModel,
  ) {
    super(port, engine);
  }

  protected override reload(asked: Asked & { kind: "reload" }): Promise<void> {
    return this.shared.enter(this.tab, asked, (report) => this.say({ kind: "progress", id: asked.id, report }));
  }

  protected override unload(): Promise<void> {
    return this.shared.leave(this.tab);
  }

  protected override hasTurn(running: Running): boolean {
    return running.begun;
  }
}

/** An engine of the site's service worker, as a tab sees it. */
export class ServiceWorkerEngine extends WebWorkerEngine {
  readonly #tab = crypto.randomUUID();
  readonly #timer: ReturnType<typeof setInterval>;
  #instance: string | null = null;
  #loaded: [string, ChatOptions] | null = null;

  constructor(
    private readonly worker: ServiceWorker,
    config: EngineConfig = {},
  ) {
    super(new MessageChannel().port1, config);
    this.#connect();
    navigator.serviceWorker.addEventListener("message", (event) => this.#alive(event.data as Reply));
    this.#timer = setInterval(() => this.#call("heartbeat"), HEARTBEAT);
  }

  override async reload(model: string, chat: ChatOptions = {}): Promise<void> {
    this.#loaded = [model, chat];
    await super.reload(model, chat);
  }

  override async unload(): Promise<void> {
    this.#loaded = null;
    await super.unload();
  }

  /** Say no more to the service worker. */
  close(): void {
    clearInterval(this.#timer);
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

  #alive(reply: Reply): void {
    if (reply?.sterna !== "alive" || reply.instance === this.#instance) return;
    const first = this.#instance === null;
    this.#instance = reply.instance === "" ? null : reply.instance;
    if (first) return;
    this.failAll(new Interrupted("the browser ended the service worker; the model is loaded again, ask again"));
    this.#connect();
    if (this.#loaded !== null) void super.reload(...this.#loaded).catch(() => undefined); // told by the next request
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
