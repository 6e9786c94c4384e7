/**
 * The inside of a service worker: one engine for all tabs of a site, the model in memory once.
 *
 *     import { ServiceWorkerEngineHandler } from "./sterna/service_worker_handler.js";
 *     new ServiceWorkerEngineHandler();
 *
 * At the top of the worker's script, which must be a module: what a browser started again has to
 * listen before anything is said. A service worker may not import later, so the text side and the
 * library of grammars are imported here, and not when they are first needed.
 */

import { Engine } from "./engine.js";
import { RequestError } from "./errors.js";
import { Grammars } from "./grammar.js";
import { HEARTBEAT, type Alive, type Call } from "./service_worker.js";
import { textLoader } from "./text.js";
import { WebWorkerEngineHandler, type Running } from "./worker_handler.js";
import type { Asked } from "./worker_protocol.js";

const SILENCE = 90_000; // ms after which a tab counts as closed; hidden ones speak once a minute

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
  readonly #engine = new Engine({ loadText: textLoader(async () => Grammars) });
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
    } else if (call?.sterna === "leave") {
      this.#drop(call.tab);
      return;
    } else if (call?.sterna !== "heartbeat") return;
    const tab = this.#tabs.get(call.tab);
    if (tab !== undefined) tab.heard = Date.now();
    this.#dropSilent();
    const known = tab === undefined ? "" : this.#instance;
    event.source?.postMessage({ sterna: "alive", instance: known } satisfies Alive);
    event.waitUntil(new Promise((resolve) => setTimeout(resolve, HEARTBEAT)));
  }

  /** A tab that was closed says nothing: what it asked for ends, and its claim on the model too. */
  #dropSilent(): void {
    for (const [name, { heard }] of this.#tabs) {
      if (Date.now() - heard >= SILENCE) this.#drop(name);
    }
  }

  #drop(name: string): void {
    this.#tabs.get(name)?.handler.close();
    this.#tabs.delete(name);
    void this.#shared.leave(name);
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
        const tellAll = (report: unknown): void => {
          for (const listener of this.#progress) listener(report as never);
        };
        this.engine.configure({ ...config, initProgressCallback: tellAll });
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

export { ServiceWorkerEngineHandler as ServiceWorkerMLCEngineHandler };
