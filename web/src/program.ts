/**
 * A program on the device: the manifest's launches, every step one submission.
 *
 * All memory is taken at load: a buffer for each weight, the cache, inputs and outputs, and one
 * arena that intermediate tensors are views of. Bind groups are made once. A step writes what has
 * changed of its inputs and sizes, launches everything in order, and reads back the token.
 * As runtime/work_groups.py.
 */

import { KV_CACHE, dtypeBytes, largestBytes } from "./artifact.js";
import type { Bundle, Entry, Manifest, Param } from "./artifact.js";
import { choose, prepare } from "./batch.js";
import type { StepInput } from "./batch.js";
import { MOST_GROUPS, USAGE } from "./device.js";
import type { Device, View } from "./device.js";
import { ArtifactError, RequestError } from "./errors.js";
import type { Executable } from "./executable.js";
import { dimValues, expand } from "./expand.js";
import type { Call } from "./expand.js";
import { pack, packedBytes } from "./params.js";
import { sampleRows } from "./sampling.js";
import type { SampleInput } from "./sampling.js";
import type { Dims } from "./sizes.js";
import type { Tensor } from "./web_index.js";

const SLOT = 256; // bytes between the sizes of launches: every device can bind there
const SAMPLED = "sampled";

interface Prepared {
  readonly call: Call;
  readonly pipeline: GPUComputePipeline;
  readonly bindings: GPUBindGroup;
}

/** An entry with its bind groups. `slots`: where in `sizes` each distinct list of dims lies. */
interface Ready {
  readonly entry: Entry;
  readonly launches: readonly Prepared[];
  readonly slots: readonly Call[];
  readonly sizes: View;
  readonly written: Int32Array;
}

export class Program implements Executable {
  readonly manifest: Manifest;
  private readonly places = new Map<string, View>();
  private readonly weightBytes = new Map<string, number>();
  private readonly inputs = new Map<string, Int32Array | Uint32Array | Float32Array>(); // as last written
  private readonly functions: Map<string, GPUComputePipeline>;
  private readonly staging: GPUBuffer;
  private ready = new Map<Entry, Ready>();
  private rows = 0; // logit rows of the last step

  private constructor(
    private readonly device: Device,
    bundle: Bundle,
    readonly numPages: number,
    functions: Map<string, GPUComputePipeline>,
  ) {
    this.manifest = bundle.manifest;
    this.functions = functions;
    this.staging = device.buffer({ size: SLOT, usage: USAGE.mapRead | USAGE.copyDst });
  }

  /**
   * Compile the kernels and take all memory but the weights', which `upload` brings one by one;
   * `finish` ends the load.
   */
  static async open(device: Device, bundle: Bundle, numPages: number): Promise<Program> {
    const { manifest } = bundle;
    const phases = manifest.kernels.flatMap((k) => k.phases);
    const functions = await device.compile(bundle.code, phases);
    const made = new Program(device, bundle, numPages, functions);
    const cache = numPages * manifest.kv_cache.page_bytes;
    await device.checked(`the model's cache and working memory`, async () => {
      made.places.set(KV_CACHE, device.allocate(cache));
      for (const [name, bytes] of bundle.constants) {
        made.places.set(name, device.allocate(bytes.length, (memory) => memory.set(bytes)));
      }
      for (const [name, size] of ioBytes(manifest)) made.places.set(name, device.allocate(size));
    });
    return made;
  }

  /** Copy a weight to the device, laid out as its kernels read it. */
  upload(bytes: Uint8Array, tensor: Tensor, param: Param): void {
    const place = this.device.allocate(packedBytes(param), (memory) => pack(bytes, tensor, param, memory));
    this.places.set(param.name, place);
    this.weightBytes.set(param.name, packedBytes(param));
  }

