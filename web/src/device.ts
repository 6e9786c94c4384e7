/**
 * WebGPU as a device: the adapter that is here, what it offers, its buffers and pipelines.
 *
 * The dozen calls of the Python side's work_groups.Device, as the browser has them. Knows no model;
 * what a program needs was compared with the adapter's offer before the device is opened.
 */

import type { Phase } from "./artifact.js";
import { ArtifactError, DeviceError, DeviceLost, NoWebGPU, OutOfMemory } from "./errors.js";
import type { Offer, Program } from "./web_index.js";

const MODULE = "//// module "; // as the renderer writes it, before each launch's module
const ENTRY = "main"; // what functions are called here, so that equal ones are compiled once
export const MOST_GROUPS = 65535;

/** The bits that browsers call GPUBufferUsage and GPUMapMode. */
export const USAGE = { mapRead: 1, copySrc: 4, copyDst: 8, uniform: 64, storage: 128 } as const;
const READ = 1;

/** Part of a buffer, as kernels are given it. */
export interface View {
  readonly buffer: GPUBuffer;
  readonly offset: number;
  readonly size: number;
}

/** The adapter and its offer; NoWebGPU says what is missing. */
export async function findAdapter(): Promise<{ adapter: GPUAdapter; offer: Offer }> {
  if (globalThis.navigator?.gpu === undefined) {
    const insecure = globalThis.isSecureContext === false;
    throw new NoWebGPU(
      insecure
        ? "this page has no WebGPU because its address is not secure; open it over https, or on localhost"
        : "this browser has no WebGPU; use a current Chrome, Edge, Safari or Firefox, or switch WebGPU on in its settings",
    );
  }
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  if (adapter === null) {
    throw new NoWebGPU(
      "the browser has WebGPU and no adapter for it: update the graphics driver, or switch hardware acceleration on in the browser's settings",
    );
  }
  return { adapter, offer: offerOf(adapter) };
}

function offerOf(adapter: GPUAdapter): Offer {
  const { info, limits } = adapter;
  const older = adapter as { isFallbackAdapter?: boolean }; // where browsers had it first
  const told = [info.vendor, info.architecture, info.description].filter((part) => part !== "");
  const numbers: Record<string, number> = {};
  for (const name in limits) {
    const value: unknown = limits[name as keyof GPUSupportedLimits];
    if (typeof value === "number") numbers[name] = value;
  }
  return {
    name: told.join(" ") || "the WebGPU adapter",
    features: new Set(adapter.features),
    limits: numbers,
    imitated: info.isFallbackAdapter ?? older.isFallbackAdapter ?? false,
  };
}

export class Device {
  /** Why the device went away; null while it is there. */
  lost: string | null = null;
  private closed = false;

  private constructor(
    readonly gpu: GPUDevice,
    readonly name: string,
  ) {
    void gpu.lost.then((info) => (this.lost = info.message || info.reason || "the driver did not say why"));
  }

  /** A device with what a program needs. */
  static async open(adapter: GPUAdapter, offer: Offer, program: Program): Promise<Device> {
    const requiredLimits: Record<string, number> = {};
    for (const name of program.limits.keys()) requiredLimits[name] = offer.limits[name] ?? 0;
    try {
      const requiredFeatures = [...program.features] as GPUFeatureName[];
      return new Device(await adapter.requestDevice({ requiredFeatures, requiredLimits }), offer.name);
    } catch (error) {
      throw new DeviceError(`${offer.name} could not be opened: ${(error as Error).message}; reload the page`);
    }
  }

  /** The functions of an artifact by symbol, compiled side by side, equal ones once. */
  async compile(code: string, phases: readonly Phase[]): Promise<Map<string, GPUComputePipeline>> {
    const [prelude = "", ...modules] = code.split(MODULE);
    const texts = new Map(modules.map((m) => [m.slice(0, m.indexOf("\n")), m.slice(m.indexOf("\n") + 1)]));
    const made = new Map<string, Promise<GPUComputePipeline>>();
    const found = [...new Set(phases.map((p) => p.symbol))].map(async (symbol) => {
      const text = texts.get(symbol);
      if (text === undefined) throw new ArtifactError(`the program has no module ${symbol}; compile the model again`);
      const source = prelude + text.replace(`fn ${symbol}(`, `fn ${ENTRY}(`);
      const pipeline = made.get(source) ?? this.pipeline(source, symbol);
      made.set(source, pipeline);
      return [symbol, await pipeline] as const;
    });
    return new Map(await Promise.all(found));
  }

