/**
 * The small integer grammar in which a manifest writes sizes, e.g. "(n + 63) // 64".
 *
 * Names, integers, + - * // % min max and parentheses; nothing else, so a manifest from a stranger
 * can do no harm. The same language as base/sizes.py; numbers that leave 2^53 are refused.
 */

import { ArtifactError } from "./errors.js";

export type Dims = Readonly<Record<string, number>>;

/** An expression that was read once and is evaluated at every step. */
export type Size = (dims: Dims) => number;

const LONGEST = 1000;
const DEEPEST = 100;
const TOKEN = /\s*(?:(\d+)|([A-Za-z_]\w*)|(\/\/|[-+*%(),]))/y;

/** The value of a size expression for given dims; ArtifactError if it is not one. */
export function evaluate(text: string, dims: Dims): number {
  return compile(text)(dims);
}

/** Read an expression; ArtifactError where it is not one, also at evaluation (division by 0). */
export function compile(text: string): Size {
  if (text.length > LONGEST) {
    throw new ArtifactError(`a size in the manifest is longer than ${LONGEST} characters`);
  }
  const parser = new Parser(text);
  const size = parser.sum(0);
  parser.end();
  return size;
}

class Parser {
  private readonly tokens: string[] = [];
  private at = 0;

  constructor(private readonly text: string) {
    const end = text.trimEnd().length;
    TOKEN.lastIndex = 0;
    while (TOKEN.lastIndex < end) {
      const found = TOKEN.exec(text);
      if (found === null) this.refuse("it has characters that are not allowed");
      this.tokens.push(found[0].trim());
    }
  }

  sum(depth: number): Size {
    if (depth > DEEPEST) this.refuse("it is nested too deep");
    let left = this.product(depth);
    for (let op = this.next("+", "-"); op !== null; op = this.next("+", "-")) {
      const [a, b] = [left, this.product(depth)];
      left = op === "+" ? (dims) => this.safe(a(dims) + b(dims)) : (dims) => this.safe(a(dims) - b(dims));
    }
    return left;
  }

  end(): void {
    if (this.at < this.tokens.length) this.refuse(`${this.tokens[this.at]} is not expected there`);
  }

  private product(depth: number): Size {
    let left = this.atom(depth);
    for (let op = this.next("*", "//", "%"); op !== null; op = this.next("*", "//", "%")) {
      const [a, b] = [left, this.atom(depth)];
      if (op === "*") left = (dims) => this.safe(a(dims) * b(dims));
      else if (op === "//") left = (dims) => Math.floor(a(dims) / this.divisor(b(dims)));
      else left = (dims) => modulo(a(dims), this.divisor(b(dims)));
    }
    return left;
  }

  private atom(depth: number): Size {
    const token = this.tokens[this.at++];
    if (token === undefined) this.refuse("it ends too early");
    if (token === "(") {
      const inner = this.sum(depth + 1);
      this.expect(")");
      return inner;
    }
    if (/^\d/.test(token)) {
      if (token.length > 1 && token.startsWith("0")) this.refuse("a number begins with 0");
      const value = this.safe(Number(token));
      return () => value;
    }
    if (!/^\w/.test(token)) this.refuse(`${token} is not expected there`);
    return this.tokens[this.at] === "(" ? this.call(token, depth) : this.name(token);
  }

  private call(name: string, depth: number): Size {
    if (name !== "min" && name !== "max") this.refuse(`${name} is not allowed`);
    this.expect("(");
    const parts = [this.sum(depth + 1)];
    while (this.next(",") !== null) parts.push(this.sum(depth + 1));
    this.expect(")");
    const choose = name === "min" ? Math.min : Math.max;
    return (dims) => choose(...parts.map((part) => part(dims)));
  }

  private name(name: string): Size {
    return (dims) => {
      const value = Object.hasOwn(dims, name) ? dims[name] : undefined;
      return value === undefined ? this.refuse(`'${name}' is not allowed`) : value;
    };
  }

  private next(...wanted: string[]): string | null {
    const token = this.tokens[this.at];
    if (token === undefined || !wanted.includes(token)) return null;
    this.at++;
    return token;
  }

  private expect(token: string): void {
    if (this.next(token) === null) this.refuse(`${token} is missing`);
  }

  private divisor(value: number): number {
    return value === 0 ? this.refuse("it divides by zero") : value;
  }

  private safe(value: number): number {
    return Number.isSafeInteger(value) ? value : this.refuse("it is too large");
  }

  private refuse(why: string): never {
    const text = JSON.stringify(this.text.slice(0, LONGEST));
    throw new ArtifactError(`size ${text} in the manifest cannot be computed: ${why}`);
  }
}

/** Python's %: the sign is the divisor's. */
function modulo(a: number, b: number): number {
  return a - Math.floor(a / b) * b;
}
