/**
 * Replays what Python did, from a file of traces; any difference ends it with an error.
 *
 *     node replay.mjs DIST TRACES PROGRAM
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [, , dist, traces, programFile] = process.argv;
const load = (name) => import(pathToFileURL(`${dist}/${name}.js`).href);
const { ArtifactError, RequestError } = await load("errors");
const { compile } = await load("sizes");
const { drawBits } = await load("philox");
const { Pages } = await load("pages");
const { choose, prepare } = await load("batch");
const { largestBytes, readBundle } = await load("artifact");
const { alone, ioBytes } = await load("alone");
const { dimValues, expand } = await load("expand");
const { NONE, sampleRows } = await load("sampling");
const { sampleInput, withLogprobs } = await load("sampler");
const { pack, packedBytes } = await load("params");

const given = JSON.parse(readFileSync(traces, "utf8"));
const { manifest } = readBundle(new Uint8Array(readFileSync(programFile)), programFile);
const ints = (values) => Int32Array.from(values);
const batchOf = (fields) => Object.fromEntries(Object.entries(fields).map(([k, v]) => [k, ints(v)]));
/** The value, or null where it is refused in the way that it should be. */
function refusable(kind, task) {
  try {
    return task();
  } catch (error) {
    assert.ok(error instanceof kind, error);
    return null;
  }
}

/** [symbol, buffers, groups, sizes] of what an entry launches. */
function launchesOf(entry, dims) {
  const own = new Map(entry.arena.map((b) => [b.name, b]));
  const place = (name) => {
    const buffer = own.get(name);
    return buffer ? `arena ${buffer.offset} ${Math.max(4, largestBytes(buffer, entry))}` : name;
  };
  return expand(entry, manifest)
    .map((c) => [c.phase.symbol, c.buffers.map(place), c.groups(dims), dimValues(c, dims)])
    .filter(([, , groups]) => groups > 0);
}

const replays = {
  sizes(cases) {
    for (const [text, dims, value] of cases) {
      const found = refusable(ArtifactError, () => compile(text)(dims));
      assert.equal(found === null ? null : found + 0, value, `${text} ${JSON.stringify(dims)}`);
    }
  },
  draws(cases) {
    for (const [seed, stream, position, bits] of cases) {
      assert.equal(drawBits(BigInt(seed), stream, position), BigInt(bits));
    }
  },
  pages(cases) {
    const pages = new Pages(12);
    for (const [op, argument, result, available, idle] of cases) {
      const found = pages[op](argument);
      if (result !== null) assert.deepEqual(found, result);
      assert.deepEqual([pages.available, pages.idle], [available, idle]);
    }
  },
  batches(cases) {
    for (const [fields, wanted] of cases) {
      const found = refusable(RequestError, () => {
        const { inputs, dims } = prepare(batchOf(fields), manifest, given.num_pages);
        return { inputs, dims, entry: choose(manifest.entries, dims).name };
      });
      const plain = found && {
        ...found,
        inputs: Object.fromEntries(Object.entries(found.inputs).map(([k, v]) => [k, [...v]])),
      };
      assert.deepEqual(plain, wanted, JSON.stringify(fields));
    }
  },
  samples(cases) {
    for (const one of cases) {
      const logits = Float32Array.from(one.logits, (x) => (x === "inf" ? Infinity : Number(x)));
      const options = {
        ...one.options,
        seed: BigInt(one.options.seed),
        logit_bias: new Map(Object.entries(one.options.logit_bias).map(([k, v]) => [Number(k), v])),
      };
      const allowed = one.allowed && new Uint32Array(Math.ceil(logits.length / 32));
      for (const id of one.allowed ?? []) allowed[id >> 5] |= 1 << (id & 31);
      const input = sampleInput(options, one.history, one.vocabulary, logits.length, allowed);
      assert.deepEqual([[...input.edit_ids], [...input.edits]], one.edits);
      assert.deepEqual([...input.limits], one.limits);
      const [token] = sampleRows(logits, logits.length, input);
      assert.equal(token, one.token, JSON.stringify(one.options));
      if (one.logprobs === null) continue;
      assert.notEqual(token, NONE);
      const told = withLogprobs(token, logits.subarray(0, one.vocabulary), 4);
      const [logprob, top] = one.logprobs;
      assert.ok(Math.abs(told.logprob - logprob) < 1e-9);
      assert.deepEqual(told.top.map(([id]) => id), top.map(([id]) => id));
    }
  },
  packs(cases) {
    for (const [dtype, shape, row_tile, from, to] of cases) {
      const param = { name: "w", dtype, shape, row_tile };
      const out = new Uint8Array(packedBytes(param));
      const odd = new Uint8Array([0, ...Buffer.from(from, "hex")]).subarray(1); // not aligned
      pack(odd, { name: "w", dtype, shape, encoding: "raw" }, param, out);
      assert.equal(Buffer.from(out).toString("hex"), to, `${dtype} ${shape} ${row_tile}`);
    }
  },
  launches(cases) {
    for (const [fields, wanted] of cases) {
      const { dims } = prepare(batchOf(fields), manifest, given.num_pages);
      assert.deepEqual(launchesOf(choose(manifest.entries, dims), dims), wanted);
    }
  },
  tiles(cases) {
    assert.deepEqual(cases, manifest.entries.map((entry) => [entry.name, entry.tile]));
  },
  memory(cases) {
    const own = alone(manifest);
    const arena = own.sampler.arena.map((buffer) => buffer.offset);
    assert.deepEqual(cases, [[Object.fromEntries(ioBytes(own)), arena, own.sampler.arena_bytes]]);
  },
  choices(cases) {
    for (const [dims, wanted] of cases) assert.deepEqual(launchesOf(manifest.sampler, dims), wanted);
  },
};

const { num_pages, ...kinds } = given;
for (const [kind, cases] of Object.entries(kinds)) {
  assert.ok(cases.length > 0, kind);
  replays[kind](cases);
  console.log(`${kind}: ${cases.length} equal`);
}
