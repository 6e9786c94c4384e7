/**
 * The index of a folder that a browser fetches, and which of its programs an adapter runs.
 *
 * `sterna-web.json` lists every other file with size and SHA-256, where each weight lies, and the
 * programs with what each needs: so it is known whether a model fits before it is fetched. The
 * records are those of base/web.py; the choice is that of runtime/web_folder.py.
 */

import { dtype, dtypeBytes, model, product } from "./artifact.js";
import { ArtifactError, LimitTooSmall, MissingFeature } from "./errors.js";
import { bool, count, decode, list, oneOf, optional, record, table, text } from "./records.js";
import type { Of } from "./records.js";

export const INDEX = "sterna-web.json";
const FORMAT = 1;

const file = record({ name: text, size: count, sha256: text });
const tensor = record({
  name: text, dtype, shape: list(count), file: text, offset: count, size: count,
  encoding: optional(oneOf("raw", "f32-to-bf16"), "raw"),
});
const memory = record({ weights: count, kv_cache: count, arena: count, io: count });
const program = record({
  file: text, target: text, features: list(text), barriers: bool, limits: table(count), memory,
});
const index = record({
  format: count, sterna: text, model, files: list(file), weights: record({ tensors: list(tensor) }),
  programs: list(program),
});

export type File = Of<typeof file>;
export type Tensor = Of<typeof tensor>;
export type Memory = Of<typeof memory>;
export type Program = Of<typeof program>;
export type WebIndex = Of<typeof index>;

/** What an adapter has. `imitated`: it computes on a processor, where barriers are slow. */
export interface Offer {
  readonly name: string;
  readonly features: ReadonlySet<string>;
  readonly limits: Readonly<Record<string, number>>;
  readonly imitated: boolean;
}

/** Names and bounds are checked; ArtifactError for anything that is no index. */
export function readIndex(data: Uint8Array): WebIndex {
  const found = decode(data, index, FORMAT, INDEX);
  const sizes = new Map(found.files.map((f) => [f.name, f.size]));
  for (const { name, sha256 } of found.files) {
    const plain = name !== "" && !/[/\\]/.test(name) && ![".", "..", INDEX].includes(name);
    if (!plain || !/^[0-9a-f]{64}$/.test(sha256)) {
      throw new ArtifactError(`${INDEX} lists a file ${JSON.stringify(name.slice(0, 80))} that cannot be one`);
    }
  }
  const programs = new Set(found.programs.map((p) => p.file));
  if (sizes.size !== found.files.length || programs.size === 0 || [...programs].some((p) => !sizes.has(p))) {
    throw new ArtifactError(`${INDEX} lists a file twice, or names programs that it does not list`);
  }
  const tensors = new Set(found.weights.tensors.map((t) => t.name));
  if (programs.size !== found.programs.length || tensors.size !== found.weights.tensors.length) {
    throw new ArtifactError(`${INDEX} lists a program or a tensor twice`);
  }
  for (const t of found.weights.tensors) checkTensor(t, sizes);
  return found;
}

function checkTensor(t: Tensor, sizes: ReadonlyMap<string, number>): void {
  const width = t.encoding === "raw" ? dtypeBytes(t.dtype) : 2;
  const inside = t.offset + t.size <= (sizes.get(t.file) ?? -1);
  const cut = t.encoding !== "raw" && t.dtype !== "f32";
  if (cut || product(t.shape) * width !== t.size || !inside) {
    throw new ArtifactError(
      `${INDEX} says that tensor ${JSON.stringify(t.name.slice(0, 80))} is ${t.dtype}[${t.shape.join(", ")}] at bytes ` +
        `${t.offset} to ${t.offset + t.size} of ${JSON.stringify(t.file.slice(0, 80))}, which cannot be`,
    );
  }
}

/**
 * The first program whose features and limits the adapter has; of an imitated one, the first of
 * those without barriers, where there is one. MissingFeature where features keep it from running
 * any, LimitTooSmall where limits do: both name what is missing.
 */
export function chooseProgram(of: WebIndex, offer: Offer): Program {
  const lacks = of.programs.map((p) => ({ program: p, ...lacking(p, offer) }));
  const fitting = lacks.filter((l) => l.features.length + l.limits.length === 0);
  const plain = offer.imitated ? fitting.find((l) => !l.program.barriers) : undefined;
  const chosen = plain ?? fitting[0];
  if (chosen !== undefined) return chosen.program;
  const told = lacks.map((l) => `${l.program.target} wants ${[...l.features, ...l.limits].join(", ")}`);
  const onlyFeatures = lacks.every((l) => l.features.length > 0);
  const message = `${offer.name} runs none of the model's programs: ${told.join("; ")}; `;
  if (onlyFeatures) {
    throw new MissingFeature(`${message}use another browser or device, or compile the model for it`);
  }
  throw new LimitTooSmall(`${message}use a smaller model or context, or another device`);
}

function lacking(p: Program, offer: Offer): { features: string[]; limits: string[] } {
  const limits = [...p.limits].filter(([name, least]) => (offer.limits[name] ?? 0) < least);
  return {
    features: p.features.filter((name) => !offer.features.has(name)),
    limits: limits.map(([name, least]) => `${name} of ${least} (it has ${offer.limits[name] ?? 0})`),
  };
}

/** Bytes of GPU memory that a program takes, in all. */
export function memoryNeeded(of: Program): number {
  return of.memory.weights + of.memory.kv_cache + of.memory.arena + of.memory.io;
}

/** The weight files' and the others' bytes: what a first load fetches. */
export function bytesToFetch(of: WebIndex, chosen: Program): number {
  return filesOf(of, chosen).reduce((sum, f) => sum + f.size, 0);
}

/** Files that a program needs: the weights that it reads, its own, and small ones besides. */
export function filesOf(of: WebIndex, chosen: Program): File[] {
  const shards = new Set(of.weights.tensors.map((t) => t.file));
  return of.files.filter((f) => f.name === chosen.file || shards.has(f.name) || TEXT_FILES.has(f.name));
}

/** What the text side may ask for; other files of the folder are for other programs. */
export const TEXT_FILES: ReadonlySet<string> = new Set([
  "mlc-chat-config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
  "added_tokens.json", "generation_config.json", "chat_template.jinja", "chat_template.json",
  "config.json", "tokenizer.model", "vocab.json", "merges.txt",
]);