  private async pipeline(code: string, symbol: string): Promise<GPUComputePipeline> {
    const module = this.gpu.createShaderModule({ code, label: symbol });
    try {
      const compute = { module, entryPoint: ENTRY };
      return await this.gpu.createComputePipelineAsync({ layout: "auto", compute, label: symbol });
    } catch (error) {
      if (this.lost !== null) throw this.gone();
      const { messages } = await module.getCompilationInfo();
      const first = messages.find((m) => m.type === "error");
      const told = first === undefined ? (error as Error).message : `${first.message} (line ${first.lineNum})`;
      const why = told.slice(0, 1000);
      throw new ArtifactError(`the WebGPU of ${this.name} refused kernel ${symbol}: ${why}`);
    }
  }

  /** Zeroed memory for kernels. `fill` writes it before anything runs. */
  allocate(size: number, fill?: (bytes: Uint8Array) => void): View {
    const usage = USAGE.storage | USAGE.copyDst | USAGE.copySrc;
    const padded = roundUp(Math.max(size, 4), 16);
    const buffer = this.buffer({ size: padded, usage, mappedAtCreation: fill !== undefined });
    if (fill !== undefined) {
      fill(new Uint8Array(buffer.getMappedRange()));
      buffer.unmap();
    }
    return { buffer, offset: 0, size: padded };
  }

  buffer(wanted: GPUBufferDescriptor): GPUBuffer {
    try {
      return this.gpu.createBuffer(wanted);
    } catch (error) {
      if (error instanceof RangeError) throw this.full(`${wanted.size} bytes`);
      throw error;
    }
  }

  view(of: View, offset: number, size: number): View {
    return { buffer: of.buffer, offset: of.offset + offset, size: roundUp(Math.max(size, 4), 4) };
  }

  write(to: View, data: Int32Array | Uint32Array | Float32Array, offset = 0): void {
    this.gpu.queue.writeBuffer(to.buffer, to.offset + offset, data as Int32Array<ArrayBuffer>);
  }

  /** Run a task that allocates; OutOfMemory or DeviceError where the device refuses. */
  async checked<T>(what: string, task: () => Promise<T>): Promise<T> {
    this.gpu.pushErrorScope("out-of-memory");
    this.gpu.pushErrorScope("validation");
    let result: T;
    let invalid: GPUError | null = null;
    let full: GPUError | null = null;
    try {
      result = await task();
    } finally {
      invalid = await this.gpu.popErrorScope().catch(() => null);
      full = await this.gpu.popErrorScope().catch(() => null);
    }
    if (this.lost !== null) throw this.gone();
    if (full !== null) throw this.full(what);
    if (invalid !== null) throw new DeviceError(`${this.name} refused ${what}: ${invalid.message.slice(0, 1000)}`);
    return result;
  }

  /** Bytes that were copied into a staging buffer, once all that was submitted before has run. */
  async read(staging: GPUBuffer, size: number): Promise<ArrayBuffer> {
    try {
      await staging.mapAsync(READ, 0, roundUp(size, 4));
      const data = staging.getMappedRange(0, roundUp(size, 4)).slice(0, size);
      staging.unmap();
      return data;
    } catch (error) {
      await Promise.race([this.gpu.lost, new Promise((resolve) => setTimeout(resolve, 100))]);
      throw this.lost === null ? error : this.gone();
    }
  }

  async done(): Promise<void> {
    await this.gpu.queue.onSubmittedWorkDone();
    await Promise.resolve(); // where the device was lost, that is told first
    if (this.lost !== null) throw this.gone();
  }

  /** How long a submission of nothing takes to be told: the best of a few. */
  async emptyWait(clock: () => number): Promise<number> {
    await this.done();
    let best = Infinity;
    for (let i = 0; i < 2; i++) {
      const began = clock();
      this.gpu.queue.submit([]);
      await this.done();
      best = Math.min(best, clock() - began);
    }
    return best;
  }

  gone(): DeviceLost {
    return new DeviceLost(
      this.closed
        ? "the model was unloaded; load it again"
        : `the GPU was lost (${this.lost}); load the model again, or one that takes less memory`,
    );
  }

  private full(what: string): OutOfMemory {
    return new OutOfMemory(
      `${this.name} has no memory left for ${what}; close other pages, or use a smaller model or context`,
    );
  }

  close(): void {
    this.closed = true;
    this.gpu.destroy();
  }
}

export function roundUp(value: number, to: number): number {
  return Math.ceil(value / to) * to;
}
