"""Counter-based random numbers: Philox4x32-10 in plain integers.

(seed, stream, position) in, 64 random bits out. No state, so a draw does not depend on
which others were made, and any language replays it. Salmon et al., "Parallel random numbers:
as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds over four 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def draw_bits(seed: int, stream: int, position: int) -> int:
    """The draw for the token at `position` of answer `stream`: 64 bits."""
    counter = (position & _MASK, position >> 32 & _MASK, stream & _MASK, 0)
    high, low, _, _ = philox(counter, (seed & _MASK, seed >> 32 & _MASK))
    return high << 32 | low
