/**
 * Weights as kernels read them: checked against the manifest, rows interleaved where it says so.
 *
 * As runtime/params.py and runtime/memory.py: a tensor [N, W] of `row_tile` T becomes
 * [ceil(N / T), W, T], rows past N zero. Several streams of words are for processors that look
 * ahead in each, and a program for WebGPU has one. Bytes go where they are given, once.
 */

import { dtypeBytes, product } from "./artifact.js";
import type { Manifest, Param } from "./artifact.js";
import { ArtifactError } from "./errors.js";
import type { Tensor } from "./web_index.js";

/** The shape a weight has in memory. */
export function packedShape(param: Param): readonly number[] {
  const [rows, width] = param.shape;
  if (param.row_tile === 0 || param.shape.length !== 2) return param.shape;
  return [Math.ceil((rows ?? 0) / param.row_tile), width ?? 0, param.row_tile];
}

export function packedBytes(param: Param): number {
  return product(packedShape(param)) * dtypeBytes(param.dtype);
}

/**
 * The tensor of each param; ArtifactError where the folder's weights are not the program's, or are
 * to lie as no program for WebGPU has them.
 */
export function matchParams(manifest: Manifest, tensors: readonly Tensor[]): Map<Tensor, Param> {
  const byName = new Map(tensors.map((t) => [t.name, t]));
  return new Map(
    manifest.params.map((param) => {
      if (param.streams !== 1) {
        throw new ArtifactError(
          `the program wants the weight ${param.name} in ${param.streams} streams, which browsers do not make; compile the model for WebGPU`,
        );
      }
      const tensor = byName.get(param.name);
      const alike = tensor?.dtype === param.dtype && tensor.shape.join() === param.shape.join();
      if (tensor === undefined || !alike) {
        const found = tensor === undefined ? "does not have" : `has as ${tensor.dtype}[${tensor.shape.join()}]`;
        throw new ArtifactError(
          `the program wants a weight ${param.name} as ${param.dtype}[${param.shape.join()}], which the model's folder ${found}; compile the model again`,
        );
      }
      return [tensor, param];
    }),
  );
}

/** Write a tensor's bytes, as they are in its file, into zeroed memory of `packedBytes`. */
export function pack(bytes: Uint8Array, tensor: Tensor, param: Param, out: Uint8Array): void {
  const source = tensor.encoding === "raw" ? bytes : widened(bytes);
  const [blocks, width, tile] = packedShape(param);
  if (param.row_tile === 0 || blocks === undefined || width === undefined || tile === undefined) {
    out.set(source);
    return;
  }
  const size = dtypeBytes(param.dtype);
  interleave(elements(source, size), elements(out, size), param.shape[0] ?? 0, width, tile);
}

type Elements = Uint8Array | Uint16Array | Uint32Array | BigUint64Array;

function interleave(from: Elements, to: Elements, rows: number, width: number, tile: number): void {
  for (let row = 0; row < rows; row++) {
    let place = Math.floor(row / tile) * width * tile + (row % tile);
    const start = row * width;
    for (let w = 0; w < width; w++, place += tile) to[place] = from[start + w] as never;
  }
}

/** Bytes as elements of a size; a copy where they do not lie on a whole multiple of it. */
function elements(bytes: Uint8Array, size: number): Elements {
  const kinds = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array, 8: BigUint64Array } as const;
  const kind = kinds[size as keyof typeof kinds];
  const fits = bytes.byteOffset % size === 0 ? bytes : bytes.slice();
  return new kind(fits.buffer as ArrayBuffer, fits.byteOffset, fits.length / size);
}

/** f32 of which a file keeps the upper 16 bits. */
function widened(bytes: Uint8Array): Uint8Array {
  const halves = elements(bytes, 2) as Uint16Array;
  return new Uint8Array(Uint32Array.from(halves, (half) => half << 16).buffer);
}
