/**
 * A program on the device: the manifest's launches, every step one submission, or a few short ones.
 *
 * All memory is taken at load: a buffer for each weight, the cache, inputs and outputs, and one
 * arena that intermediate tensors are views of. Bind groups are made once. A step writes what has
 * changed of its inputs and sizes, launches everything in order, and reads back the token. Kernels
 * that only drawn tokens need are compiled last, while others work; where they would hold the device
 * for long, logits are read and drawn from here instead, to the same tokens. As runtime/work_groups.py.
 */

import { BINDABLE, alone, ioBytes } from "./alone.js";
import { KV_CACHE, dtypeBytes, largestBytes } from "./artifact.js";
import type { Bundle, Entry, Manifest, Param, Phase } from "./artifact.js";
import { choose, prepare } from "./batch.js";
import type { StepInput } from "./batch.js";
import { MOST_GROUPS, USAGE } from "./device.js";
import type { Device, View } from "./device.js";
import { ArtifactError, RequestError } from "./errors.js";
import type { Clock, Executable } from "./executable.js";
import { dimValues, expand } from "./expand.js";
import type { Call } from "./expand.js";
import { Pace } from "./pace.js";
import type { Costly } from "./pace.js";
import { pack, packedBytes } from "./params.js";
import { sampleRows } from "./sampling.js";
import type { SampleInput } from "./sampling.js";
import type { Dims, Size } from "./sizes.js";
import type { Tensor } from "./web_index.js";

const SLOT = BINDABLE; // bytes between the sizes of launches
const SAMPLED = "sampled";
const GROWING = new Set(["n", "t"]); // dims that are more where a step has more tokens

interface Prepared {
  readonly call: Call;
  readonly pipeline: GPUComputePipeline;
  readonly bindings: GPUBindGroup;
}

/** A launch of a step, sized. */
interface Sized extends Costly {
  readonly prepared: Prepared;
  readonly count: number; // groups
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
  room = 1;
  private readonly places = new Map<string, View>();
  private readonly weightBytes = new Map<string, number>();
  private readonly inputs = new Map<string, Int32Array | Uint32Array | Float32Array>(); // as last written
  private readonly functions = new Map<string, GPUComputePipeline>();
  private readonly staging: GPUBuffer;
  private ready = new Map<Entry, Ready>();
  private rows = 0; // logit rows of the last step
  private pace = new Pace(0);
  private readonly late: ReadonlySet<string>; // symbols of kernels that only drawn tokens need
  private drawing = Promise.resolve(); // until these are there

  private constructor(
    private readonly device: Device,
    bundle: Bundle,
    readonly numPages: number,
    private readonly clock: Clock,
  ) {
    this.manifest = alone(bundle.manifest);
    this.late = drawingOnly(this.manifest);
    this.staging = device.buffer({ size: SLOT, usage: USAGE.mapRead | USAGE.copyDst });
  }

  /**
   * Take all memory but the weights', which `upload` brings one by one, and begin to compile the
   * kernels; `finish` ends the load. `compiled` fails as soon as a kernel is refused.
   */
  static async open(
    device: Device,
    bundle: Bundle,
    numPages: number,
    clock: Clock = () => performance.now(),
  ): Promise<{ program: Program; compiled: Promise<void> }> {
    const program = new Program(device, bundle, numPages, clock);
    const { manifest } = program;
    const compiled = program.compile(bundle.code);
    compiled.catch(() => undefined); // told to who waits for it
    const cache = numPages * manifest.kv_cache.page_bytes;
    await device.checked(`the model's cache and working memory`, async () => {
      program.places.set(KV_CACHE, device.allocate(cache));
      for (const [name, bytes] of bundle.constants) {
        program.places.set(name, device.allocate(bytes.length, (memory) => memory.set(bytes)));
      }
      for (const [name, size] of ioBytes(manifest)) program.places.set(name, device.allocate(size));
    });
    return { program, compiled };
  }

  /** Copy a weight to the device, laid out as its kernels read it. */
  upload(bytes: Uint8Array, tensor: Tensor, param: Param): void {
    const place = this.device.allocate(packedBytes(param), (memory) => pack(bytes, tensor, param, memory));
    this.places.set(param.name, place);
    this.weightBytes.set(param.name, packedBytes(param));
  }

  /** Make the bind groups, once every weight and every kernel is there. */
  async finish(): Promise<void> {
    const { entries, sampler } = this.manifest;
    const launched = sampler === null ? entries : [...entries, sampler];
    const bytes = Math.max(...launched.map((e) => e.arena_bytes));
    const arena = await this.device.checked("the model's working memory", async () => this.device.allocate(bytes));
    await this.bind(launched, arena, this.late);
    this.drawing = this.drawing.then(() => this.bind(sampler === null ? [] : [sampler], arena, new Set()));
    this.drawing.catch(() => undefined); // told to who draws
    this.pace = new Pace(await this.device.emptyWait(this.clock));
  }

