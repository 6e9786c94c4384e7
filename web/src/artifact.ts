/**
 * An artifact: what the compile wing writes and the runtime reads, in one file.
 *
 * In: the bytes of a `.sterna` file. Out: its manifest, its code, its constants; ArtifactError where
 * it is damaged, NewerFormat where it is of a newer kind. The records are those of
 * base/artifact.py, field by field. Nothing here compiles or runs the code.
 */

import { ArtifactError } from "./errors.js";
import { bool, count, decode, list, nullable, oneOf, optional, record, text, whole } from "./records.js";
import type { Of } from "./records.js";
import type { Read } from "./records.js";
import { evaluate } from "./sizes.js";

export const FORMAT = 2;
export const KV_CACHE = "kv_cache"; // what launches call the cache
const CHOOSE = "choose"; // the sampler that is launched as entries are
export const QUERY_TILE = 32; // most tokens of one sequence that attention takes as a tile

const MARK = "STERNA_MANIFEST_V1".padEnd(24, "\0");
const CODE = "code";

const DTYPE_BYTES = {
  f32: 4, f16: 2, bf16: 2, f64: 8, i8: 1, u8: 1, i16: 2, u16: 2, i32: 4, u32: 4, i64: 8, u64: 8,
  bool: 1,
} as const;

export type DType = keyof typeof DTYPE_BYTES;

export const dtype: Read<DType> = oneOf(...(Object.keys(DTYPE_BYTES) as DType[]));

export function dtypeBytes(of: DType): number {
  return DTYPE_BYTES[of];
}

const dim = record({ name: text, lo: count, hi: count });
const buffer = record({ name: text, dtype, shape: list(text), offset: optional(count, 0) });
const param = record({
  name: text, dtype, shape: list(count), row_tile: optional(count, 0), streams: optional(count, 1),
  adapter: optional(bool, false),
});
const launchFields = { kernel: text, args: list(text), layer: optional(count, 0), row: optional(nullable(count), null), row_stride: optional(count, 0) };
const launch = record({ type: oneOf("launch"), ...launchFields });
const repeat = record({
  type: oneOf("repeat"), var: text, count, body: list(launch), first: optional(count, 0),
  stride: optional(count, 1),
});
const step: Read<Launch | Repeat> = (value, at) =>
  (value as { type?: unknown } | null)?.type === "repeat" ? repeat(value, at) : launch(value, at);
const states = record({ slots: count, layers: count, elements: count });
const phase = record({
  symbol: text, groups: text, threads: count, buffers: list(count), writes: list(count),
  shared_bytes: optional(count, 0), lanes: optional(count, 0),
});
const constant = record({ name: text, dtype, shape: list(count) });
const blob = record({ name: text, size: count, sha256: text });
const kernel = record({
  name: text, op: text, schedule: text, flops: text, bytes: text, items: text,
  dims: optional(list(text), []), phases: optional(list(phase), []),
});
const entry = record({
  name: text, symbol: text, dims: list(dim), inputs: list(buffer), outputs: list(buffer),
  arena: list(buffer), arena_bytes: count, scratch_bytes: count, steps: list(step), tile: optional(count, 1),
});
const kvCache = record({
  layers: count, kv_heads: count, head_dim: count, page_size: count, dtype: text,
  page_bytes: count, recurrent: optional(bool, false),
});

/** What a program was compiled for; the index of a folder has it too. */
export const model = record({
  model_type: text, quantization: text, fingerprint: text, vocab_size: count,
  context_window_size: whole, prefill_chunk_size: count, max_batch_size: count,
  sliding_window_size: optional(whole, -1), attention_sink_size: optional(count, 0),
  pooling: optional(nullable(oneOf("cls", "last", "mean")), null),
  normalize: optional(bool, false), causal: optional(bool, true),
});

const adapterRoom = record({ count, rank: count, modules: list(text) });
const asked = optional(nullable(whole), null);
const compileOptions = record({
  context_window_size: asked, prefill_chunk_size: asked, max_batch_size: asked,
  sliding_window_size: asked, attention_sink_size: asked,
  activations: optional(nullable(text), null), kv_dtype: optional(nullable(text), null),
  adapters: optional(nullable(adapterRoom), null),
});
const vision = record({
  image_token: count, image_size: count, patch_size: count, lead: optional(count, 1), dropped: optional(count, 1),
  merge: optional(count, 0), most: optional(count, 0), frames: optional(count, 1), window: optional(count, 0),
  axes: optional(count, 0),
});

