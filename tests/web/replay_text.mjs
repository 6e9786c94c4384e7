// Replays what Python's text side did, case by case, and prints where TypeScript's differs.
// In: the package's folder and a file of cases. Out: a JSON list of differences.

import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const [dist, file] = process.argv.slice(2);
const from = (name) => import(pathToFileURL(`${dist}/${name}.js`).href);
const { Tokenizer } = await from("tokenizer");
const { ChatTemplate } = await from("chat_template");
const { ChatParser } = await from("chat_parser");
const { StopAt, StreamDecoder } = await from("detokenizer");
const { Marker } = await from("marking");
const { readDialect } = await from("dialect");
const { renderConv } = await from("conv_template");

const differences = [];
const loaded = new Map();

/** A model folder as the package asks for its files. */
const files = (folder) => ({ read: (name) => readFile(`${folder}/${name}`).catch(() => null) });

async function tokenizer(folder) {
  if (!loaded.has(folder)) loaded.set(folder, await Tokenizer.load(files(folder)));
  return loaded.get(folder);
}

function streamed(decoder, chunks) {
  return [...chunks.map((chunk) => decoder.put(chunk)), decoder.finish()];
}

function parsed(parser, pieces) {
  const all = { content: "", reasoning: "", calls: [] };
  for (const piece of [...pieces.map((text) => parser.put(text)), parser.finish()]) {
    all.content += piece.content ?? "";
    all.reasoning += piece.reasoning ?? "";
    for (const { index, function: { name, arguments: text } } of piece.toolCalls ?? []) {
      if (name !== undefined) all.calls[index] = [name, ""];
      if (text !== undefined) all.calls[index][1] += text;
    }
  }
  return all;
}

const KINDS = {
  facts: async ({ folder }) => {
    const t = await tokenizer(folder);
    return [t.vocabSize, t.bosId, t.eosIds, Object.fromEntries(t.specialTokens)];
  },
  encode: async ({ folder, text, add, allow }) =>
    (await tokenizer(folder)).encode(text, { addSpecialTokens: add, allowSpecial: allow }),
  marked: async ({ folder, text, mark }) => (await tokenizer(folder)).encodeMarked(text, mark),
  stream: async ({ folder, chunks, skip }) =>
    streamed(new StreamDecoder(await tokenizer(folder), skip), chunks),
  decode: async ({ folder, ids, skip }) =>
    (await tokenizer(folder)).decode(ids, { skipSpecialTokens: skip }),
  pieces: async ({ folder, ids }) => {
    const t = await tokenizer(folder);
    return ids.map((id) => [...t.idToPiece(id)]);
  },
  mark: ({ specials, value }) => new Marker(specials).mark(value),
  stops: ({ stops, pieces }) => {
    const cutter = new StopAt(stops);
    const out = pieces.map((piece) => cutter.put(piece)).join("");
    return [cutter.stopped ? out : out + cutter.finish(), cutter.stopped];
  },
  template: ({ source, tokens, now, request }) => {
    const template = new ChatTemplate({ default: source }, tokens, () => new Date(now));
    try {
      return {
        text: template.render(request.messages, {
          addGenerationPrompt: request.add_generation_prompt ?? true,
          tools: request.tools ?? null,
          extra: request.extra ?? {},
        }),
      };
    } catch (error) {
      return { error: error.name };
    }
  },
  dialect: ({ source, tokens, specials }) => {
    const template = new ChatTemplate({ default: source }, tokens);
    return readDialect(template, specials);
  },
  variables: ({ source, tokens, but }) =>
    [...new ChatTemplate({ default: source }, tokens).variables].filter((v) => !but.includes(v)).sort(),
  conv: ({ template, messages }) => renderConv(template, messages),
  parse: ({ start, tools, pieces }) => parsed(new ChatParser(start, tools), pieces),
};

for (const [i, { kind, expected, ...given }] of JSON.parse(await readFile(file, "utf8")).entries()) {
  let found;
  try {
    found = await KINDS[kind](given);
  } catch (error) {
    found = `${error.name}: ${error.message}`;
  }
  if (JSON.stringify(sorted(found)) !== JSON.stringify(sorted(expected))) {
    const short = (value) => JSON.stringify(value)?.slice(0, 400);
    differences.push({ case: i, kind, given: short(given), found: short(found), expected: short(expected) });
  }
}
process.stdout.write(JSON.stringify(differences));

/** Objects with their keys in order: only values are compared. */
function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).sort().map(([key, item]) => [key, sorted(item)]));
}
