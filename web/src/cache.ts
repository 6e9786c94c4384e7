/**
 * Models' files, kept between visits: fetched once, resumed where a load ended, verified at each use.
 *
 * A file is kept in pieces named after its SHA-256, written in order, each whole or not at all, so
 * whatever a closed page leaves behind is the beginning of a file. Every file is hashed when it is
 * read, from the network or from the store: a damaged one is never used. Tabs take turns per file.
 */

import { download, fetchWhole, isBroken } from "./download.js";
import { ArtifactError, IntegrityError, QuotaExceeded } from "./errors.js";
import type { Store } from "./store.js";
import { INDEX, readIndex } from "./web_index.js";
import type { File, WebIndex } from "./web_index.js";

export const PIECE = 8 << 20; // bytes that are fetched anew at most after a break
const PATIENCE = 5000; // ms for the index, where an older one is kept
const MODEL = "model.";

/** What tells of bytes as they come; `cached`: from the store. */
export type OnBytes = (bytes: number, cached: boolean) => void;

export interface CachedModel {
  readonly url: string;
  readonly bytes: number;
  /** Whether a load needs no network. */
  readonly complete: boolean;
}

/** A model's index; `offline`: the server gave none, and it is the one that is kept. */
export interface FoundIndex {
  readonly index: WebIndex;
  readonly offline: boolean;
}

/** `loaded`: a load has begun. Files are kept for such models only, not for those one asked about. */
interface Kept {
  readonly url: string;
  readonly index: string;
  readonly loaded: boolean;
}

/** Runs a task while no other tab runs one of the same name. */
export type Lock = <T>(name: string, task: () => Promise<T>, signal?: AbortSignal) => Promise<T>;

/** navigator.locks; where there are none (no secure context), tabs do not know of each other. */
export const tabLock: Lock = async (name, task, signal) => {
  const locks = globalThis.navigator?.locks;
  if (locks === undefined) return task();
  return (await locks.request(`sterna:${name}`, signal ? { signal } : {}, task)) as Awaited<ReturnType<typeof task>>;
};

/** `store` null: nothing is kept. */
export class ModelCache {
  constructor(
    private readonly store: Store | null,
    private readonly lock: Lock = tabLock,
  ) {}

  /**
   * The model's index: from the network, or the one that is kept where the network fails. `load`:
   * its files are to be kept from now on.
   */
  async index(url: string, load: boolean, signal?: AbortSignal): Promise<FoundIndex> {
    const kept = await this.kept(url);
    const patience = kept === null ? [] : [AbortSignal.timeout(PATIENCE)];
    const both = AbortSignal.any([...patience, ...(signal ? [signal] : [])]);
    let data: Uint8Array;
    try {
      data = await fetchWhole(url + INDEX, both);
    } catch (error) {
      const may = isBroken(error) || (both.aborted && signal?.aborted !== true);
      if (kept === null || !may) throw error;
      await this.keep({ ...kept, loaded: kept.loaded || load }, kept);
      return { index: readIndex(new TextEncoder().encode(kept.index)), offline: true };
    }
    const index = readIndex(data);
    const text = new TextDecoder().decode(data);
    await this.keep({ url, index: text, loaded: load || kept?.loaded === true }, kept);
    return { index, offline: false };
  }

  /** A file of the model at `url`; IntegrityError where it is not the one that the index names. */
  async file(url: string, file: File, onBytes: OnBytes, signal?: AbortSignal): Promise<Uint8Array> {
    const address = url + encodeURIComponent(file.name);
    const task = async (): Promise<Uint8Array> => {
      for (let again = false; ; again = true) {
        const { data, kept } = await this.fill(address, file, again ? () => undefined : onBytes, signal);
        if ((await sha256(data)) === file.sha256) return data;
        await this.forget(file);
        if (kept === 0 || again) {
          throw new IntegrityError(
            `${address} is not the file that ${INDEX} lists: its SHA-256 differs; copy the model's folder to the server again`,
          );
        }
      }
    };
    return this.store === null ? task() : this.lock(file.sha256, task, signal);
  }

  /** Bytes of these files that are still to be fetched. QuotaExceeded where they have no room. */
  async missing(files: readonly File[]): Promise<number> {
    const names = new Set(await this.store?.names());
    let bytes = 0;
    for (const file of files) {
      pieceSizes(file).forEach((size, i) => (bytes += names.has(pieceName(file, i)) ? 0 : size));
    }
    if (this.store === null) return bytes;
    const { quota, usage } = (await globalThis.navigator?.storage?.estimate?.()) ?? {};
    if (quota !== undefined && bytes > quota - (usage ?? 0)) {
      throw new QuotaExceeded(
        `the model's files need ${bytes} bytes more, and the browser lets this site store ` +
          `${Math.max(0, quota - (usage ?? 0))}; delete other models, free disk space, or load with cache: false`,
      );
    }
    return bytes;
  }