const manifest = record({
  format: count, sterna: text, target: text, features: list(text), model, kv_cache: kvCache,
  params: list(param), entries: list(entry), kernels: list(kernel),
  constants: optional(list(constant), []), blobs: optional(list(blob), []),
  sampler: optional(nullable(entry), null), carried: optional(list(text), []),
  part_bytes: optional(count, 0),
  adapters: optional(nullable(adapterRoom), null),
  vision: optional(nullable(vision), null),
  states: optional(nullable(states), null),
  options: optional(nullable(compileOptions), null),
});

export type Buffer = Of<typeof buffer>;
export type Param = Of<typeof param>;
export type Launch = Of<typeof launch>;
export type Repeat = Of<typeof repeat>;
export type Phase = Of<typeof phase>;
export type Kernel = Of<typeof kernel>;
export type Entry = Of<typeof entry>;
export type Model = Of<typeof model>;
export type Manifest = Of<typeof manifest>;

/** A whole artifact. `constants` are the bytes of tensors known at compile time, by name. */
export interface Bundle {
  readonly manifest: Manifest;
  readonly code: string;
  readonly constants: ReadonlyMap<string, Uint8Array>;
}

/** Read a manifest's JSON; see `Manifest`. */
export function readManifest(data: Uint8Array): Manifest {
  const found = decode(data, manifest, FORMAT, "the program's manifest");
  if (found.adapters !== null) {
    throw new ArtifactError("the program has room for adapters, which browsers do not load; compile the model without");
  }
  if (found.vision !== null) {
    throw new ArtifactError("the program takes images, which this version does not; use a model of texts in browsers");
  }
  if (found.sampler !== null && found.sampler.name !== CHOOSE) {
    throw new ArtifactError(`the program's sampler is ${found.sampler.name}, which this version does not know; compile the model again`);
  }
  if (found.kv_cache.recurrent || found.states !== null) {
    throw new ArtifactError("the program is of a recurrent model, whose state this version cannot take back to an earlier token; use a model with attention in browsers");
  }
  const sizes = found.kv_cache.page_bytes > 0 && found.kv_cache.page_size > 0;
  if (!sizes || found.model.vocab_size < 1) {
    throw new ArtifactError("the program's manifest has a size of 0; compile the model again");
  }
  return found;
}

/** Read a file that `sterna compile` wrote for a target with work groups. */
export function readBundle(data: Uint8Array, title: string): Bundle {
  const damaged = (): never => {
    throw new ArtifactError(`${title} is damaged or no program of Sterna; compile the model again`);
  };
  const mark = String.fromCharCode(...data.subarray(0, MARK.length));
  if (mark !== MARK || data.length < MARK.length + 8) damaged();
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const length = Number(view.getBigUint64(MARK.length, true));
  let at = MARK.length + 8 + length + 1;
  if (at > data.length) damaged();
  const found = readManifest(data.subarray(MARK.length + 8, at - 1));
  const blobs = new Map<string, Uint8Array>();
  for (const { name, size } of found.blobs) {
    blobs.set(name, data.subarray(at, at + size));
    at += size;
  }
  const code = blobs.get(CODE);
  if (at !== data.length || code === undefined) return damaged();
  const constants = new Map<string, Uint8Array>();
  for (const { name, dtype: kind, shape } of found.constants) {
    const bytes = blobs.get(name);
    if (bytes === undefined || bytes.length !== product(shape) * dtypeBytes(kind)) return damaged();
    constants.set(name, bytes);
  }
  return { manifest: found, code: new TextDecoder().decode(code), constants };
}

/** A buffer's bytes with every dim at its upper bound. */
export function largestBytes(of: Buffer, at: Entry): number {
  const bounds = Object.fromEntries(at.dims.map((d) => [d.name, d.hi]));
  const size = product(of.shape.map((s) => evaluate(s, bounds))) * dtypeBytes(of.dtype);
  if (!Number.isSafeInteger(size) || size < 0) {
    throw new ArtifactError(`buffer ${of.name} has ${size} bytes; compile the model again`);
  }
  return size;
}

export function product(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}
