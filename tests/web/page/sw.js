import { ServiceWorkerEngineHandler } from "/dist/service_worker_handler.js";

new ServiceWorkerEngineHandler();
