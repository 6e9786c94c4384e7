"""Text in, ids out, and back: tokenizers, chat templates, streaming decoders, stop strings.

In come the tokenizer files and templates of a model folder and users' strings; out come token ids
and text. Knows nothing of models, devices or requests; imports `base` only.
"""
