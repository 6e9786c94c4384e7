/**
 * From a model's address to a runner and its text side: choose, fetch, verify, upload.
 *
 * The program is chosen, and its needs compared with the adapter, before anything large is fetched.
 * One weight file is in memory at a time, the next on its way. Knows no requests.
 */

import { readBundle } from "./artifact.js";
import { ModelCache, tabLock } from "./cache.js";
import type { OnBytes } from "./cache.js";
import { readChatConfig } from "./chat_config.js";
import type { ChatConfig } from "./chat_config.js";
import { Device, findAdapter } from "./device.js";
import { ArtifactError, Interrupted, LimitTooSmall, RequestError } from "./errors.js";
import type { LoadText, Text } from "./interfaces.js";
import { matchParams } from "./params.js";
import { Program } from "./program.js";
import { Runner } from "./runner.js";
import { openStore } from "./store.js";
import { TEXT_FILES, bytesToFetch, chooseProgram, filesOf, memoryNeeded } from "./web_index.js";
import type { File, Offer, Program as Choice, WebIndex } from "./web_index.js";

/** How a load goes on: `progress` from 0 to 1, a sentence, and the bytes behind them. */
export interface InitProgressReport {
  readonly progress: number;
  readonly timeElapsed: number; // seconds
  readonly text: string;
  readonly bytes: number;
  readonly totalBytes: number;
  /** Of `bytes`, those that came over the network. */
  readonly fetchedBytes: number;
}

export type InitProgressCallback = (report: InitProgressReport) => void;

export interface LoadOptions {
  readonly initProgressCallback?: InitProgressCallback | undefined;
  /** false: nothing is kept for the next visit. */
  readonly cache?: boolean | undefined;
  /** Tokens of prompt and answer together; less than the model's own saves memory. */
  readonly contextWindowSize?: number | undefined;
  /** The text side; without one, the package's own. */
  readonly loadText?: LoadText | undefined;
}

export interface Loaded {
  readonly url: string;
  readonly index: WebIndex;
  readonly choice: Choice;
  readonly runner: Runner;
  readonly text: Text;
  readonly config: ChatConfig;
}

/** What a model needs and whether this browser has it, without fetching more than its index. */
export interface ModelNeeds {
  readonly url: string;
  readonly program: string;
  readonly bytes: number;
  readonly missingBytes: number;
  /** The server could not be reached: what is missing cannot be fetched now. */
  readonly offline: boolean;
  readonly memory: number;
  readonly contextWindowSize: number;
}

/** The address of a model's folder, ending in a slash. */
export function folderOf(model: string): string {
  const base = globalThis.location?.href;
  try {
    return new URL(model.endsWith("/") ? model : `${model}/`, base).href;
  } catch {
    throw new RequestError(`model ${JSON.stringify(model)} is no address of a model's folder`, "model");
  }
}

/** Throws what `load` would throw of this adapter and this store. */
export async function needsOf(model: string, options: LoadOptions = {}): Promise<ModelNeeds> {
  const url = folderOf(model);
  const cache = await openCache(options);
  const [{ offer }, { index, offline }] = await Promise.all([findAdapter(), cache.index(url, false)]);
  const choice = chooseProgram(index, offer);
  return {
    url,
    program: choice.target,
    bytes: bytesToFetch(index, choice),
    missingBytes: await cache.missing(filesOf(index, choice)),
    offline,
    memory: memoryNeeded(choice),
    contextWindowSize: index.model.context_window_size,
  };
}

export async function openCache(options: { readonly cache?: boolean | undefined }): Promise<ModelCache> {
  return new ModelCache(options.cache === false ? null : await openStore(), tabLock);
}

/** Load a model; any of the package's errors but RequestErrors of requests. */
export async function load(model: string, options: LoadOptions, signal: AbortSignal): Promise<Loaded> {
  const url = folderOf(model);
  const cache = await openCache(options);
  const [{ adapter, offer }, { index }] = await Promise.all([findAdapter(), cache.index(url, true, signal)]);
  if (index.model.pooling !== null) {
    throw new ArtifactError(`${url} is an embedding model, and the browser runs models that answer`);
  }
  const choice = chooseProgram(index, offer);
  await cache.missing(filesOf(index, choice));
  const files = new Files(url, index, choice, cache, options.initProgressCallback, signal);
  const config = readChatConfig(await files.read("mlc-chat-config.json"));
  const loadText = options.loadText ?? (await ownText());
  const text = await loadText(files, config);
  const first = await openProgram({ adapter, offer }, files, options, signal);
  const runner = new Runner(first, async () => openProgram(await findAdapter(), files.again(), options, signal));
  files.finished();
  return { url, index, choice, runner, text, config };
}

