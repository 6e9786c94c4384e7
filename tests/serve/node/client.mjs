// OpenAI's own client for Node against a server: prints one JSON object of what it saw.

import { createRequire } from "node:module";

const require = createRequire(process.env.NODE_PACKAGES + "/");
const OpenAI = require("openai").default;

const client = new OpenAI({
  baseURL: process.env.STERNA_URL,
  apiKey: process.env.STERNA_KEY,
  maxRetries: 0,
});
const model = process.env.STERNA_MODEL;
const asked = {
  model,
  messages: [{ role: "user", content: "hello" }],
  temperature: 0,
  max_tokens: 120,
};
const tools = [
  {
    type: "function",
    function: {
      name: "weather",
      parameters: {
        type: "object",
        properties: { days: { type: "integer", minimum: 1, maximum: 7 } },
        required: ["days"],
        additionalProperties: false,
      },
    },
  },
];
const schema = {
  type: "object",
  properties: { warm: { type: "boolean" } },
  required: ["warm"],
  additionalProperties: false,
};
const seen = {};

seen.models = (await client.models.list()).data.map((card) => card.id);

const whole = await client.chat.completions.create({ ...asked, logprobs: true, top_logprobs: 2 });
seen.whole = whole.choices[0].message.content;
seen.logprobs = whole.choices[0].logprobs.content.length === whole.usage.completion_tokens;

seen.streamed = "";
const stream = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  seen.streamed += chunk.choices[0]?.delta.content ?? "";
  seen.usage = chunk.usage?.completion_tokens ?? null;
}
seen.completion_tokens = whole.usage.completion_tokens;

if (process.env.STERNA_TOOLS) {
  const called = await client.chat.completions.create({ ...asked, tools, tool_choice: "required" });
  seen.call = JSON.parse(called.choices[0].message.tool_calls[0].function.arguments);
  const formed = await client.chat.completions.create({
    ...asked,
    response_format: { type: "json_schema", json_schema: { name: "n", strict: true, schema } },
  });
  seen.formed = JSON.parse(formed.choices[0].message.content);
}

const response = await client.responses.create({ model, input: "hello", temperature: 0 });
seen.response = response.output_text;
seen.events = [];
for await (const event of await client.responses.create({
  model,
  input: "hello",
  temperature: 0,
  stream: true,
})) {
  if (seen.events.at(-1) !== event.type) seen.events.push(event.type);
}

try {
  await client.chat.completions.create({ ...asked, temperature: -1 });
} catch (error) {
  seen.error = [error.constructor.name, error.status, error.param];
}
try {
  await new OpenAI({ baseURL: process.env.STERNA_URL, apiKey: "wrong", maxRetries: 0 }).models.list();
} catch (error) {
  seen.denied = [error.constructor.name, error.status];
}

const abort = new AbortController();
const left = await client.chat.completions.create(
  { ...asked, stream: true, max_tokens: 200, ignore_eos: true },
  { signal: abort.signal },
);
for await (const _ of left) abort.abort();
seen.aborted = true;

console.log(JSON.stringify(seen));
