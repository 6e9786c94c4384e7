"""`sterna gen_config`: the configuration, chat template and tokenizer of a model folder."""

from __future__ import annotations

import argparse

from sterna.cli.arguments import Subparsers, add_verb, number
from sterna.cli.say import note
from sterna.cli.source import add_source_flags, output_of, quantization_of, source_of

SIZES = {
    "context_window_size": "longest prompt and answer together (default: the model's)",
    "prefill_chunk_size": "most tokens in one step",
    "sliding_window_size": "tokens each token looks back, -1 for all (default: the model's)",
    "attention_sink_size": "first tokens that a sliding window always keeps",
    "max_batch_size": "most sequences in one step",
}


def add(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs,
        "gen_config",
        "write a model folder's configuration",
        "Write mlc-chat-config.json and the tokenizer's files beside the weights. "
        "`gen-config` is the same command.",
        "  sterna gen_config --source ./M-hf --quantization q4f16_1 --output ./dist/M \\\n"
        "      --context-window-size 4096 --prefill-chunk-size 512",
    )
    add_source_flags(parser)
    parser.add_argument(
        "--conv-template",
        metavar="NAME",
        help="a conversation template by name (default: the model's own chat template)",
    )
    for name, help in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=number(int), metavar="N", help=help)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    named, output = source_of(args), output_of(args)
    sizes = {name: getattr(args, name) for name in SIZES}
    from sterna.checkpoint.hub import resolve
    from sterna.convert import ChatOptions, gen_config

    source = resolve(named)
    gen_config(
        source,
        output,
        quantization=quantization_of(args, source, output),
        model_type=args.model_type,
        options=ChatOptions(conv_template=args.conv_template, **sizes),
    )
    note(f"wrote the configuration and the tokenizer's files to {output}")
    return 0