async function ownText(): Promise<LoadText> {
  return (await import("./text.js")).loadText; // loaded apart: a page may bring another
}

async function openProgram(
  { adapter, offer }: { adapter: GPUAdapter; offer: Offer },
  files: Files,
  options: LoadOptions,
  signal: AbortSignal,
): Promise<Program> {
  const { index, choice } = files;
  const bundle = readBundle(await files.need(choice.file), choice.file);
  const tensors = matchParams(bundle.manifest, index.weights.tensors);
  const device = await Device.open(adapter, offer, choice);
  try {
    const { program, compiled } = await Program.open(device, bundle, pages(bundle.manifest, options));
    const shards = [...new Set([...tensors.keys()].map((t) => t.file))];
    let coming = files.ahead(shards[0]);
    for (const [i, shard] of shards.entries()) {
      const data = await soonest(coming, compiled);
      coming = files.ahead(shards[i + 1]);
      await device.checked("the model's weights", async () => {
        for (const [tensor, param] of tensors) {
          if (tensor.file !== shard) continue;
          program.upload(data.subarray(tensor.offset, tensor.offset + tensor.size), tensor, param);
        }
      });
      if (signal.aborted) throw new Interrupted("the load was interrupted");
    }
    files.compiling();
    await compiled;
    await program.finish();
    return program;
  } catch (error) {
    device.close();
    throw error;
  }
}

/** What comes, unless the other fails before. */
function soonest<T>(coming: Promise<T>, other: Promise<unknown>): Promise<T> {
  return new Promise((resolve, reject) => {
    coming.then(resolve, reject);
    other.catch(reject);
  });
}

/** Pages for one sequence as long as the window that was asked for. */
function pages(manifest: Program["manifest"], { contextWindowSize }: LoadOptions): number {
  const { context_window_size: compiled } = manifest.model;
  const window = contextWindowSize ?? compiled;
  if (!Number.isSafeInteger(window) || window < 1 || (compiled > 0 && window > compiled)) {
    throw new LimitTooSmall(`context_window_size is ${window}, possible is 1 to ${compiled}, what the model was compiled for`);
  }
  return Math.ceil(window / manifest.kv_cache.page_size);
}

/** The files of one load: each verified, their bytes reported. */
class Files {
  private readonly began = performance.now();
  private readonly total: number;
  private readonly counted = new Set<string>(); // files; what is read again is not counted again
  private bytes = 0;
  private fetched = 0;

  constructor(
    private readonly url: string,
    readonly index: WebIndex,
    readonly choice: Choice,
    private readonly cache: ModelCache,
    private readonly tell: InitProgressCallback | undefined,
    private readonly signal: AbortSignal,
  ) {
    this.total = bytesToFetch(index, choice);
  }

  /** The same files, for a load that is not the first. */
  again(): Files {
    return new Files(this.url, this.index, this.choice, this.cache, undefined, this.signal);
  }

  /** For the text side: null where the model has no such file. */
  async read(name: string): Promise<Uint8Array | null> {
    const file = this.index.files.find((f) => f.name === name);
    if (file === undefined || !TEXT_FILES.has(name)) return null;
    return this.get(file);
  }

  async need(name: string): Promise<Uint8Array> {
    const file = this.index.files.find((f) => f.name === name);
    if (file === undefined) throw new ArtifactError(`the model's folder has no file ${name}; compile the model again`);
    return this.get(file);
  }

  /** A file that is waited for later: its failure is told then. */
  ahead(name: string | undefined): Promise<Uint8Array> {
    const coming = name === undefined ? Promise.resolve(new Uint8Array()) : this.need(name);
    coming.catch(() => undefined);
    return coming;
  }

  compiling(): void {
    this.report(0.99, "All is here, the kernels are being compiled");
  }

  finished(): void {
    this.report(1, "The model is ready");
  }

  private get(file: File): Promise<Uint8Array> {
    const again = this.counted.has(file.name);
    this.counted.add(file.name);
    const count: OnBytes = again ? () => undefined : (bytes, cached) => this.count(bytes, cached);
    return this.cache.file(this.url, file, count, this.signal);
  }

  private count(bytes: number, cached: boolean): void {
    this.bytes += bytes;
    this.fetched += cached ? 0 : bytes;
    const verb = cached ? "Loading from the cache" : "Fetching";
    const part = Math.min(0.99, this.bytes / this.total);
    this.report(part, `${verb}: ${megabytes(this.bytes)} of ${megabytes(this.total)} MB`);
  }

  private report(progress: number, text: string): void {
    const timeElapsed = (performance.now() - this.began) / 1000;
    this.tell?.({
      progress, timeElapsed, text, bytes: this.bytes, totalBytes: this.total, fetchedBytes: this.fetched,
    });
  }
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(1);
}
