"""C text that carries data inside a library: the pool's source and the manifest.

A manifest is one exported record, `sterna_manifest` (and `sterna_manifest_1`... where a library
carries programs for several machines): a 24-byte mark, its length as u64, the
JSON and a zero byte. The run wing finds it in the file by the mark, whatever machine the library
is for; a host in C takes the symbol's address and skips 32 bytes.
"""

from __future__ import annotations

from importlib.resources import files

from sterna.base.artifact import MANIFEST_MARK

_LINE_BYTES = 96


def pool_source() -> str:
    """The text of pool.h, which opens every translation unit."""
    return (files("sterna.codegen") / "pool.h").read_text(encoding="utf-8")


def manifest_source(manifest: bytes, symbol: str = "sterna_manifest") -> str:
    """The C definition of a manifest; it belongs after pool.h, in the unit that it describes."""
    pieces = [manifest[i : i + _LINE_BYTES] for i in range(0, len(manifest), _LINE_BYTES)]
    return (
        "EXPORT extern const struct SternaManifest"
        f" {{ char mark[{len(MANIFEST_MARK)}]; u64 size; char json[{len(manifest) + 1}]; }}"
        f" {symbol};\n"
        f"const struct SternaManifest {symbol} = {{\n"
        f'    "{_escaped(MANIFEST_MARK.rstrip(bytes(1)))}", {len(manifest)}u,\n'
        + "\n".join(f'    "{_escaped(piece)}"' for piece in pieces or [b""])
        + "\n};\n"
    )


def _escaped(data: bytes) -> str:
    # Three octal digits never swallow the next character; "?" is escaped against trigraphs.
    return "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}" for byte in data
    )