  /** Make the bind groups, once every weight is there. */
  async finish(): Promise<void> {
    const { entries, sampler } = this.manifest;
    const programs = sampler === null ? entries : [...entries, sampler];
    await this.device.checked("the model's launches", async () => {
      const arena = this.device.allocate(Math.max(...programs.map((e) => e.arena_bytes)));
      for (const entry of programs) {
        this.ready.set(entry, this.prepare(entry, arena));
      }
    });
  }

  async step(batch: StepInput, sample: SampleInput | null): Promise<Int32Array | null> {
    const { inputs, dims } = prepare(batch, this.manifest, this.numPages);
    const encoder = this.device.gpu.createCommandEncoder();
    this.rows = dims["r"] ?? 0;
    this.encode(encoder, choose(this.manifest.entries, dims), inputs, dims);
    const { sampler } = this.manifest;
    const chosen = sample !== null && sampler !== null;
    if (chosen) {
      const { vocabulary, ...given } = sample;
      const drawn = sample.inverse_temperature.some((t) => t !== 0) ? 1 : 0;
      const own = { r: sample.rows.length, e: sample.edit_ids.length, v: vocabulary, d: drawn };
      this.encode(encoder, sampler, given, own);
      const from = this.place(SAMPLED);
      encoder.copyBufferToBuffer(from.buffer, from.offset, this.staging, 0, 4 * own.r);
    }
    this.device.gpu.queue.submit([encoder.finish()]);
    if (sample === null) {
      await this.device.done();
      return null;
    }
    if (chosen) return new Int32Array(await this.device.read(this.staging, 4 * sample.rows.length));
    return sampleRows(await this.logits(), this.manifest.model.vocab_size, sample);
  }

  async logits(): Promise<Float32Array> {
    const from = this.place("logits");
    const size = this.rows * this.manifest.model.vocab_size * dtypeBytes("f32");
    const usage = USAGE.mapRead | USAGE.copyDst;
    const staging = this.device.buffer({ size, usage });
    const encoder = this.device.gpu.createCommandEncoder();
    encoder.copyBufferToBuffer(from.buffer, from.offset, staging, 0, size);
    this.device.gpu.queue.submit([encoder.finish()]);
    try {
      return new Float32Array(await this.device.read(staging, size));
    } finally {
      staging.destroy();
    }
  }

  close(): void {
    this.device.close();
  }

