/** The library as `vendor.mjs` copies it beside the compiled modules. */
export { Tokenizer } from "@huggingface/tokenizers";