  async step(batch: StepInput, sample: SampleInput | null): Promise<Int32Array | null> {
    const { inputs, dims } = prepare(batch, this.manifest, this.numPages);
    this.rows = dims["r"] ?? 0;
    const { sampler } = this.manifest;
    const drawn = sample?.inverse_temperature.some((t) => t !== 0) === true;
    if (drawn) await this.drawing;
    const context = (dims["p"] ?? 0) * this.manifest.kv_cache.page_size;
    const launches = this.sized(choose(this.manifest.entries, dims), inputs, { ...dims, context });
    if (sample === null) return this.run(upToCache(launches), 0);
    if (sampler !== null) {
      const { vocabulary, ...given } = sample;
      const own = { r: sample.rows.length, e: sample.edit_ids.length, v: vocabulary, d: drawn ? 1 : 0 };
      const choosing = this.sized(sampler, given, own);
      const drawing = choosing.filter(({ kernel }) => this.late.has(kernel));
      if (!this.pace.tooLong(drawing)) return this.run([...launches, ...choosing], own.r);
    }
    await this.run(launches, 0);
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

  /** Compile all kernels but those that only drawn tokens need; these are begun with, and not waited for. */
  private async compile(code: string): Promise<void> {
    const phases = this.manifest.kernels.flatMap((k) => k.phases);
    const add = async (wanted: readonly Phase[]): Promise<void> => {
      for (const [symbol, made] of await this.device.compile(code, wanted)) this.functions.set(symbol, made);
    };
    await add(phases.filter(({ symbol }) => !this.late.has(symbol)));
    this.drawing = add(phases.filter(({ symbol }) => this.late.has(symbol)));
    this.drawing.catch(() => undefined); // told to who draws
  }

  /** Bind groups for the launches of entries, but for those of some symbols. */
  private bind(entries: readonly Entry[], arena: View, without: ReadonlySet<string>): Promise<void> {
    return this.device.checked("the model's launches", async () => {
      for (const entry of entries) this.ready.set(entry, this.prepare(entry, arena, without));
    });
  }

  /** The launches of an entry at this step's sizes, its inputs written. */
  private sized(
    entry: Entry,
    inputs: Readonly<Record<string, Int32Array | Uint32Array | Float32Array>>,
    dims: Dims,
  ): Sized[] {
    const ready = this.ready.get(entry);
    if (ready === undefined) throw new ArtifactError("the model was not loaded to its end");
    for (const { name } of entry.inputs) {
      const values = inputs[name];
      if (values !== undefined) this.write(name, values);
    }
    this.writeSizes(ready, dims);
    const known = new Map<Size, number>(); // layers have the same sizes
    const at = (size: Size): number => {
      const value = known.get(size) ?? size(dims);
      known.set(size, value);
      return value;
    };
    const all = ready.launches.map((prepared): Sized => {
      const { phase, groups, work } = prepared.call;
      return { prepared, kernel: phase.symbol, count: at(groups), work: at(work) };
    });
    return all.filter(({ count }) => count > 0);
  }

  /** Launch everything in order, as few submissions as the pace allows; `rows` tokens of the last. */
  private async run(launches: readonly Sized[], rows: number): Promise<Int32Array | null> {
    let tokens: Int32Array | null = null;
    for (let from = 0, to = 0; from < launches.length; from = to) {
      to = this.pace.cut(launches, from);
      const part = launches.slice(from, to);
      const reads = rows > 0 && to === launches.length;
      const began = this.clock();
      this.submit(part, reads ? 4 * rows : 0);
      if (reads) tokens = new Int32Array(await this.device.read(this.staging, 4 * rows));
      else await this.device.done();
      this.pace.took(part, this.clock() - began);
    }
    const growing = launches.filter(({ prepared }) => prepared.call.dims.some((dim) => GROWING.has(dim)));
    this.room = this.pace.aim / Math.max(...growing.map((launch) => this.pace.expected(launch)), 0);
    return tokens;
  }

  /** One submission; `bytes` of the chosen tokens are copied to where they can be read. */
  private submit(launches: readonly Sized[], bytes: number): void {
    const encoder = this.device.gpu.createCommandEncoder();
    const pass = encoder.beginComputePass();
    for (const { prepared, count } of launches) {
      pass.setPipeline(prepared.pipeline);
      pass.setBindGroup(0, prepared.bindings);
      // More than fit side by side become a grid, which kernels number row by row.
      pass.dispatchWorkgroups(Math.min(count, MOST_GROUPS), Math.ceil(count / MOST_GROUPS));
    }
    pass.end();
    if (bytes > 0) {
      const from = this.place(SAMPLED);
      encoder.copyBufferToBuffer(from.buffer, from.offset, this.staging, 0, bytes);
    }
    this.device.gpu.queue.submit([encoder.finish()]);
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

  private prepare(entry: Entry, arena: View, without: ReadonlySet<string>): Ready {
    const own = new Map(
      entry.arena.map((b) => [b.name, this.device.view(arena, b.offset, largestBytes(b, entry))]),
    );
    const calls = expand(entry, this.manifest).filter((call) => !without.has(call.phase.symbol));
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

/** Without what comes after the last keys and values are written: who reads no logits needs none. */
function upToCache(launches: readonly Sized[]): readonly Sized[] {
  const writes = ({ phase, buffers }: Call): boolean => phase.writes.some((i) => buffers[i] === KV_CACHE);
  return launches.slice(0, launches.findLastIndex(({ prepared }) => writes(prepared.call)) + 1);
}

/** Symbols of what is launched for drawn tokens only. */
function drawingOnly({ sampler, ...manifest }: Manifest): Set<string> {
  if (sampler === null) return new Set();
  const largest = { r: 1, e: 1, v: 1, d: 0 };
  const calls = expand(sampler, { ...manifest, sampler });
  return new Set(calls.filter((call) => call.groups(largest) === 0).map((call) => call.phase.symbol));
}

function sizesKey(call: Call): string {
  return `${call.dims.join()} ${call.dims.includes("layer") ? call.layer : ""}`;
}

function equal(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

