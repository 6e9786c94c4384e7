/**
 * A file's bytes from the network, from any place on; connections that break are taken up again.
 *
 * Knows no hashes and keeps nothing. `Offline` and `FetchFailed` say why there is no more.
 */

import { FetchFailed, IntegrityError, Interrupted, Offline } from "./errors.js";

const TRIES = 4; // connections in a row that bring nothing
const FIRST_PAUSE = 250; // ms, doubled with each

/** Bytes `start` to `size` of a file, in pieces as they come. */
export async function* download(
  url: string,
  start: number,
  size: number,
  signal?: AbortSignal,
): AsyncGenerator<Uint8Array, void, void> {
  let at = start;
  for (let failed = 0; at < size; failed++) {
    try {
      for await (const piece of connection(url, at, signal)) {
        at += piece.length;
        failed = 0;
        if (at > size) throw new IntegrityError(`${url} is longer than the ${size} bytes that its index names`);
        yield piece;
      }
      if (at < size && failed >= TRIES) throw new IntegrityError(`${url} is shorter than the ${size} bytes that its index names`);
    } catch (error) {
      if (!(error instanceof TypeError || isBroken(error)) || failed >= TRIES) throw failure(url, error, signal);
    }
    if (at < size) await pause(FIRST_PAUSE * 2 ** failed, signal);
  }
}

/** A small file as a whole; null where the server cannot be reached or fails. */
export async function fetchWhole(url: string, signal?: AbortSignal): Promise<Uint8Array> {
  try {
    const response = await fetch(url, { cache: "no-cache", ...(signal && { signal }) });
    if (!response.ok) throw refused(url, response);
    return new Uint8Array(await response.arrayBuffer());
  } catch (error) {
    throw failure(url, error, signal);
  }
}

async function* connection(url: string, start: number, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
  const headers: HeadersInit = start > 0 ? { Range: `bytes=${start}-` } : {};
  const response = await fetch(url, { headers, cache: "no-store", ...(signal && { signal }) });
  if (!response.ok || response.body === null) throw refused(url, response);
  let skip = response.status === 206 ? 0 : start; // a server without ranges sends it all
  for await (const piece of pieces(response.body)) {
    const rest = piece.subarray(skip);
    skip -= piece.length - rest.length;
    if (rest.length > 0) yield rest;
  }
}

/** Safari's streams cannot be iterated. */
async function* pieces(body: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  const reader = body.getReader();
  try {
    for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

class ServerFailed extends FetchFailed {}

function refused(url: string, response: Response): FetchFailed {
  const message = `${url} was asked for, and the server answered ${response.status} ${response.statusText}`.trimEnd();
  const kind = response.status >= 500 || response.status === 429 ? ServerFailed : FetchFailed;
  return new kind(`${message}; check the address, or try again later`);
}

/** Whether another try may help: the connection or the server failed, and not the request. */
export function isBroken(error: unknown): boolean {
  return error instanceof ServerFailed || error instanceof Offline;
}

function failure(url: string, error: unknown, signal?: AbortSignal): Error {
  if (signal?.aborted === true) return new Interrupted("the load was interrupted");
  if (!(error instanceof TypeError)) return error as Error; // fetch says TypeError of networks
  if (globalThis.navigator?.onLine === false) {
    return new Offline(`${url} cannot be fetched: there is no network; what has come is kept, load again once there is`);
  }
  return new Offline(`${url} cannot be fetched: the server cannot be reached (${error.message}); what has come is kept, load again later`);
}

function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => reject(new Interrupted("the load was interrupted"));
    if (signal?.aborted === true) return stop();
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), stop()), { once: true });
  });
}
