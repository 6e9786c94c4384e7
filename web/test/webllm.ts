/**
 * What WebLLM's users write, as its README and examples have it (@mlc-ai/web-llm 0.2.86), with
 * another import: it has to pass the compiler at its strictest. `tests/web` runs the like of it.
 */

import * as webllm from "../dist/index.js";
import {
  CreateMLCEngine, CreateServiceWorkerMLCEngine, CreateWebWorkerMLCEngine, MLCEngine,
  WebWorkerMLCEngineHandler, deleteModelInCache, hasModelInCache,
} from "../dist/index.js";
import type { InitProgressReport, MLCEngineInterface } from "../dist/index.js";
import { ServiceWorkerMLCEngineHandler } from "../dist/service_worker_handler.js";

const appConfig = { model_list: [{ model: "https://models.example/tern/", model_id: "tern-q4f32_1-MLC" }] };
const selectedModel = "tern-q4f32_1-MLC";
const initProgressCallback = (report: InitProgressReport): void => console.log(report.text, report.progress);

export async function engines(): Promise<MLCEngineInterface[]> {
  const own: MLCEngineInterface = new MLCEngine({ initProgressCallback, appConfig });
  await own.reload(selectedModel);
  const url = new URL("./worker.ts", import.meta.url);
  const worker = new Worker(url, { type: "module" });
  return [
    own,
    await CreateMLCEngine(selectedModel, { initProgressCallback, appConfig }, { context_window_size: 2048 }),
    await CreateWebWorkerMLCEngine(worker, selectedModel, { initProgressCallback, appConfig }),
    await CreateServiceWorkerMLCEngine(selectedModel, { initProgressCallback, appConfig }),
    await webllm.CreateMLCEngine(selectedModel, { appConfig }),
  ];
}

export async function talk(engine: MLCEngineInterface): Promise<string> {
  engine.setInitProgressCallback(initProgressCallback);
  const messages: webllm.ChatCompletionMessageParam[] = [
    { role: "system", content: "You are a helpful AI assistant." },
    { role: "user", content: "Hello!" },
  ];
  const reply = await engine.chat.completions.create({ messages, n: 1, logprobs: true, top_logprobs: 2 });
  console.log(reply.choices[0]?.message, reply.usage?.extra.decode_tokens_per_s);
  const request: webllm.ChatCompletionRequest = { messages, response_format: { type: "json_object" } };
  await engine.chatCompletion(request);
  const chunks = await engine.chat.completions.create({
    messages, temperature: 1, top_p: 0.9, seed: 7, stream: true, stream_options: { include_usage: true },
  });
  let text = "";
  for await (const chunk of chunks) {
    text += chunk.choices[0]?.delta.content || "";
    if (chunk.usage) console.log(chunk.usage);
  }
  engine.runtimeStatsText().then(console.log);
  engine.interruptGenerate();
  await engine.resetChat();
  const completion = await engine.completions.create({ prompt: "Once", echo: true, max_tokens: 8 });
  console.log(completion.choices[0]?.text, await engine.getGPUVendor(), await engine.getMaxStorageBufferBindingSize());
  if (await hasModelInCache(selectedModel, appConfig)) await deleteModelInCache(selectedModel, appConfig);
  await engine.unload();
  return (await engine.getMessage()) || text;
}

const handler = new WebWorkerMLCEngineHandler();
self.onmessage = (message: MessageEvent) => {
  handler.onmessage(message);
};
new ServiceWorkerMLCEngineHandler();
