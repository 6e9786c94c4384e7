/**
 * JSON schemas from strangers as grammar: an answer satisfies the whole schema or is not begun.
 *
 * In: a schema as plain data. Out: a body of EBNF, or a RequestError that names the keyword that
 * cannot be enforced. JSON is written as Python writes it, one space after each comma and colon. An
 * object that lists its properties gets no others unless `additionalProperties` says so, and they
 * come in the order of the schema: narrower than JSON Schema, so answers still satisfy it.
 */

import { charClass, either, quoted, repeated, type Rules } from "./ebnf.js";
import { RequestError } from "./errors.js";
import { integers } from "./integers.js";
import { pythonJson } from "./python_json.js";
import { regexBody } from "./regex.js";
import { isObject, type Json } from "./text_files.js";

const MAX_BYTES = 256 * 1024;
const MAX_DEPTH = 64;
const MAX_LENGTH = 100_000; // of a string or an array that a schema may ask for
const TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"];

/** Which keywords say something of which type; they are ignored for all others, as they should be. */
const OF_TYPE: Readonly<Record<string, readonly string[]>> = {
  integer: ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"],
  string: ["minLength", "maxLength", "pattern", "format"],
  array: ["items", "prefixItems", "minItems", "maxItems"],
  object: ["properties", "required", "additionalProperties"],
};
const BOUNDS = OF_TYPE["integer"]!;
const COMBINED = ["anyOf", "oneOf", "allOf", "$ref", "enum", "const"];
const DEFINITIONS = ["$defs", "definitions"];
const ENFORCED = [...Object.values(OF_TYPE).flat(), ...COMBINED, ...DEFINITIONS, "type"];
const ANNOTATIONS = (
  "$comment $id $schema contentEncoding contentMediaType default deprecated description " +
  "discriminator example examples readOnly title writeOnly"
).split(" ");

const FORMATS: Readonly<Record<string, string>> = {
  date: "^\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\\d|2[0-8])$",
  time: "^([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,9})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)$",
  "date-time":
    "^\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\\d|2[0-8])T([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,9})?" +
    "(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)$",
  uuid: "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
  ipv4: "^((25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)\\.){3}(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)$",
  email: "^[a-zA-Z0-9_+-]{1,32}(\\.[a-zA-Z0-9_+-]{1,16}){0,1}@[a-z0-9]{1,32}(\\.[a-z0-9]{2,16}){1,2}$",
};

/** The body of a grammar of the JSON texts that satisfy `schema`; `where` is the field it came in. */
export function schemaBody(rules: Rules, schema: unknown, where: string): string {
  if (schema !== true && !isObject(schema)) {
    throw new RequestError(`${where} is no JSON schema object`, where);
  }
  if (depth(schema) > MAX_DEPTH) {
    throw new RequestError(`${where} is nested more than ${MAX_DEPTH} levels deep`, where);
  }
  const size = JSON.stringify(schema).length;
  if (size > MAX_BYTES) {
    throw new RequestError(`${where} has ${size} characters, possible are up to ${MAX_BYTES}`, where);
  }
  return new Converter(rules, schema, where).value(schema, where);
}

class Converter {
  readonly #references = new Map<string, string>(); // what each $ref became
  #any: string | null = null;

  constructor(
    private readonly rules: Rules,
    private readonly root: Json | true,
    private readonly where: string,
  ) {}

