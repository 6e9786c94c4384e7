/** The size grammar by itself; equality with Python's is in tests/web. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { ArtifactError } from "../dist/errors.js";
import { compile, evaluate } from "../dist/sizes.js";

test("values", () => {
  assert.equal(evaluate("(n + 63) // 64", { n: 70 }), 2);
  assert.equal(evaluate("n * 4096 + 15 // 16", { n: 3 }), 12288);
  assert.equal(evaluate("max(1, min(n, 7), n // 2)", { n: 30 }), 15);
  assert.equal(evaluate("(0 - n) % 8", { n: 3 }), 5);
  assert.equal(evaluate("(0 - n) // 8", { n: 3 }), -1);
  assert.equal(compile("10 - 3 - 2")({}), 5);
});

for (const text of [
  "", "n +", "n ** 2", "n / 2", "n.x", "f(n)", "min()", "1 2", "(n", "n)", "constructor", "__proto__",
  "01", "n; n", "n // 0", "9007199254740993", "n * 9007199254740991", "(".repeat(200), "1e3", "0x10",
  "n" + " + n".repeat(400),
]) {
  test(`refused: ${text.slice(0, 30)}`, () => {
    assert.throws(() => evaluate(text, { n: 3 }), ArtifactError);
  });
}
