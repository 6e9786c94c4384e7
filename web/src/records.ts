/**
 * Strict reading of JSON from outside: each field of the type that it should have, none besides.
 *
 * A reader takes a value and where it stands, and gives it back typed, or throws ArtifactError.
 * What msgspec does for the Python side, in the few forms that manifests have.
 */

import { ArtifactError, NewerFormat } from "./errors.js";

export type Read<T> = (value: unknown, at: string) => T;
export type Of<R> = R extends Read<infer T> ? T : never;

interface Optional<T> {
  readonly read: Read<T>;
  readonly fallback: T;
}

type Field = Read<unknown> | Optional<unknown>;
type FieldOf<F> = F extends Optional<infer T> ? T : F extends Read<infer T> ? T : never;
type RecordOf<F> = { readonly [K in keyof F]: FieldOf<F[K]> };

/** A field that may be left out. */
export function optional<T>(read: Read<T>, fallback: T): Optional<T> {
  return { read, fallback };
}

/** An object with these fields and no others. */
export function record<F extends Record<string, Field>>(fields: F): Read<RecordOf<F>> {
  return (value, at) => {
    const given = object(value, at);
    for (const name of Object.keys(given)) {
      if (!Object.hasOwn(fields, name)) refuse(at, `has a field ${JSON.stringify(name.slice(0, 80))} that this version does not know`);
    }
    const entries = Object.entries(fields).map(([name, field]) => {
      const [read, here] = [typeof field === "function" ? field : field.read, `${at}.${name}`];
      if (Object.hasOwn(given, name)) return [name, read(given[name], here)];
      if (typeof field === "function") refuse(here, "is missing");
      return [name, field.fallback];
    });
    return Object.fromEntries(entries) as RecordOf<F>;
  };
}

export const text: Read<string> = (value, at) =>
  typeof value === "string" ? value : refuse(at, "is no text");

export const bool: Read<boolean> = (value, at) =>
  typeof value === "boolean" ? value : refuse(at, "is neither true nor false");

export const whole: Read<number> = (value, at) =>
  Number.isSafeInteger(value) ? (value as number) : refuse(at, "is no whole number below 2^53");

/** A whole number from 0 on: of sizes, offsets and counts. */
export const count: Read<number> = (value, at) =>
  whole(value, at) >= 0 ? (value as number) : refuse(at, "is negative");

export function oneOf<T extends string>(...possible: readonly T[]): Read<T> {
  return (value, at) =>
    possible.find((one) => one === value) ?? refuse(at, `is none of ${possible.join(", ")}`);
}

export function list<T>(read: Read<T>): Read<readonly T[]> {
  return (value, at) =>
    Array.isArray(value)
      ? value.map((item, i) => read(item, `${at}[${i}]`))
      : refuse(at, "is no list");
}

export function nullable<T>(read: Read<T>): Read<T | null> {
  return (value, at) => (value === null ? null : read(value, at));
}

/** An object of any names. */
export function table<T>(read: Read<T>): Read<ReadonlyMap<string, T>> {
  return (value, at) =>
    new Map(Object.entries(object(value, at)).map(([name, v]) => [name, read(v, `${at}.${name}`)]));
}

/** JSON of a known format number; NewerFormat where the number is higher. */
export function decode<T>(data: Uint8Array, read: Read<T>, format: number, title: string): T {
  let found: unknown;
  try {
    found = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(data));
  } catch (error) {
    throw new ArtifactError(`${title} is malformed: ${(error as Error).message}`);
  }
  const version = object(found, title)["format"];
  if (version !== format) {
    const newer = typeof version === "number" && version > format;
    const todo = newer ? "use a newer @sterna/web" : "compile the model again";
    const message = `${title} has format ${JSON.stringify(version)}, this version reads ${format}; ${todo}`;
    throw newer ? new NewerFormat(message) : new ArtifactError(message);
  }
  return read(found, title);
}

function object(value: unknown, at: string): Record<string, unknown> {
  const fits = typeof value === "object" && value !== null && !Array.isArray(value);
  return fits ? (value as Record<string, unknown>) : refuse(at, "is no object");
}

function refuse(at: string, why: string): never {
  throw new ArtifactError(`${at} ${why}; compile the model again`);
}