  /** A schema anywhere; `at` is its path, for what is said of it. */
  value(schema: unknown, at: string): string {
    if (schema === true) return this.#anything();
    if (!isObject(schema)) return this.#fail(`${at} is ${JSON.stringify(schema)}, no schema`);
    this.#check(schema, at);
    const combined = COMBINED.filter((keyword) => keyword in schema);
    if (combined.length === 0) return this.#typed(schema, at);
    const keyword = combined[0]!;
    if (keyword === "enum" || keyword === "const") return this.#listed(schema, at);
    if (keyword === "allOf" || this.#says(schema, combined)) return this.#merged(schema, at);
    if (combined.length > 1) return this.#fail(`${at} has ${combined.join(" and ")} together`);
    if (keyword === "$ref") return this.#reference(String(schema["$ref"]), at);
    return either(this.#schemas(schema, keyword, at));
  }

  #schemas(schema: Json, keyword: string, at: string): string[] {
    const list = schema[keyword];
    if (!Array.isArray(list) || list.length === 0) this.#fail(`${at}.${keyword} is no list of schemas`);
    if (keyword === "oneOf") this.#checkApart(list as unknown[], at);
    return (list as unknown[]).map((part, i) => this.value(part, `${at}.${keyword}[${i}]`));
  }

  /** Of `oneOf` exactly one may fit: only types that exclude each other are certain of that. */
  #checkApart(list: readonly unknown[], at: string): void {
    const kinds = list.flatMap((part) => {
      const kind: unknown = isObject(part) ? part["type"] : null;
      return typeof kind === "string" ? [kind === "integer" ? "number" : kind] : ["?"];
    });
    if (kinds.includes("?") || new Set(kinds).size < kinds.length) {
      const consts = list.map((part) => (isObject(part) && "const" in part ? pythonJson(part["const"]) : "?"));
      if (!consts.includes("?") && new Set(consts).size === consts.length) return;
      this.#fail(`${at}.oneOf has schemas that may fit the same value; use anyOf`);
    }
  }

