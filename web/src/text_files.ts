/**
 * The text files that travel with a model, read strictly: UTF-8, JSON objects, no surprises.
 *
 * ArtifactError names the file that is not what it claims. Knows no meaning of any key.
 */

import { ArtifactError } from "./errors.js";
import type { TextFiles } from "./interfaces.js";

export type Json = Readonly<Record<string, unknown>>;

export async function readText(files: TextFiles, name: string): Promise<string | null> {
  const data = await files.read(name);
  if (data === null) return null;
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
  } catch {
    throw new ArtifactError(`${name} is not UTF-8 text: compile the model again`);
  }
}

/** The file's object; an empty one where there is no such file. */
export async function readObject(files: TextFiles, name: string): Promise<Json> {
  const text = await readText(files, name);
  if (text === null) return {};
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new ArtifactError(`${name} is not JSON (${String(error)}): compile the model again`);
  }
  if (!isObject(value)) throw new ArtifactError(`${name} holds no JSON object`);
  return value;
}

export function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
