/**
 * The launch program of an entry, one launch after the other: repeats unrolled, layers filled in.
 *
 * In: an entry and the kernels. Out: launches with the names of their buffers, and the sizes that
 * a step's dims give them. As runtime/work_groups.py; knows no device.
 */

import type { Entry, Kernel, Launch, Manifest, Phase } from "./artifact.js";
import { ArtifactError } from "./errors.js";
import { compile } from "./sizes.js";
import type { Dims, Size } from "./sizes.js";

const LAYER = "layer";

/** One launch of work groups, with everything but the sizes of the step. */
export interface Call {
  readonly phase: Phase;
  readonly buffers: readonly string[]; // names, in the order of the kernel's bindings
  readonly dims: readonly string[];
  readonly layer: number;
  readonly groups: Size;
  /** Operations and bytes of its kernel. */
  readonly work: Size;
}

/** All launches of an entry in order; ArtifactError for a kernel that is not there. */
export function expand(entry: Entry, manifest: Manifest): Call[] {
  const kernels = new Map(manifest.kernels.map((k) => [k.name, k]));
  const sizes = new Map<string, Size>();
  const size = (text: string): Size => {
    const known = sizes.get(text) ?? compile(text);
    sizes.set(text, known);
    return known;
  };
  const calls = (launch: Launch, layer: number): Call[] => {
    const kernel = kernels.get(launch.kernel);
    if (kernel === undefined) {
      throw new ArtifactError(`the program launches a kernel ${launch.kernel} that it does not have; compile the model again`);
    }
    const work = size(`(${kernel.flops}) + (${kernel.bytes})`);
    return kernel.phases.map((phase) => call(kernel, phase, launch, layer, size(phase.groups), work));
  };
  return entry.steps.flatMap((step) => {
    if (step.type === "launch") return calls(step, 0);
    const turns = Array.from({ length: step.count }, (_, i) => step.first + i * step.stride);
    return turns.flatMap((first) => step.body.flatMap((launch) => calls(launch, first + launch.layer)));
  });
}

function call(kernel: Kernel, phase: Phase, launch: Launch, layer: number, groups: Size, work: Size): Call {
  const names = launch.args.map((arg) => arg.replaceAll("{i}", String(layer)));
  const buffers = phase.buffers.map((i) => {
    const name = names[i];
    if (name === undefined) {
      throw new ArtifactError(`kernel ${kernel.name} takes a buffer ${i} that no launch gives; compile the model again`);
    }
    return name;
  });
  return { phase, buffers, dims: kernel.dims, layer, groups, work };
}

/** The numbers that a launch brings besides its buffers. */
export function dimValues(of: Call, dims: Dims): number[] {
  return of.dims.map((name) => {
    const value = name === LAYER ? of.layer : dims[name];
    if (value === undefined) {
      throw new ArtifactError(`kernel ${of.phase.symbol} takes a dim ${name} that this version does not know`);
    }
    return value;
  });
}
