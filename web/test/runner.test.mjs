/** Runner and answers over a model without a device. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Chunks } from "../dist/chunks.js";
import * as errors from "../dist/errors.js";
import { Progress, generate } from "../dist/generate.js";
import { Runner } from "../dist/runner.js";
import { NullExecutable, VOCABULARY, continued } from "./null_model.mjs";

const OPTIONS = {
  temperature: 0, top_p: 1, top_k: 0, min_p: 0, repetition_penalty: 1, presence_penalty: 0,
  frequency_penalty: 0, logit_bias: new Map(), seed: 1n, max_tokens: null, stop: [],
  ignore_eos: false, logprobs: false, top_logprobs: 0,
};
const PROMPT = Array.from({ length: 45 }, (_, i) => (i * 7) % VOCABULARY);
const never = async () => assert.fail("nothing was lost");

const plainStops = () => ({ stopped: false, put: (text) => text, finish: () => "" });

function ask(prompt, options = {}, more = {}) {
  return {
    prompt, options: { ...OPTIONS, ...options }, vocabulary: VOCABULARY, stopIds: new Set(), constraint: null,
    detokenizer: { put: (ids) => ids.map((id) => `${id} `).join(""), finish: () => "" },
    stops: plainStops(), ...more,
  };
}

async function answer(runner, asked, interrupted = () => false) {
  const progress = new Progress(asked.prompt.length);
  const pieces = [];
  for await (const piece of generate(runner, asked, progress, interrupted)) pieces.push(piece);
  const text = pieces.map((piece) => piece.text).join("").trim();
  return { tokens: text === "" ? [] : text.split(" ").map(Number), finish: pieces.at(-1).finish, pieces, progress };
}

test("an answer is what the model says, whatever the chunks", async () => {
  for (const [room, chunks] of [[Infinity, [4, 8, 16, 17]], [1.3, [...Array(11).fill(4), 1]]]) {
    const device = Object.assign(new NullExecutable(), { room });
    const runner = new Runner(device, never, () => 0);
    const { tokens, finish, progress } = await answer(runner, ask(PROMPT, { max_tokens: 9 }));
    assert.deepEqual(tokens, continued(PROMPT, 9));
    assert.equal(finish, "length");
    const { prompt_tokens, completion_tokens, total_tokens } = progress.usage();
    assert.deepEqual([prompt_tokens, completion_tokens, total_tokens], [45, 9, 54]);
    assert.deepEqual(device.steps.slice(0, -8).map((step) => step.length), chunks);
  }
});

test("a turn more computes only what is new", async () => {
  const device = new NullExecutable();
  const runner = new Runner(device, never);
  const first = await answer(runner, ask(PROMPT, { max_tokens: 5 }));
  const before = device.steps.length;
  const next = [...PROMPT, ...first.tokens, 3, 4];
  const second = await answer(runner, ask(next, { max_tokens: 5 }));
  assert.deepEqual(second.tokens, continued(next, 5));
  assert.equal(second.progress.cached, PROMPT.length + 4); // the fifth was chosen, not computed
  assert.deepEqual(device.steps[before], [first.tokens[4], 3, 4]);
});

test("another conversation, and the same again, are answered as if alone", async () => {
  const runner = new Runner(new NullExecutable(16), never);
  for (const prompt of [PROMPT, [1, 2, 3], PROMPT.slice(0, 30), PROMPT, [...PROMPT.slice(0, 20), 9]]) {
    const { tokens } = await answer(runner, ask(prompt, { max_tokens: 15 }));
    assert.deepEqual(tokens, continued(prompt, 15));
  }
});

test("an answer ends with the window, and a prompt that fills it is refused", async () => {
  const runner = new Runner(new NullExecutable(12), never);
  assert.equal(runner.window, 48);
  const { tokens, finish } = await answer(runner, ask(PROMPT));
  assert.deepEqual([tokens.length, finish], [3, "length"]);
  const long = Array.from({ length: 48 }, () => 1);
  await assert.rejects(answer(runner, ask(long)), errors.ContextWindowExceeded);
  await assert.rejects(answer(runner, ask([])), errors.RequestError);
});

test("end tokens and stop strings end an answer", async () => {
  const runner = new Runner(new NullExecutable(), never);
  const wanted = continued(PROMPT, 6);
  const place = wanted.indexOf(wanted[3]);
  const ended = await answer(runner, ask(PROMPT, { max_tokens: 20 }, { stopIds: new Set([wanted[3]]) }));
  assert.deepEqual([ended.tokens, ended.finish], [wanted.slice(0, place), "stop"]);
  const ignored = await answer(runner, ask(PROMPT, { max_tokens: 6, ignore_eos: true }, { stopIds: new Set(wanted) }));
  assert.deepEqual(ignored.tokens, wanted);
  const stops = {
    stopped: false,
    put(text) {
      this.stopped ||= text.trim() === String(wanted[3]);
      return this.stopped ? "" : text;
    },
    finish: () => "",
  };
  const stopped = await answer(runner, ask(PROMPT, { max_tokens: 20 }, { stops }));
  assert.deepEqual([stopped.tokens, stopped.finish], [wanted.slice(0, place), "stop"]);
});

test("an interrupt ends an answer before its next token", async () => {
  const runner = new Runner(new NullExecutable(), never);
  let asked = 0;
  const { tokens, finish } = await answer(runner, ask(PROMPT), () => (asked += 1) > 8);
  assert.equal(finish, "abort");
  assert.deepEqual(tokens, continued(PROMPT, tokens.length));
  assert.ok(tokens.length < 8);
});

test("a grammar allows, and ends an answer", async () => {
  const runner = new Runner(new NullExecutable(), never);
  const accepted = [];
  const constraint = {
    get finished() {
      return accepted.length === 3;
    },
    mask: async () => Uint32Array.of(0b1100000, 0),
    accept: (token) => accepted.push(token),
    dispose: () => undefined,
  };
  const { tokens, finish } = await answer(runner, ask(PROMPT, {}, { constraint }));
  assert.deepEqual(tokens, accepted);
  assert.ok(tokens.every((token) => token === 5 || token === 6));
  assert.equal(finish, "stop");
});

test("a device that is lost is loaded again, and the answer goes on", async () => {
  for (const loseAt of [0, 2, 6]) {
    const [first, second] = [new NullExecutable(), new NullExecutable()];
    first.loseAt = loseAt;
    const runner = new Runner(first, async () => second);
    const { tokens } = await answer(runner, ask(PROMPT, { max_tokens: 9 }));
    assert.deepEqual(tokens, continued(PROMPT, 9));
    assert.ok(second.steps.length > 0);
  }
});

test("a device that is lost again at once is reported", async () => {
  const lost = () => Object.assign(new NullExecutable(), { loseAt: 0 });
  const runner = new Runner(lost(), async () => lost());
  await assert.rejects(answer(runner, ask(PROMPT)), errors.DeviceLost);
});

test("log probabilities are the model's own", async () => {
  const runner = new Runner(new NullExecutable(), never);
  const { pieces, tokens } = await answer(runner, ask([1, 2], { max_tokens: 1, logprobs: true, top_logprobs: 2 }));
  const norm = Math.log(Math.exp(3) + VOCABULARY - 1);
  const [{ sample }] = pieces;
  assert.equal(sample.token, tokens[0]);
  assert.ok(Math.abs(sample.logprob - (3 - norm)) < 1e-12);
  assert.deepEqual(sample.top.map(([id]) => id), [tokens[0], tokens[0] === 0 ? 1 : 0]);
});

test("chunks grow while their longest launch is short, and shrink at once when it is not", () => {
  const chunks = new Chunks(512, 4);
  const sizes = [];
  for (let i = 0; i < 8; i++) {
    const size = chunks.next(10_000);
    sizes.push(size);
    chunks.took(size, size, 80 / size); // 80 tokens have room
  }
  assert.deepEqual(sizes, [4, 8, 16, 32, 64, 80, 80, 80]);
  chunks.took(5, 50, 0.5); // the rest of a prompt
  assert.equal(chunks.next(10_000), 80);
  chunks.took(80, 900, 40 / 300);
  assert.equal(chunks.next(10_000), 8); // 10 would cost what 12 do
  chunks.took(8, 10_000, 40 / 5000);
  assert.equal(chunks.next(10_000), 4); // fewer take as long
  assert.equal(chunks.next(3), 3);
  assert.equal(chunks.next(0), 0);
});

test("a chunk ends before who interrupts gets impatient", () => {
  const chunks = new Chunks(512, 4);
  const sizes = [];
  for (let i = 0; i < 6; i++) {
    const size = chunks.next(10_000);
    sizes.push(size);
    chunks.took(size, 10 * size, 40); // many short launches
  }
  assert.deepEqual(sizes, [4, 8, 16, 32, 48, 48]);
});

test("no launch of a prompt is too long, the first included, where one of a tile is not", async () => {
  for (const ms of [1, 3, 7, 12]) { // a token; kernels take four together
    const device = new NullExecutable();
    const launches = [];
    const step = device.step.bind(device);
    device.step = (batch, sample) => {
      launches.push(4 * ms * Math.ceil(batch.tokens.length / 4));
      device.room = 40 / launches.at(-1);
      return step(batch, sample);
    };
    await answer(new Runner(device, never, () => 0), ask(PROMPT, { max_tokens: 1 }));
    assert.ok(Math.max(...launches) <= 50, launches.join());
  }
});

test("a program that takes fewer tokens than kernels do has them all", () => {
  const chunks = new Chunks(4, 8);
  chunks.took(4, 1, Infinity);
  assert.equal(chunks.next(100), 4);
});