  /** The models of which a load has kept anything. */
  async list(): Promise<CachedModel[]> {
    const names = new Set(await this.store?.names());
    const models = (await this.loaded()).map(({ url, index }) => {
      const { files } = readIndex(new TextEncoder().encode(index));
      let [bytes, used, complete] = [0, 0, 0];
      for (const file of files) {
        const has = pieceSizes(file).filter((_, i) => names.has(pieceName(file, i)));
        bytes += has.reduce((a, b) => a + b, 0);
        if (has.length === 0) continue; // files of programs that this device does not run
        used++;
        complete += has.length === pieceSizes(file).length ? 1 : 0;
      }
      const shards = files.filter((f) => /\.bin$/.test(f.name));
      const whole = shards.every((f) => pieceSizes(f).every((_, i) => names.has(pieceName(f, i))));
      return { url, bytes, complete: used === complete && whole };
    });
    return models.filter(({ bytes }) => bytes > 0);
  }

  /** Forget a model, and all files that no other model shares. */
  async delete(url: string): Promise<void> {
    await this.store?.delete(await recordName(url));
    await this.prune();
  }

  private async keep(record: Kept, before: Kept | null): Promise<void> {
    if (record.index === before?.index && record.loaded === before.loaded) return;
    await this.store?.put(await recordName(record.url), new TextEncoder().encode(JSON.stringify(record)));
    if (before !== null && record.index !== before.index) await this.prune();
  }

  private async fill(
    address: string,
    file: File,
    onBytes: OnBytes,
    signal?: AbortSignal,
  ): Promise<{ data: Uint8Array; kept: number }> {
    const data = room(file);
    let at = 0;
    for (const [i, size] of pieceSizes(file).entries()) {
      const piece = (await this.store?.get(pieceName(file, i))) ?? null;
      if (piece === null || piece.length !== size) break;
      data.set(piece, at);
      at += size;
      onBytes(size, true);
    }
    const kept = at;
    let stored = at;
    for await (const piece of download(address, at, file.size, signal)) {
      data.set(piece, at);
      at += piece.length;
      onBytes(piece.length, false);
      while (at - stored >= PIECE || (at === file.size && stored < at)) {
        const end = Math.min(stored + PIECE, at);
        await this.store?.put(pieceName(file, stored / PIECE), data.subarray(stored, end));
        stored = end;
      }
    }
    return { data, kept };
  }

  /** Delete pieces that no loaded model's index names. A tab that reads one meanwhile fetches it again. */
  private async prune(): Promise<void> {
    await this.lock("prune", async () => {
      const indexes = (await this.loaded()).map((r) => readIndex(new TextEncoder().encode(r.index)));
      const wanted = new Set(indexes.flatMap((index) => index.files.map((f) => f.sha256)));
      for (const name of (await this.store?.names()) ?? []) {
        if (name.startsWith(MODEL) || wanted.has(name.split(".")[0] ?? "")) continue;
        await this.store?.delete(name);
      }
    });
  }

  private async forget(file: File): Promise<void> {
    for (const i of pieceSizes(file).keys()) await this.store?.delete(pieceName(file, i));
  }

  private async kept(url: string): Promise<Kept | null> {
    return this.record(await recordName(url));
  }

  private async loaded(): Promise<Kept[]> {
    const names = ((await this.store?.names()) ?? []).filter((name) => name.startsWith(MODEL));
    const found = await Promise.all(names.map((name) => this.record(name)));
    return found.filter((record) => record !== null).filter(({ loaded }) => loaded);
  }

  /** A record whose index this version reads; others are as good as none. */
  private async record(name: string): Promise<Kept | null> {
    const data = (await this.store?.get(name)) ?? null;
    if (data === null) return null;
    try {
      const found = JSON.parse(new TextDecoder().decode(data)) as Partial<Kept>;
      if (typeof found.url !== "string" || typeof found.index !== "string") return null;
      readIndex(new TextEncoder().encode(found.index));
      return { url: found.url, index: found.index, loaded: found.loaded === true };
    } catch (error) {
      if (error instanceof SyntaxError || error instanceof ArtifactError) return null;
      throw error;
    }
  }
}

/** Hex digits of the hash. */
export async function sha256(data: Uint8Array): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", data as Uint8Array<ArrayBuffer>);
  return Array.from(new Uint8Array(digest), (b) => b.toString(16).padStart(2, "0")).join("");
}

function room(file: File): Uint8Array {
  try {
    return new Uint8Array(file.size);
  } catch {
    throw new ArtifactError(`${file.name} has ${file.size} bytes, more than the browser holds at once; use a smaller model`);
  }
}

function pieceSizes(file: File): number[] {
  const count = Math.ceil(file.size / PIECE);
  return Array.from({ length: count }, (_, i) => Math.min(PIECE, file.size - i * PIECE));
}

function pieceName(file: File, i: number): string {
  return `${file.sha256}.${i}`;
}

async function recordName(url: string): Promise<string> {
  return MODEL + (await sha256(new TextEncoder().encode(url)));
}
