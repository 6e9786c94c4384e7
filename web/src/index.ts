/** The package's face: what a page imports. */

export * from "./engine.js";
export * from "./errors.js";
export type * from "./interfaces.js";
export type { InitProgressCallback, InitProgressReport, ModelNeeds } from "./loader.js";
export type { CachedModel } from "./cache.js";
export type * from "./protocol.js";
export type {
  ChatMessage as ChatCompletionMessageParam, ChatRequest as ChatCompletionRequest,
  CompletionRequest as CompletionCreateParams, Tool as ChatCompletionTool,
} from "./protocol.js";
export {
  CreateServiceWorkerEngine, CreateServiceWorkerMLCEngine, ServiceWorkerEngine, ServiceWorkerMLCEngine,
} from "./service_worker.js";
export {
  CreateWebWorkerEngine, CreateWebWorkerMLCEngine, WebWorkerEngine, WebWorkerMLCEngine,
} from "./worker_engine.js";
export { WebWorkerEngineHandler, WebWorkerMLCEngineHandler } from "./worker_handler.js";
