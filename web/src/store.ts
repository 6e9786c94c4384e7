/**
 * Where bytes are kept between visits: a name to bytes, each written whole or not at all.
 *
 * Two back ends: the origin's private file system, which Chromium reads and writes faster
 * (docs/web.md has figures), and the Cache API where that cannot be written.
 * Neither knows models.
 */

import { QuotaExceeded, StorageError } from "./errors.js";

export interface Store {
  readonly kind: "opfs" | "cache" | "memory";
  get(name: string): Promise<Uint8Array | null>;
  /** Written whole or not at all, also when the page closes meanwhile. QuotaExceeded where full. */
  put(name: string, data: Uint8Array): Promise<void>;
  names(): Promise<string[]>;
  delete(name: string): Promise<void>;
}

const FOLDER = "sterna";

/** The best back end of this browser; StorageError where it keeps nothing, as in some private modes. */
export async function openStore(): Promise<Store> {
  try {
    const writable = typeof FileSystemFileHandle !== "undefined" && "createWritable" in FileSystemFileHandle.prototype;
    if (writable) {
      const root = await navigator.storage.getDirectory();
      return new FileStore(await root.getDirectoryHandle(FOLDER, { create: true }));
    }
    return new CacheStore(await caches.open(FOLDER));
  } catch (error) {
    throw new StorageError(
      `the browser lets this page store nothing (${(error as Error).message}); leave private mode, ` +
        "or load with cache: false",
    );
  }
}

class FileStore implements Store {
  readonly kind = "opfs";

  constructor(private readonly folder: FileSystemDirectoryHandle) {}

  async get(name: string): Promise<Uint8Array | null> {
    try {
      const file = await (await this.folder.getFileHandle(name)).getFile();
      return new Uint8Array(await file.arrayBuffer());
    } catch (error) {
      return absent(error);
    }
  }

  async put(name: string, data: Uint8Array): Promise<void> {
    await storing(data.length, async () => {
      const handle = await this.folder.getFileHandle(name, { create: true });
      const file = await handle.createWritable(); // a copy, which takes the file's place when closed
      try {
        await file.write(data as Uint8Array<ArrayBuffer>);
        await file.close();
      } catch (error) {
        await file.abort().catch(() => undefined);
        await this.delete(name);
        throw error;
      }
    });
  }

  /** Without files that are empty: those are being written, or a page was closed meanwhile. */
  async names(): Promise<string[]> {
    const found: string[] = [];
    for await (const handle of this.folder.values()) {
      if (handle.kind === "file" && (await sizeOf(handle)) > 0) found.push(handle.name);
    }
    return found;
  }

  async delete(name: string): Promise<void> {
    await this.folder.removeEntry(name).catch(absent);
  }
}

class CacheStore implements Store {
  readonly kind = "cache";

  constructor(private readonly cache: Cache) {}

  async get(name: string): Promise<Uint8Array | null> {
    const found = await this.cache.match(address(name));
    return found === undefined ? null : new Uint8Array(await found.arrayBuffer());
  }

  async put(name: string, data: Uint8Array): Promise<void> {
    await storing(data.length, () =>
      this.cache.put(address(name), new Response(data as Uint8Array<ArrayBuffer>)),
    );
  }

  async names(): Promise<string[]> {
    const keys = await this.cache.keys();
    return keys.map((key) => new URL(key.url).pathname.slice(1));
  }

  async delete(name: string): Promise<void> {
    await this.cache.delete(address(name));
  }
}

/** 0 also where the file is gone by now. */
async function sizeOf(handle: FileSystemFileHandle): Promise<number> {
  const file = await handle.getFile().catch(absent);
  return file?.size ?? 0;
}

/** Nothing is ever fetched from there: the Cache API names things by addresses. */
function address(name: string): string {
  return `https://sterna.invalid/${name}`;
}

function absent(error: unknown): null {
  if (error instanceof DOMException && error.name === "NotFoundError") return null;
  throw error;
}

async function storing(size: number, write: () => Promise<void>): Promise<void> {
  try {
    await write();
  } catch (error) {
    if (error instanceof DOMException && error.name === "QuotaExceededError") {
      throw new QuotaExceeded(
        `the browser has no room for ${size} bytes more of the model's files; delete other models, ` +
          "free disk space, or load with cache: false",
      );
    }
    throw error;
  }
}
