/** What requests may say, and how they are refused. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { readChatConfig } from "../dist/chat_config.js";
import * as errors from "../dist/errors.js";
import { readChat, readCompletion } from "../dist/request.js";

const encode = (value) => new TextEncoder().encode(JSON.stringify(value));
const config = readChatConfig(encode({ temperature: 0.6, top_p: 0.95, conv_template: { stop_str: "</s>", stop_token_ids: [2] } }));
const messages = [{ role: "user", content: "hi" }];

test("a model's own defaults stand where nothing is given", () => {
  const read = readChat({ messages, top_p: null, max_completion_tokens: 7, stop: "x", seed: -1 }, config);
  assert.deepEqual(
    [read.temperature, read.top_p, read.max_tokens, read.stop, read.seed],
    [0.6, 0.95, 7, ["x"], 2n ** 64n - 1n],
  );
  assert.deepEqual([config.stopIds, config.stopStrings], [[2], ["</s>"]]);
  const [a, b] = [readChat({ messages }, config), readChat({ messages }, config)];
  assert.notEqual(a.seed, b.seed);
});

for (const [param, given] of [
  ["best_of", { best_of: 2 }], ["temperature", { temperature: -1 }], ["temperature", { temperature: NaN }],
  ["top_p", { top_p: 2 }], ["top_k", { top_k: 1.5 }], ["n", { n: 2 }], ["max_tokens", { max_tokens: 0 }],
  ["seed", { seed: 0.5 }], ["seed", { seed: 2n ** 64n }], ["stop", { stop: ["a", ""] }],
  ["stop", { stop: Array.from({ length: 17 }, () => "a") }], ["logit_bias", { logit_bias: { x: 1 } }],
  ["logit_bias", { logit_bias: { 1: 101 } }], ["top_logprobs", { top_logprobs: 3 }],
  ["top_logprobs", { logprobs: true, top_logprobs: 21 }], ["logprobs", { logprobs: 1 }],
  ["stream", { stream: "yes" }], ["ignore_eos", { ignore_eos: 1 }], ["messages", { messages: [] }],
  ["messages[0].role", { messages: [{ role: "robot", content: "" }] }],
  ["messages[0].content", { messages: [{ role: "user", content: 5 }] }],
  ["messages[0].content", { messages: [{ role: "user" }] }],
  ["messages[0].content", { messages: [{ role: "user", content: [{ type: "image_url" }] }] }],
  ["extra_body.resumable", { extra_body: { resumable: true } }],
  ["max_completion_tokens", { max_tokens: 1, max_completion_tokens: 2 }],
]) {
  test(`refused by name: ${param} ${JSON.stringify(given, (_, v) => (typeof v === "bigint" ? `${v}` : v))}`, () => {
    assert.throws(() => readChat({ messages, ...given }, config), (error) => {
      assert.ok(error instanceof errors.RequestError, error);
      assert.equal(error.param, param);
      return true;
    });
  });
}

test("a number that has one possible value is refused with it", () => {
  assert.throws(() => readChat({ messages, n: 2 }, config), { message: "n is 2, only 1 is possible" });
  assert.equal(readChat({ messages, n: 1 }, config).n, undefined);
});

test("completions take texts and ids", () => {
  assert.equal(readCompletion({ prompt: "x", logprobs: 3 }, config).top_logprobs, 3);
  assert.equal(readCompletion({ prompt: [1, 2], max_tokens: 4 }, config).max_tokens, 4);
  for (const prompt of [undefined, 5, ["a"], [-1], [[1]]]) {
    assert.throws(() => readCompletion({ prompt }, config), errors.RequestError);
  }
  assert.throws(() => readCompletion({ prompt: "x", suffix: "y" }, config), /suffix/);
});

test("a configuration that makes no sense is refused", () => {
  for (const bad of [[], { temperature: "hot" }, { conv_template: { stop_token_ids: [-1] } }, { conv_template: { stop_str: 1 } }]) {
    assert.throws(() => readChatConfig(encode(bad)), errors.ArtifactError);
  }
  assert.throws(() => readChatConfig(new Uint8Array([0xff])), errors.ArtifactError);
  assert.deepEqual(readChatConfig(null).stopIds, []);
});

test("errors cross from workers as what they are", () => {
  for (const kind of Object.values(errors)) {
    if (typeof kind !== "function" || !(kind.prototype instanceof Error)) continue;
    const error = new kind("why");
    const back = errors.fromRecord(structuredClone(errors.toRecord(error)));
    assert.equal(back.constructor, kind);
    assert.equal(back.message, "why");
  }
  assert.equal(errors.fromRecord({ name: "TypeError", message: "x" }).name, "TypeError");
});
