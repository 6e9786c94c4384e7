/**
 * A program as browsers run it: one sequence, and logits of one of its tokens.
 *
 * In: a manifest for as many sequences as it was compiled for. Out: the same with bounds, and so with
 * buffers, for one; the index of a folder counts memory so. Knows no device.
 */

import { largestBytes } from "./artifact.js";
import type { Entry, Manifest } from "./artifact.js";

export const BINDABLE = 256; // bytes: where every device can bind
const ONE: ReadonlySet<string> = new Set(["b", "r"]);

export function alone(manifest: Manifest): Manifest {
  const { entries, sampler } = manifest;
  return { ...manifest, entries: entries.map(bounded), sampler: sampler && close(bounded(sampler)) };
}

function bounded(entry: Entry): Entry {
  const dims = entry.dims.map((d) => (ONE.has(d.name) ? { ...d, hi: Math.min(d.hi, 1) } : d));
  return { ...entry, dims };
}

/** What the sampler keeps between its launches, side by side: nothing of it shares a place. */
function close(sampler: Entry): Entry {
  let end = 0;
  const arena = sampler.arena.map((buffer) => {
    const offset = end;
    end += Math.ceil(largestBytes(buffer, sampler) / BINDABLE) * BINDABLE;
    return { ...buffer, offset };
  });
  return { ...sampler, arena, arena_bytes: end };
}

/** Bytes of each input and output at the largest dims; entries share those of equal name. */
export function ioBytes(manifest: Manifest): Map<string, number> {
  const found = new Map<string, number>();
  const entries = manifest.sampler === null ? manifest.entries : [...manifest.entries, manifest.sampler];
  for (const entry of entries) {
    for (const buffer of [...entry.inputs, ...entry.outputs]) {
      found.set(buffer.name, Math.max(largestBytes(buffer, entry), found.get(buffer.name) ?? 0));
    }
  }
  return found;
}
