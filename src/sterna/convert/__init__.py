"""From a Hugging Face folder to a converted one: `convert_weight` and `gen_config`.

Each writes its own part of the folder at one stroke, in either order; both leave it complete.
"""

from sterna.convert.chat_config import ChatOptions, gen_config
from sterna.convert.gguf_folder import source_folder
from sterna.convert.receipt import Receipt, format_receipt
from sterna.convert.source import STORED, default_quantization
from sterna.convert.weights import ConvertOptions, ConvertProgress, convert_weight

__all__ = [
    "STORED",
    "ChatOptions",
    "ConvertOptions",
    "ConvertProgress",
    "Receipt",
    "convert_weight",
    "default_quantization",
    "format_receipt",
    "gen_config",
    "source_folder",
]