  /** Whether it says more than the one combination and what describes. */
  #says(schema: Json, combined: readonly string[]): boolean {
    const extra = Object.keys(schema).filter(
      (keyword) => ENFORCED.includes(keyword) && !DEFINITIONS.includes(keyword),
    );
    return extra.length > combined.length;
  }

  #check(schema: Json, at: string): void {
    for (const keyword of Object.keys(schema)) {
      if (ENFORCED.includes(keyword) || ANNOTATIONS.includes(keyword)) continue;
      this.#fail(
        `${at} has the keyword "${keyword.slice(0, 60)}", which cannot be enforced here; possible ` +
          `are ${[...ENFORCED].sort().join(", ")}`,
      );
    }
  }

  /** Without combinations: one body for each type that may be. */
  #typed(schema: Json, at: string): string {
    const types = this.#types(schema, at);
    return either(types.map((type) => this.#one(type, schema, at)));
  }

  #types(schema: Json, at: string): string[] {
    const given: unknown[] = [schema["type"] ?? TYPES.filter((type) => type !== "integer")].flat();
    if (given.length === 0 || !given.every((type) => TYPES.includes(String(type)))) {
      this.#fail(`${at}.type is ${JSON.stringify(schema["type"])}, possible are ${TYPES.join(", ")}`);
    }
    const types = given.map(String);
    return types.includes("number") ? types.filter((type) => type !== "integer") : types;
  }

  #one(type: string, schema: Json, at: string): string {
    switch (type) {
      case "null":
        return quoted("null");
      case "boolean":
        return '("true" | "false")';
      case "integer":
        return this.#integer(schema, at);
      case "number":
        for (const keyword of BOUNDS) {
          if (keyword in schema) this.#fail(`${at} has ${keyword} for numbers; possible is for integers`);
        }
        return this.rules.add(
          '"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [+\\-]? [0-9]{1,2})?',
        );
      case "string":
        return this.#string(schema, at);
      case "array":
        return this.#array(schema, at);
      default:
        return this.#object(schema, at);
    }
  }

  #integer(schema: Json, at: string): string {
    const bound = (keyword: string): number | null => {
      const value = schema[keyword];
      if (value === undefined) return null;
      if (typeof value === "number" && Math.abs(value) <= Number.MAX_SAFE_INTEGER) return value;
      return this.#fail(`${at}.${keyword} is ${JSON.stringify(value)}, no number it can be`);
    };
    const [minimum, maximum] = [bound("minimum"), bound("maximum")];
    const [above, below] = [bound("exclusiveMinimum"), bound("exclusiveMaximum")];
    const lows = [minimum === null ? null : Math.ceil(minimum), above === null ? null : Math.floor(above) + 1];
    const highs = [maximum === null ? null : Math.floor(maximum), below === null ? null : Math.ceil(below) - 1];
    const lo = Math.max(...lows.map((n) => n ?? Number.NEGATIVE_INFINITY));
    const hi = Math.min(...highs.map((n) => n ?? Number.POSITIVE_INFINITY));
    if (lo > hi) this.#fail(`${at} leaves no integer`);
    return this.rules.add(integers(lo, hi));
  }

  #string(schema: Json, at: string): string {
    const [least, most] = this.#counts(schema, "minLength", "maxLength", at);
    const sized = "minLength" in schema || "maxLength" in schema;
    const { pattern, format } = schema;
    if (Number(pattern !== undefined) + Number(format !== undefined) + Number(sized) > 1) {
      this.#fail(`${at} has pattern, format and length together; possible is one of them`);
    }
    if (pattern !== undefined || format !== undefined) {
      const known = pattern ?? FORMATS[String(format)];
      if (typeof known !== "string") {
        this.#fail(`${at}.format is ${String(format)}, possible are ${Object.keys(FORMATS).join(", ")}`);
      }
      return this.rules.add(`"\\"" ${regexBody(known as string, at, true)} "\\""`);
    }
    return this.rules.add(`"\\"" ${repeated(this.#character(), least, most)} "\\""`);
  }

  /** A character of a string, escaped where it must be; each stands for one code point. */
  #character(): string {
    const hex = "[0-9a-fA-F]";
    const unicode = `"u" ([0-9a-cA-CefEF] ${hex}{3,3} | [dD] [0-7] ${hex}{2,2})`;
    return this.rules.add(`[^"\\\\\\u0000-\\u001f] | "\\\\" (["\\\\/bfnrt] | ${unicode})`);
  }

  #array(schema: Json, at: string): string {
    const [least, most] = this.#counts(schema, "minItems", "maxItems", at);
    const prefix = schema["prefixItems"] ?? [];
    if (!Array.isArray(prefix)) return this.#fail(`${at}.prefixItems is no list`);
    const first = prefix.map((part, i) => this.value(part, `${at}.prefixItems[${i}]`));
    const items = schema["items"] ?? true;
    const rest = items === false ? null : this.value(items, `${at}.items`);
    const longest = rest === null ? Math.min(most ?? Infinity, first.length) : (most ?? Infinity);
    if (least > longest) this.#fail(`${at} leaves no array`);
    return this.rules.add(`"[" ${this.#items(first, rest, least, longest)} "]"`);
  }

  /** Items after each other: those of the prefix, then `rest`. */
  #items(first: readonly string[], rest: string | null, least: number, most: number): string {
    const many = (done: number): string => {
      if (rest === null || most <= done) return '""';
      const more = Math.max(0, least - done);
      const comma = done === 0 ? "" : `${quoted(", ")} `;
      if (done > 0) {
        return repeated(`(${comma}${rest})`, more, most === Infinity ? null : most - done);
      }
      const tail = `(${quoted(", ")} ${rest})`;
      const some = `${rest} ${repeated(tail, Math.max(0, least - 1), most === Infinity ? null : most - 1)}`;
      return least > 0 ? some : `(${some})?`;
    };
    let body = many(first.length);
    for (let i = Math.min(first.length, most) - 1; i >= 0; i--) {
      const comma = i === 0 ? "" : `${quoted(", ")} `;
      const item = `${comma}${first[i]!} ${i + 1 < most ? body : '""'}`;
      body = i < least ? `(${item})` : `(${item})?`;
    }
    return body;
  }

  #object(schema: Json, at: string): string {
    const properties = schema["properties"] ?? {};
    const required: unknown = schema["required"] ?? [];
    if (!isObject(properties)) return this.#fail(`${at}.properties is no object`);
    if (!Array.isArray(required) || !required.every((name) => typeof name === "string")) {
      return this.#fail(`${at}.required is no list of names`);
    }
    const names = Object.keys(properties);
    const closed = "properties" in schema && required.every((name) => names.includes(String(name)));
    const extra = schema["additionalProperties"] ?? !closed;
    const missing = (required as string[]).filter((name) => !names.includes(name));
    if (extra === false && missing.length > 0) this.#fail(`${at} requires ${missing[0]!}, and forbids it`);
    const listed = [...names, ...missing];
    const pairs = listed.map((name) => {
      const part = name in properties ? properties[name] : extra;
      const value = this.value(part, `${at}.properties.${name}`);
      return { pair: `${quoted(`${JSON.stringify(name)}: `)} ${value}`, must: required.includes(name) };
    });
    const more =
      extra === false
        ? null
        : `${this.#otherKey(listed)} ": " ${this.value(extra, `${at}.additionalProperties`)}`;
    return this.rules.add(`"{" ${this.#pairs(pairs, more)} "}"`);
  }

  /** Pairs in order; what must not come may be left out, and commas stand between those that do. */
  #pairs(pairs: readonly { pair: string; must: boolean }[], more: string | null): string {
    const comma = quoted(", ");
    let begun = more === null ? '""' : `(${comma} ${more})*`; // what may follow a pair
    let fresh = more === null ? '""' : `(${more} (${comma} ${more})*)?`; // where none has come yet
    for (const { pair, must } of [...pairs].reverse()) {
      const here = `${pair} ${begun}`;
      const [next, first] = [`${comma} ${here}`, here];
      fresh = this.rules.add(must ? first : `${first} | ${fresh}`);
      begun = this.rules.add(must ? next : `${next} | ${begun}`);
    }
    return fresh;
  }

  /** A key that is none of `names`, written without escapes: a tree of their characters. */
  #otherKey(names: readonly string[]): string {
    const plain = '[^"\\\\\\u0000-\\u001f]';
    const other = (tails: readonly string[]): string => {
      const heads = [...new Set(tails.filter((t) => t !== "").map((t) => [...t][0]!))];
      if (heads.length === 0) return tails.includes("") ? `${plain} ${plain}*` : `${plain}*`;
      const codes = [...heads.map((c) => c.codePointAt(0)!), 34, 92];
      const barred = charClass([[0, 31], ...codes.map((c) => [c, c] as const)], true);
      const branches = heads
        .filter((head) => head.codePointAt(0)! > 31 && !'"\\'.includes(head))
        .map((head) => {
          const rest = tails.filter((t) => t.startsWith(head)).map((t) => t.slice(head.length));
          return `${quoted(head)} ${other(rest)}`;
        });
      const end = tails.includes("") ? [] : ['""'];
      return this.rules.add([...end, `${barred} ${plain}*`, ...branches].join(" | "));
    };
    return this.rules.add(`"\\"" ${other(names)} "\\""`);
  }

  /** `enum` and `const`: the values that are of the right type. */
  #listed(schema: Json, at: string): string {
    const values: unknown = "const" in schema ? [schema["const"]] : schema["enum"];
    if (!Array.isArray(values) || values.length === 0) return this.#fail(`${at}.enum is no list`);
    const keywords = Object.keys(schema).filter((k) => ENFORCED.includes(k) && !DEFINITIONS.includes(k));
    const more = keywords.filter((keyword) => !["enum", "const", "type"].includes(keyword));
    if (more.length > 0 || ("enum" in schema && "const" in schema)) {
      this.#fail(`${at} has ${keywords.join(" and ")} together`);
    }
    const types = "type" in schema ? this.#types(schema, at) : TYPES;
    const fitting = values.filter((value) => types.some((type) => isOf(value, type)));
    if (fitting.length === 0) this.#fail(`${at} lists no value of its type`);
    return either(fitting.map((value) => quoted(pythonJson(value))));
  }

  /** Several schemas that hold at once: those of objects are put together, others refused. */
  #merged(schema: Json, at: string): string {
    const { allOf = [], $ref: _, ...own } = schema;
    const list: unknown[] = [allOf].flat();
    if ("$ref" in schema) list.push({ $ref: schema["$ref"] });
    const parts = [own, ...list].map((part, i) => this.#resolved(part, `${at}.allOf[${i - 1}]`));
    const saying = parts.filter((part) => Object.keys(part).some((k) => ENFORCED.includes(k)));
    if (saying.length === 1) return this.value(saying[0], at);
    const properties: Record<string, unknown> = {};
    const required: unknown[] = [];
    for (const part of saying) {
      for (const [keyword, value] of Object.entries(part)) {
        const object = keyword === "type" && value === "object";
        if (object || ANNOTATIONS.includes(keyword) || DEFINITIONS.includes(keyword)) continue;
        if (keyword === "required" && Array.isArray(value)) required.push(...(value as unknown[]));
        else if (keyword === "properties" && isObject(value)) {
          for (const [name, inner] of Object.entries(value)) {
            if (name in properties) this.#fail(`${at} has the property ${name} more than once`);
            properties[name] = inner;
          }
        } else this.#fail(`${at} puts together ${keyword}, which is possible for properties only`);
      }
    }
    if (!saying.some((part) => part["type"] === "object")) this.#fail(`${at} needs the type object`);
    return this.#object({ type: "object", properties, required: [...new Set(required)] }, at);
  }

  /** The schema that a part stands for. */
  #resolved(part: unknown, at: string): Json {
    let found: unknown = part;
    for (let hops = 0; isObject(found) && Object.keys(found).join() === "$ref"; hops++) {
      if (hops > MAX_DEPTH) this.#fail(`${at} refers to itself`);
      found = this.#target(String(found["$ref"]), at);
    }
    return isObject(found) ? found : this.#fail(`${at} is no schema object`);
  }

  #reference(reference: string, at: string): string {
    const known = this.#references.get(reference);
    if (known !== undefined) return known;
    const name = this.rules.reserve();
    this.#references.set(reference, name);
    const body = this.value(this.#target(reference, at), reference);
    if (body === name) this.#fail(`${at} refers to itself`);
    this.rules.define(name, body);
    return name;
  }

  #target(reference: string, at: string): unknown {
    if (reference !== "#" && !reference.startsWith("#/")) {
      this.#fail(`${at} refers to ${reference.slice(0, 80)}; possible is within the schema: #/...`);
    }
    let found: unknown = this.root;
    for (const step of reference.split("/").slice(1)) {
      const key = decodeURIComponent(step).replaceAll("~1", "/").replaceAll("~0", "~");
      const inside = isObject(found) && Object.hasOwn(found, key) ? found[key] : undefined;
      if (inside === undefined) this.#fail(`${at} refers to ${reference.slice(0, 80)}, which is not there`);
      found = inside;
    }
    return found;
  }

  /** Any JSON value. */
  #anything(): string {
    if (this.#any !== null) return this.#any;
    const name = this.rules.reserve();
    this.#any = name;
    const kinds = ["null", "boolean", "number", "string", "array", "object"];
    this.rules.define(name, kinds.map((kind) => this.#one(kind, {}, this.where)).join(" | "));
    return name;
  }

  #counts(schema: Json, least: string, most: string, at: string): [number, number | null] {
    const [lo, hi] = [least, most].map((keyword) => {
      const value = schema[keyword];
      if (value === undefined) return null;
      if (Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= MAX_LENGTH) {
        return value as number;
      }
      return this.#fail(`${at}.${keyword} is ${JSON.stringify(value)}, possible is 0 to ${MAX_LENGTH}`);
    });
    if (hi !== null && (lo ?? 0) > hi!) this.#fail(`${at} has a ${least} above its ${most}`);
    return [lo ?? 0, hi ?? null];
  }

  #fail(what: string): never {
    throw new RequestError(what, this.where);
  }
}

function isOf(value: unknown, type: string): boolean {
  if (value === null) return type === "null";
  if (Array.isArray(value)) return type === "array";
  if (type === "integer") return Number.isInteger(value);
  return typeof value === type;
}

/** Levels of nesting, counted without recursion and no further than need be. */
function depth(value: unknown): number {
  let level: unknown[] = [value];
  let levels = 0;
  while (level.length > 0 && levels <= MAX_DEPTH) {
    levels++;
    level = level.flatMap((outer) =>
      typeof outer === "object" && outer !== null ? Object.values(outer) : [],
    );
  }
  return levels;
}
