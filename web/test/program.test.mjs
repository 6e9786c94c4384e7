/** Steps on a device that keeps its own time: what is submitted together, compiled, left out. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Conversation } from "../dist/conversation.js";
import { Pages } from "../dist/pages.js";
import { Program } from "../dist/program.js";
import { Runner } from "../dist/runner.js";
import { FakeDevice, manifest } from "./fake_device.mjs";

const FAST = { embed: 0.01, append: 0.01, product: 0.3, head: 0.1, largest: 0.01, draw: 0.01 };
const SLOW = { embed: 1, append: 2, product: 30, head: 25, largest: 3, draw: 1 };
const TOKEN = ["embed", "append", "product", "append", "product", "head", "largest"];

async function loaded(device, made = manifest) {
  const bundle = { manifest: made, code: "", constants: new Map() };
  const { program, compiled } = await Program.open(device, bundle, 64, device.clock);
  await compiled;
  await program.finish();
  return program;
}

function sample(temperature = 0) {
  return {
    vocabulary: 50, rows: Int32Array.of(0), inverse_temperature: Float32Array.of(temperature),
    limits: new Int32Array(3), keys: new Uint32Array(5), masked: Int32Array.of(0),
    allowed: new Uint32Array(2), edit_indptr: new Int32Array(2), edit_ids: new Int32Array(0),
    edits: new Float32Array(0),
  };
}

function steps(program) {
  const conversation = new Conversation(new Pages(64), manifest.kv_cache.page_size);
  return async (count, asked) => {
    const tokens = Array.from({ length: count }, () => 1);
    const chosen = await program.step(conversation.batch(tokens), asked);
    conversation.computed(tokens);
    return chosen;
  };
}

test("on a fast device a step is one submission and one read-back of four bytes", async () => {
  const device = new FakeDevice(FAST, 0.5);
  const step = steps(await loaded(device));
  await step(1, sample());
  const first = device.submissions.length;
  for (let i = 0; i < 20; i++) assert.deepEqual([...(await step(1, sample()))], [3]);
  assert.ok(first <= 6); // nothing was known of the device
  assert.deepEqual(device.submissions.slice(first), Array.from({ length: 20 }, () => TOKEN));
  assert.deepEqual(device.read_bytes, Array.from({ length: 21 }, () => 4));
});

test("on a slow device no submission holds it for long, and the same is launched in order", async () => {
  const device = new FakeDevice(SLOW, 1);
  const step = steps(await loaded(device));
  assert.deepEqual([...(await step(1, sample()))], [3]);
  assert.deepEqual(device.submissions[0], ["embed"]);
  for (let i = 0; i < 8; i++) await step(1, sample());
  assert.deepEqual(device.submissions.flat(), Array.from({ length: 9 }, () => TOKEN).flat());
  const settled = device.times.slice(-15);
  assert.ok(Math.max(...settled) <= 50, settled.join());
  assert.ok(device.submissions.slice(-5).flat().length >= TOKEN.length, "cut finer than it has to be");
  assert.deepEqual(device.read_bytes, Array.from({ length: 9 }, () => 4));
});

test("what a driver makes ready at a kernel's first launch is no measure of it", async () => {
  const device = new FakeDevice(FAST);
  const { submit } = device.gpu.queue;
  const met = new Set();
  device.gpu.queue.submit = ([symbols]) => {
    submit([symbols]);
    for (const symbol of symbols) device.now += met.has(symbol) ? 0 : 5000;
    symbols.forEach((symbol) => met.add(symbol));
  };
  const step = steps(await loaded(device));
  for (let i = 0; i < 3; i++) await step(1, sample(1));
  assert.deepEqual(device.submissions.at(-1), [...TOKEN, "draw"]);
});

test("a kernel's first launch is submitted alone, whatever was expected of it", async () => {
  const device = new FakeDevice({ ...FAST, product: 45, head: 45 }, 0.5);
  const step = steps(await loaded(device));
  for (let i = 0; i < 3; i++) await step(1, sample(1));
  const met = new Set();
  for (const symbols of device.submissions) {
    const fresh = symbols.filter((symbol) => !met.has(symbol));
    assert.ok(fresh.length === 0 || symbols.length === 1, symbols.join());
    fresh.forEach((symbol) => met.add(symbol));
  }
  assert.ok(Math.max(...device.times) <= 50, device.times.join());
});

test("what disturbs a device makes submissions shorter, and is forgotten when it ends", async () => {
  const device = new FakeDevice({ ...SLOW, product: 7, head: 7 }, 3);
  const step = steps(await loaded(device));
  let count = 0;
  device.slower = () => (count++ % 3 === 0 ? 1.6 : 1);
  for (let i = 0; i < 60; i++) await step(1, sample());
  assert.ok(Math.max(...device.times) + device.wait <= 50, device.times.join());
  device.slower = () => 1;
  for (let i = 0; i < 60; i++) await step(1, sample());
  assert.deepEqual(device.submissions.at(-1), TOKEN);
});

test("a time that is odd is soon forgotten", async () => {
  const device = new FakeDevice({ ...FAST }, 0.5);
  const step = steps(await loaded(device));
  for (let i = 0; i < 4; i++) await step(1, sample());
  device.now = 0;
  const { submit } = device.gpu.queue;
  device.gpu.queue.submit = (lists) => {
    submit(lists);
    device.now += 1000;
    device.gpu.queue.submit = submit;
  };
  const before = device.submissions.length;
  for (let i = 0; i < 4; i++) await step(1, sample());
  assert.ok(device.submissions.length - before <= 8);
  assert.deepEqual(device.submissions.at(-1), TOKEN);
});

test("where to wait takes as long as a submission may, steps stay whole", async () => {
  const device = new FakeDevice(SLOW, 100);
  const step = steps(await loaded(device));
  for (let i = 0; i < 3; i++) await step(1, sample());
  assert.deepEqual(device.submissions, [TOKEN, TOKEN, TOKEN]);
});

test("what chooses no token ends when the cache is written", async () => {
  const device = new FakeDevice(FAST);
  const step = steps(await loaded(device));
  assert.equal(await step(8, null), null);
  assert.deepEqual(device.submissions.flat(), ["embed", "append", "product", "append"]);
  await step(1, sample());
  assert.deepEqual(device.submissions.slice(-1)[0].at(-1), "largest");
});

test("chunks are as large as the longest launch allows", async () => {
  for (const costs of [FAST, SLOW]) {
    const device = new FakeDevice(costs, 0.5);
    const program = await loaded(device);
    const sizes = [];
    const step = program.step.bind(program);
    program.step = (batch, asked) => {
      sizes.push(batch.tokens.length);
      return step(batch, asked);
    };
    const runner = new Runner(program, () => assert.fail("nothing was lost"), device.clock);
    const prompt = Array.from({ length: 100 }, (_, i) => i % 50);
    runner.begin(prompt);
    assert.equal(await runner.next(prompt, async () => sample(), () => false), 3);
    if (costs === FAST) assert.deepEqual(sizes, [4, 8, 16, 32, 40]);
    else assert.ok(sizes.every((size) => size <= 4), sizes.join());
    assert.equal(sizes.reduce((a, b) => a + b), prompt.length);
  }
});

test("kernels that only drawn tokens need are compiled last, and waited for by these alone", async () => {
  const device = new FakeDevice(FAST);
  let release;
  device.held = new Promise((resolve) => (release = resolve));
  const step = steps(await loaded(device));
  assert.deepEqual(device.compiled, [["embed", "append", "product", "head", "largest"], ["draw"]]);
  await step(1, sample());
  assert.equal(device.submissions.flat().at(-1), "largest");
  let done = false;
  const drawn = step(1, sample(1)).then(() => (done = true));
  await new Promise((resolve) => setTimeout(resolve));
  assert.equal(done, false);
  release();
  await drawn;
  assert.equal(device.submissions.flat().at(-1), "draw");
});

test("where drawing would hold the device for long, logits are read instead", async () => {
  for (const [draw, read] of [[1, 4], [90, 4 * 50]]) {
    const device = new FakeDevice({ ...SLOW, draw });
    const program = await loaded(device);
    const step = steps(program);
    for (let i = 0; i < 6; i++) await step(1, sample(1));
    assert.deepEqual(device.read_bytes.slice(0, 2), [4, 4]); // until that is known
    assert.equal(device.read_bytes.at(-1), read);
    await step(1, sample());
    assert.equal(device.read_bytes.at(-1), 4);
  }
});

test("a drawing kernel that is refused is told to who draws, and greedy answers go on", async () => {
  const device = new FakeDevice(FAST);
  device.refused = "draw";
  const step = steps(await loaded(device));
  assert.deepEqual([...(await step(1, sample()))], [3]);
  await assert.rejects(step(1, sample(1)), /draw was refused/);
  assert.deepEqual([...(await step(1, sample()))], [3]);
});

test("another kernel that is refused ends the load", async () => {
  const device = new FakeDevice(FAST);
  device.refused = "product";
  await assert.rejects(loaded(device), /product was refused/);
});

test("memory is taken for one sequence and one row, however many were compiled for", async () => {
  const device = new FakeDevice(FAST);
  const sizes = [];
  device.allocate = (size) => (sizes.push(size), { buffer: {}, offset: 0, size });
  const views = [];
  device.view = (of, offset, size) => (views.push([offset, size]), { ...of, offset, size });
  const many = (dims) => dims.map((d) => (d.name === "r" || d.name === "b" ? { ...d, hi: 32 } : d));
  const arena = (...shapes) => shapes.map((shape, i) => ({ name: `s${i}`, dtype: "f32", shape, offset: 100_000 * i }));
  const sampler = {
    ...manifest.sampler, dims: many(manifest.sampler.dims), arena: arena(["r", "50"], ["r", "100"]), arena_bytes: 1e6,
  };
  const entries = manifest.entries.map((e) => ({ ...e, dims: many(e.dims) }));
  const step = steps(await loaded(device, { ...manifest, entries, sampler }));
  assert.deepEqual([...(await step(1, sample()))], [3]);
  assert.ok(sizes.includes(4 * 50) && !sizes.includes(32 * 4 * 50)); // logits
  assert.deepEqual(views.slice(-2), [[0, 200], [256, 400]]);
  assert.equal(sizes.at(-1), 256 + 512); // the arena
});
