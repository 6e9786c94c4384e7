/** Weights and the params of a program: which are taken, and which are refused and why. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { ArtifactError } from "../dist/errors.js";
import { matchParams } from "../dist/params.js";

const TENSOR = { name: "w", dtype: "u32", shape: [64, 4], encoding: "raw" };
const PARAM = { name: "w", dtype: "u32", shape: [64, 4], row_tile: 32, streams: 1, adapter: false };

function refused(param, tensors, why) {
  assert.throws(() => matchParams({ params: [param] }, tensors), (error) => {
    assert.ok(error instanceof ArtifactError);
    assert.match(error.message, why);
    return true;
  });
}

test("a param takes the tensor of its name, dtype and shape", () => {
  assert.deepEqual([...matchParams({ params: [PARAM] }, [TENSOR])], [[TENSOR, PARAM]]);
  refused(PARAM, [], /wants a weight w as u32\[64,4\], which the model's folder does not have/);
  refused(PARAM, [{ ...TENSOR, shape: [64, 5] }], /has as u32\[64,5\]; compile the model again/);
});

test("words in other than one stream are refused", () => {
  for (const streams of [0, 2, 4]) {
    refused({ ...PARAM, streams }, [TENSOR], new RegExp(`weight w in ${streams} streams.*compile the model for WebGPU`));
  }
});
