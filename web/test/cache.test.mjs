/** The cache over a store in memory and a server that fails in every way. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { beforeEach, test } from "node:test";

import { ModelCache, PIECE } from "../dist/cache.js";
import * as errors from "../dist/errors.js";
import { FakeServer, MemoryStore } from "./memory_store.mjs";

const URL = "https://models.example/tern/";
const INDEX = `${URL}sterna-web.json`;
const ignored = () => undefined;
const sha256 = (data) => createHash("sha256").update(data).digest("hex");
const encode = (value) => new TextEncoder().encode(JSON.stringify(value));

let server, store, cache, weights, weightsFile;

/** An index of one program and one shard. */
function indexOf(files, change = {}) {
  const model = {
    model_type: "llama", quantization: "q4f32_1", fingerprint: "f", vocab_size: 8,
    context_window_size: 64, prefill_chunk_size: 16, max_batch_size: 1,
  };
  const [program, shard] = files;
  const tensor = { name: "w", dtype: "u8", shape: [shard.size], file: shard.name, offset: 0, size: shard.size };
  return {
    format: 1, sterna: "0", model, files, weights: { tensors: [tensor] },
    programs: [{
      file: program.name, target: "webgpu", features: [], barriers: true,
      limits: { maxBufferSize: 1 }, memory: { weights: 1, kv_cache: 1, arena: 1, io: 1 },
    }],
    ...change,
  };
}

function publish(url, seed) {
  const data = new Uint8Array(2 * PIECE + 12345).map((_, i) => (i * seed) >> 3);
  const files = [["webgpu.sterna", encode(seed)], ["params_shard_0.bin", data]].map(([name, bytes]) => {
    server.files.set(url + name, bytes);
    return { name, size: bytes.length, sha256: sha256(bytes) };
  });
  server.files.set(`${url}sterna-web.json`, encode(indexOf(files)));
  return { data, files };
}

beforeEach(() => {
  server = new FakeServer();
  store = new MemoryStore();
  cache = new ModelCache(store, (_, task) => task());
  globalThis.fetch = server.fetch;
  const { data, files } = publish(URL, 7);
  [weights, weightsFile] = [data, files[1]];
});

test("a file is fetched once, and then comes from the store", async () => {
  const bytes = { true: 0, false: 0 };
  const count = (n, cached) => (bytes[cached] += n);
  assert.deepEqual(await cache.file(URL, weightsFile, count), weights);
  assert.deepEqual(await cache.file(URL, weightsFile, count), weights);
  assert.deepEqual(bytes, { true: weights.length, false: weights.length });
  assert.equal(server.asked.length, 1);
});

test("a load after a page was closed goes on where the last whole piece ends", async () => {
  server.cutAfter.set(URL + weightsFile.name, PIECE + 1000);
  server.down = false;
  const closing = new AbortController();
  const counted = (n) => { if ((seen += n) > PIECE) closing.abort(); };
  let seen = 0;
  await assert.rejects(cache.file(URL, weightsFile, counted, closing.signal), errors.Interrupted);
  server.asked.length = 0;
  assert.deepEqual(await cache.file(URL, weightsFile, ignored), weights);
  assert.deepEqual(server.asked, [[URL + weightsFile.name, PIECE]]);
});

for (const ranges of [true, false]) {
  test(`a connection that breaks is taken up again (ranges: ${ranges})`, async () => {
    server.ranges = ranges;
    server.cutAfter.set(URL + weightsFile.name, PIECE + 1000);
    assert.deepEqual(await cache.file(URL, weightsFile, ignored), weights);
    assert.deepEqual(server.asked.map(([, start]) => start), [0, PIECE + 1000]);
  });
}

test("a flipped bit on the server is refused, and nothing of it is kept", async () => {
  const bad = weights.slice();
  bad[PIECE + 5] ^= 1;
  server.files.set(URL + weightsFile.name, bad);
  await assert.rejects(cache.file(URL, weightsFile, ignored), errors.IntegrityError);
  assert.deepEqual(await store.names(), []);
});

test("a flipped bit in the store is fetched anew", async () => {
  await cache.file(URL, weightsFile, ignored);
  store.files.get(`${weightsFile.sha256}.1`)[3] ^= 1;
  assert.deepEqual(await cache.file(URL, weightsFile, ignored), weights);
  assert.deepEqual(await cache.file(URL, weightsFile, ignored), weights);
  assert.equal(server.asked.length, 2);
});

test("a piece that was cut short in the store is fetched anew", async () => {
  await cache.file(URL, weightsFile, ignored);
  store.files.set(`${weightsFile.sha256}.2`, new Uint8Array(7));
  assert.deepEqual(await cache.file(URL, weightsFile, ignored), weights);
  assert.deepEqual(server.asked.at(-1), [URL + weightsFile.name, 2 * PIECE]);
});

test("files longer or shorter than their index says are refused", async () => {
  for (const length of [weights.length - 1, weights.length + 1]) {
    const other = new Uint8Array(length);
    server.files.set(URL + weightsFile.name, other);
    await assert.rejects(cache.file(URL, weightsFile, ignored), errors.IntegrityError);
  }
});

