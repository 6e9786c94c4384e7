// Schemas and grammars through the package's own grammar side: which texts are answers, and what is
// drawn at random from the masks. In: the package's folder and a file of cases. Out: JSON, one
// answer a case: {error} or {accepted, drawn}.

import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const [dist, file] = process.argv.slice(2);
const from = (name) => import(pathToFileURL(`${dist}/${name}.js`).href);
const { Grammars } = await from("grammar");
const { sourceOf } = await from("grammar_source");
const { OWN } = await from("tool_syntax");
const { offerOf } = await from("offer");

const { vocabulary, end, cases } = JSON.parse(await readFile(file, "utf8"));
const tokens = vocabulary.map((bytes) => Uint8Array.from(bytes));
const tokenizer = { vocabSize: tokens.length, idToPiece: (id) => tokens[id] };
const grammars = new Grammars(tokenizer, [end]);
const longest = (data, at) => {
  let best = -1;
  tokens.forEach((token, id) => {
    const fits = token.length > 0 && id !== end && token.every((byte, i) => data[at + i] === byte);
    if (fits && (best < 0 || token.length > tokens[best].length)) best = id;
  });
  return best;
};
const has = (mask, id) => (mask[id >> 5] >>> (id & 31)) & 1;

async function accepts(source, text, whole) {
  const constraint = await grammars.start(source);
  const data = new TextEncoder().encode(text);
  for (let at = 0; at < data.length; ) {
    const id = whole ? longest(data, at) : data[at];
    if (constraint.finished || !has(await constraint.mask(), id)) return constraint.dispose(), false;
    constraint.accept(id);
    at += tokens[id].length;
  }
  const may = constraint.finished || Boolean(has(await constraint.mask(), end));
  constraint.dispose();
  return may;
}

/** Tokens at random, ends and quotes more often so that answers end; null: too long. */
async function drawn(source, seed) {
  let state = seed >>> 0 || 1;
  const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  const constraint = await grammars.start(source);
  const bytes = [];
  for (let n = 0; n < 400; n++) {
    const mask = await constraint.mask();
    const may = tokens.map((_, id) => id).filter((id) => has(mask, id));
    if (may.includes(end) && random() < 0.5) return new TextDecoder().decode(Uint8Array.from(bytes));
    const closing = may.filter((id) => '"}],'.includes(String.fromCharCode(tokens[id][0] ?? 0)));
    const from = closing.length > 0 && random() < 0.4 ? closing : may.filter((id) => id !== end);
    if (from.length === 0) return new TextDecoder().decode(Uint8Array.from(bytes));
    const id = from[Math.floor(random() * from.length)];
    bytes.push(...tokens[id]);
    constraint.accept(id);
    if (constraint.finished) break;
  }
  return null;
}

const answers = [];
for (const { request, syntax = OWN, start = "speech", texts = [], seeds = [], whole = true } of cases) {
  try {
    const source = sourceOf(request.response_format ?? null, offerOf(request), syntax, start);
    const accepted = [];
    for (const text of texts) accepted.push(await accepts(source, text, whole));
    const found = [];
    for (const seed of seeds) found.push(await drawn(source, seed));
    answers.push({ accepted, drawn: found });
  } catch (error) {
    answers.push({ error: error.name, message: error.message, param: error.param ?? null });
  }
}
process.stdout.write(JSON.stringify(answers));
