import { WebWorkerMLCEngineHandler } from "/dist/index.js";

const handler = new WebWorkerMLCEngineHandler();
self.onmessage = (message) => {
  handler.onmessage(message);
};
