// The worker of the page: an engine that answers its messages.

import { WebWorkerEngineHandler } from "./sterna/worker_handler.js";

new WebWorkerEngineHandler();