  private encode(
    encoder: GPUCommandEncoder,
    entry: Entry,
    inputs: Readonly<Record<string, Int32Array | Uint32Array | Float32Array>>,
    dims: Dims,
  ): void {
    const ready = this.ready.get(entry);
    if (ready === undefined) throw new ArtifactError("the model was not loaded to its end");
    for (const { name } of entry.inputs) {
      const values = inputs[name];
      if (values !== undefined) this.write(name, values);
    }
    this.writeSizes(ready, dims);
    const pass = encoder.beginComputePass();
    const groups = new Map<unknown, number>();
    for (const { call, pipeline, bindings } of ready.launches) {
      const count = groups.get(call.groups) ?? call.groups(dims);
      groups.set(call.groups, count);
      if (count <= 0) continue;
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, bindings);
      // More than fit side by side become a grid, which kernels number row by row.
      pass.dispatchWorkgroups(Math.min(count, MOST_GROUPS), Math.ceil(count / MOST_GROUPS));
    }
    pass.end();
  }

  /** Write an input unless it is there already, as most are from token to token. */
  private write(name: string, values: Int32Array | Uint32Array | Float32Array): void {
    const last = this.inputs.get(name);
    if (values.length === 0 || (last !== undefined && equal(last, values))) return;
    const place = this.place(name);
    if (values.byteLength > place.size) {
      throw new RequestError(`${name} of a step has ${values.length} numbers, more than the program was compiled for`);
    }
    this.device.write(place, values);
    this.inputs.set(name, values.slice());
  }

  private writeSizes(ready: Ready, dims: Dims): void {
    const values = new Int32Array(ready.written.length);
    ready.slots.forEach((call, i) => values.set(dimValues(call, dims), (i * SLOT) / 4));
    if (equal(values, ready.written)) return;
    this.device.write(ready.sizes, values);
    ready.written.set(values);
  }

  private prepare(entry: Entry, arena: View): Ready {
    const own = new Map(
      entry.arena.map((b) => [b.name, this.device.view(arena, b.offset, largestBytes(b, entry))]),
    );
    const calls = expand(entry, this.manifest);
    const slots = new Map<string, { at: number; call: Call }>();
    for (const call of calls) {
      const key = sizesKey(call);
      if (!slots.has(key)) slots.set(key, { at: slots.size, call });
    }
    const usage = USAGE.uniform | USAGE.copyDst;
    const size = Math.max(1, slots.size) * SLOT;
    const sizes: View = { buffer: this.device.buffer({ size, usage }), offset: 0, size };
    const launches = calls.map((call) => {
      const at = (slots.get(sizesKey(call))?.at ?? 0) * SLOT;
      return this.launch(call, own, { ...sizes, offset: at, size: SLOT });
    });
    const distinct = [...slots.values()].map((slot) => slot.call);
    return { entry, launches, slots: distinct, sizes, written: new Int32Array(size / 4) };
  }

  private launch(call: Call, own: ReadonlyMap<string, View>, sizes: View): Prepared {
    const pipeline = this.functions.get(call.phase.symbol);
    if (pipeline === undefined) throw new ArtifactError(`the program has no kernel ${call.phase.symbol}; compile the model again`);
    const views = call.buffers.map((name, i) => {
      const whole = own.get(name) ?? this.place(name);
      const same = call.buffers.filter((other) => other === name).length;
      const bytes = this.weightBytes.get(name);
      if (same < 2 || bytes === undefined || bytes <= this.manifest.part_bytes) return whole;
      const at = call.buffers.slice(0, i).filter((other) => other === name).length * this.manifest.part_bytes;
      const rest = Math.min(this.manifest.part_bytes, bytes - at);
      if (this.manifest.part_bytes === 0 || rest <= 0) {
        throw new ArtifactError(`the program binds a part of ${name} that it does not have; compile the model again`);
      }
      return { ...whole, offset: whole.offset + at, size: rest };
    });
    if (call.dims.length > 0) views.push(sizes);
    const bindings = this.device.gpu.createBindGroup({
      layout: pipeline.getBindGroupLayout(0),
      entries: views.map((resource, binding) => ({ binding, resource: { ...resource } })),
    });
    return { call, pipeline, bindings };
  }

  private place(name: string): View {
    const found = this.places.get(name);
    if (found === undefined) throw new ArtifactError(`the program reads ${name}, which nothing holds; compile the model again`);
    return found;
  }
}

/** Bytes of each input and output at the largest dims; entries share those of equal name. */
function ioBytes(manifest: Manifest): Map<string, number> {
  const found = new Map<string, number>();
  const entries = manifest.sampler === null ? manifest.entries : [...manifest.entries, oneRow(manifest.sampler)];
  for (const entry of entries) {
    for (const buffer of [...entry.inputs, ...entry.outputs]) {
      found.set(buffer.name, Math.max(largestBytes(buffer, entry), found.get(buffer.name) ?? 0));
    }
  }
  return found;
}

/** The sampler as this runtime asks it: one row, whose list of edits names no token twice. */
function oneRow(sampler: Entry): Entry {
  const most = new Map(sampler.dims.map((d) => [d.name, d.hi]));
  const bounds: Record<string, number> = { r: 1, e: most.get("v") ?? 1 };
  return { ...sampler, dims: sampler.dims.map((d) => ({ ...d, hi: Math.min(d.hi, bounds[d.name] ?? d.hi) })) };
}

function sizesKey(call: Call): string {
  return `${call.dims.join()} ${call.dims.includes("layer") ? call.layer : ""}`;
}

function equal(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

