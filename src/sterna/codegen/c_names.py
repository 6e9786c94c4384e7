"""C identifiers for the names of the IR, each used once in a function."""

from __future__ import annotations

_KEYWORDS = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if"
    " inline int long register restrict return short signed sizeof static struct switch typedef"
    " union unsigned void volatile while asm typeof"
    # Of C++ and the languages of kernels, whose renderers name things with this too.
    " and bool catch class delete device discard enable export false fn friend global half kernel"
    " let local mutable namespace new not operator or override private protected ptr public"
    " template this thread threadgroup throw true try typename uniform using var virtual"
    " workgroup xor"
    " i8 u8 i16 u16 i32 u32 i64 u64 f32 usize Pool WorkFn memcpy memset memmove parallel"
    " a args begin end tid pool scratch".split()
)


def name(text: str) -> str:
    """A C identifier that reads like `text`."""
    plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in text) or "_"
    return f"_{plain}" if plain[0].isdigit() else f"{plain}_" if plain in _KEYWORDS else plain


class Names:
    """Identifiers that are taken."""

    def __init__(self, taken: set[str] | None = None) -> None:
        self.taken = set() if taken is None else taken

    def new(self, text: str, parts: int = 0) -> str:
        """An identifier like `text` that is not taken; it is from now on.

        So are `<identifier>_0` and on, `parts` of them.
        """
        base = found = name(text)
        number = 1
        while not self.taken.isdisjoint(family := {found, *(f"{found}_{i}" for i in range(parts))}):
            number += 1
            found = f"{base}_{number}"
        self.taken |= family
        return found

    def copy(self) -> Names:
        return Names(set(self.taken))