test("a full store is told as it is, and what was kept stays sound", async () => {
  store.room = PIECE + 100;
  store.fullError = new errors.QuotaExceeded("full");
  await assert.rejects(cache.file(URL, weightsFile, ignored), errors.QuotaExceeded);
  store.room = Infinity;
  assert.deepEqual(await cache.file(URL, weightsFile, ignored), weights);
  assert.deepEqual(server.asked.map(([, start]) => start), [0, PIECE]);
});

test("no network: an error for what is missing, the index that is kept for the rest", async () => {
  const { index, offline } = await cache.index(URL, true);
  assert.equal(offline, false);
  await cache.file(URL, weightsFile, ignored);
  server.down = true;
  assert.deepEqual(await cache.index(URL, true), { index, offline: true });
  assert.deepEqual(await cache.file(URL, weightsFile, ignored), weights);
  await assert.rejects(cache.file(URL, index.files[0], ignored), errors.Offline);
  await assert.rejects(cache.index("https://models.example/other/", false), errors.Offline);
});

test("what the server does not have is told with its status", async () => {
  await assert.rejects(cache.index("https://models.example/none/", false), (error) => {
    assert.ok(error instanceof errors.FetchFailed && !(error instanceof errors.Offline));
    return /404/.test(error.message);
  });
});

test("an index of a newer format, or one that is none", async () => {
  const files = [weightsFile, { ...weightsFile, name: "params_shard_0.bin" }];
  const bad = (value) => {
    server.files.set(INDEX, typeof value === "string" ? new TextEncoder().encode(value) : encode(value));
    return cache.index(URL, true);
  };
  await assert.rejects(bad({ format: 2 }), errors.NewerFormat);
  for (const value of [
    "", "{", "[]", "null", { format: 0 }, { format: "1" }, { format: 1 },
    indexOf(files, { more: 1 }), indexOf(files),
    indexOf([{ ...weightsFile, name: "../x" }, weightsFile]),
    indexOf([{ ...weightsFile, name: "a", size: -1 }, weightsFile]),
    indexOf([{ ...weightsFile, name: "a", sha256: "F" }, weightsFile]),
    indexOf([{ ...weightsFile, name: "a" }, weightsFile], { programs: [] }),
  ]) {
    await assert.rejects(bad(value), (error) => error instanceof errors.ArtifactError && !(error instanceof errors.NewerFormat));
  }
  assert.deepEqual(await store.names(), []);
});

test("models are listed and deleted; what two share stays", async () => {
  const other = "https://models.example/copy/";
  const third = "https://models.example/third/";
  publish(other, 7);
  const apart = publish(third, 9);
  for (const url of [URL, other, third]) await cache.index(url, true);
  await cache.file(URL, weightsFile, ignored);
  await cache.file(third, apart.files[1], ignored);
  const told = await cache.list();
  assert.deepEqual(told.map((m) => [m.url, m.complete]), [[URL, true], [other, true], [third, true]]);
  assert.equal(told[0].bytes, weights.length);
  await cache.delete(URL);
  assert.deepEqual(await cache.file(other, weightsFile, ignored), weights);
  await cache.delete(other);
  assert.deepEqual((await cache.list()).map((m) => m.url), [third]);
  assert.ok(!(await store.names()).some((name) => name.startsWith(weightsFile.sha256)));
  await cache.delete(third);
  assert.deepEqual(await store.names(), []);
});

test("a model that was only asked about keeps no files, and its index only", async () => {
  const twin = "https://models.example/copy/";
  publish(twin, 7);
  await cache.index(URL, true);
  await cache.index(twin, false);
  await cache.file(URL, weightsFile, ignored);
  await cache.index(URL, false); // asked about again, it is still one that was loaded
  assert.deepEqual((await cache.list()).map((m) => m.url), [URL]);
  await cache.delete(URL);
  assert.deepEqual(await cache.list(), []);
  assert.ok(!(await store.names()).some((name) => name.startsWith(weightsFile.sha256)));
  server.down = true;
  const { index } = await cache.index(twin, true);
  assert.equal(index.files[1].sha256, weightsFile.sha256);
  server.down = false;
  await cache.file(twin, weightsFile, ignored);
  assert.deepEqual((await cache.list()).map((m) => m.url), [twin]);
});

test("a model that was compiled anew takes the place of the old one", async () => {
  await cache.index(URL, true);
  await cache.file(URL, weightsFile, ignored);
  const { data, files } = publish(URL, 11);
  await cache.index(URL, true);
  assert.ok(!(await store.names()).some((name) => name.startsWith(weightsFile.sha256)));
  assert.deepEqual(await cache.file(URL, files[1], ignored), data);
});

test("what is missing is known before it is fetched", async () => {
  const { files } = (await cache.index(URL, true)).index;
  assert.equal(await cache.missing(files), files[0].size + files[1].size);
  await cache.file(URL, weightsFile, ignored);
  assert.equal(await cache.missing(files), files[0].size);
});

test("without a store everything is fetched each time", async () => {
  const none = new ModelCache(null);
  await none.index(URL, true);
  assert.deepEqual(await none.file(URL, weightsFile, ignored), weights);
  assert.deepEqual(await none.file(URL, weightsFile, ignored), weights);
  assert.equal(server.asked.length, 3);
  assert.deepEqual(await none.list(), []);
});
