/**
 * A Jinja program that cannot run away: every node it evaluates pays into a budget.
 *
 * In: template source and plain data. Out: text; `Refusal` where the template raises, an Error where
 * it fails or wants more than any real template needs. `@huggingface/jinja` gives templates no way
 * out of their data: no attribute of JavaScript is reachable. Does not know messages.
 */

import { ArtifactError } from "./errors.js";
import { Environment, Interpreter, parse, tokenize } from "./vendor/jinja.js";

const MAX_SOURCE = 256 << 10;
const MAX_STEPS = 1_000_000;
const MAX_LENGTH = 16_000_000; // of a text, or of a list
const MAX_SECONDS = 5;
const MAX_RANGE = 100_000;

const GLOBALS = new Set([
  ...["true", "false", "none", "True", "False", "None", "range", "namespace", "caller", "loop"],
  ...["raise_exception", "strftime_now", "dict"],
]);

type Node = Parameters<Interpreter["evaluate"]>[0];
type Value = ReturnType<Interpreter["evaluate"]>;

/** The template called `raise_exception`: it does not accept this conversation. */
export class Refusal extends Error {}

/** A compiled template; `variables` are the names that it reads from its caller. */
export class Program {
  readonly variables: ReadonlySet<string>;
  readonly #parsed: ReturnType<typeof parse>;

  constructor(source: string) {
    if (source.length > MAX_SOURCE) {
      throw new ArtifactError(
        `the chat template has ${source.length} characters, possible are up to ${MAX_SOURCE}`,
      );
    }
    try {
      this.#parsed = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }));
    } catch (error) {
      throw new ArtifactError(`the model's chat template cannot be read: ${String(error)}`);
    }
    this.variables = namesRead(this.#parsed);
  }

  run(values: Readonly<Record<string, unknown>>, clock: () => Date): string {
    const environment = new Environment();
    for (const [name, value] of Object.entries(globals(clock))) environment.set(name, value);
    for (const [name, value] of Object.entries(values)) environment.set(name, value);
    return String(new Budgeted(environment).run(this.#parsed).value);
  }
}

class Budgeted extends Interpreter {
  #steps = MAX_STEPS;
  readonly #end = Date.now() + MAX_SECONDS * 1000;

  override evaluate(statement: Node, environment: Environment): Value {
    if (--this.#steps < 0) throw new Error(`it takes more than ${MAX_STEPS} steps`);
    if (this.#steps % 1024 === 0 && Date.now() > this.#end) {
      throw new Error(`it takes longer than ${MAX_SECONDS} seconds`);
    }
    const result = super.evaluate(statement, environment);
    const held: unknown = result.value;
    if ((typeof held === "string" || Array.isArray(held)) && held.length > MAX_LENGTH) {
      throw new Error(`it makes a text or a list longer than ${MAX_LENGTH}`);
    }
    return result;
  }
}

function globals(clock: () => Date): Record<string, unknown> {
  return {
    ...{ true: true, false: false, none: null, True: true, False: false, None: null },
    raise_exception(reason: unknown): never {
      throw new Refusal(String(reason));
    },
    range,
    strftime_now: (pattern: string) => strftime(clock(), pattern),
  };
}

function range(first: number, second?: number, step = 1): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  if (step === 0) throw new Error("range() takes no step of 0");
  const count = Math.max(0, Math.ceil((stop - start) / step));
  if (!(count <= MAX_RANGE)) throw new Error(`range() gives up to ${MAX_RANGE} numbers`);
  return Array.from({ length: count }, (_, i) => start + i * step);
}

const MONTHS = (
  "January February March April May June July August September October November December"
).split(" ");
const DAYS = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split(" ");

/** What C's strftime gives in the C locale, for the fields that templates use. */
function strftime(date: Date, pattern: string): string {
  const two = (n: number): string => String(n).padStart(2, "0");
  const [hour, month] = [date.getHours(), date.getMonth()];
  const fields: Record<string, string> = {
    Y: String(date.getFullYear()),
    y: two(date.getFullYear() % 100),
    m: two(month + 1),
    d: two(date.getDate()),
    e: String(date.getDate()).padStart(2),
    B: MONTHS[month]!,
    b: MONTHS[month]!.slice(0, 3),
    A: DAYS[date.getDay()]!,
    a: DAYS[date.getDay()]!.slice(0, 3),
    H: two(hour),
    I: two(hour % 12 || 12),
    p: hour < 12 ? "AM" : "PM",
    M: two(date.getMinutes()),
    S: two(date.getSeconds()),
    "%": "%",
  };
  return String(pattern).replace(/%(-?)([a-zA-Z%])/g, (whole, bare: string, field: string) => {
    const text = fields[field];
    if (text === undefined) throw new Error(`strftime_now knows no ${whole}`);
    return bare ? text.replace(/^[0 ]+(?=.)/, "") : text;
  });
}

/** Names that are read before the template sets them itself, in the order of its text. */
function namesRead(program: unknown): Set<string> {
  const read = new Set<string>();
  const own = new Set(GLOBALS);
  const declare = (target: Tree): void => {
    if (target["type"] === "Identifier") own.add(String(target["value"]));
    else if (target["type"] === "TupleLiteral") (target["value"] as Tree[]).forEach(declare);
    else visit(target);
  };
  const visit = (node: unknown): void => {
    if (node instanceof Map) for (const pair of node) visit(pair);
    if (Array.isArray(node)) for (const item of node) visit(item);
    if (!isNode(node)) return;
    switch (node["type"]) {
      case "Identifier":
        if (!own.has(String(node["value"]))) read.add(String(node["value"]));
        return;
      case "Set":
        visit(node["value"]);
        visit(node["body"]);
        declare(node["assignee"] as Tree);
        return;
      case "For":
        declare(node["loopvar"] as Tree); // first: a loop's own filter reads it
        visit(node["iterable"]);
        break;
      case "Macro":
        declare(node["name"] as Tree);
        for (const parameter of node["args"] as Tree[]) {
          visit(parameter["value"] instanceof Object ? parameter["value"] : null);
          declare((parameter["key"] ?? parameter) as Tree);
        }
        visit(node["body"]);
        return;
      case "MemberExpression":
        visit(node["object"]);
        if (node["computed"] === true) visit(node["property"]);
        return;
      case "KeywordArgumentExpression":
        visit(node["value"]);
        return;
      case "TestExpression":
        visit(node["operand"]);
        return;
      case "FilterExpression":
      case "FilterStatement":
        visit(node["operand"] ?? node["body"]);
        visit((node["filter"] as Tree)["args"]);
        return;
    }
    for (const [key, part] of Object.entries(node)) {
      if (key !== "loopvar" && key !== "operator") visit(part); // an operator is no name
    }
  };
  visit(program);
  return read;
}

type Tree = Record<string, unknown>;

function isNode(value: unknown): value is Tree {
  return typeof value === "object" && value !== null && "type" in value;
}
