/** The library as `vendor.mjs` copies it beside the compiled modules. */
export { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";
