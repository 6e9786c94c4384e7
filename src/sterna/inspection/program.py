"""A library's functions with their symbolic shapes, and the launch program of each, as lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sterna.base.artifact import Buffer, Entry, Launch, Manifest, Repeat
from sterna.inspection.document import Line, Section, one_line

_MEANINGS = {
    "n": "tokens in the step",
    "b": "sequences",
    "p": "entries of the page table",
    "r": "rows of logits",
    "t": "query tiles",
    "w": "windows of an image",
    "q": "pages of those",
    "u": "query tiles of those",
}


def functions(manifest: Manifest) -> Section:
    """Each entry point as a signature, and what its dims may be."""
    lines: list[Line] = []
    for entry in manifest.entries:
        arguments = ", ".join(_buffer(buffer) for buffer in entry.inputs)
        results = ", ".join(_buffer(buffer) for buffer in entry.outputs)
        signature = f"{one_line(entry.name)}({arguments}) -> {results or 'nothing'}"
        lines.append(Line(signature, hanging=4, code=True))
        lines.append(Line(f"where {', '.join(_dims(entry))}", indent=4, hanging=6, code=True))
    return Section("Functions", (*lines, *_legend(manifest.entries)))


def programs(manifest: Manifest) -> Section:
    """What each entry point launches, in order; a repeat stands for all equal layers."""
    lines: list[Line] = []
    for entry in manifest.entries:
        lines.append(Line(f"{one_line(entry.name)}:", code=True))
        for step in entry.steps:
            if isinstance(step, Launch):
                lines.append(_launch(step, 4))
                continue
            lines.append(Line(_repeat(step), indent=4, code=True))
            lines += [_launch(launch, 8) for launch in step.body]
    return Section("Launch program", tuple(lines))


def _buffer(buffer: Buffer) -> str:
    return one_line(f"{buffer.name}: {buffer.dtype}[{', '.join(buffer.shape)}]")


def _dims(entry: Entry) -> Iterator[str]:
    for dim in entry.dims:
        yield one_line(f"{dim.name} in {dim.lo}..{dim.hi}" if dim.lo < dim.hi else
                       f"{dim.name} = {dim.lo}")  # fmt: skip


def _legend(entries: Iterable[Entry]) -> Iterator[Line]:
    names = dict.fromkeys(dim.name for entry in entries for dim in entry.dims)
    known = [f"{name} {_MEANINGS[name]}" for name in names if name in _MEANINGS]
    if known:
        yield Line("; ".join(known) + ".")


def _repeat(step: Repeat) -> str:
    """The loop over layers as a range; layers past the first of a body show in its launches."""
    last = step.first + step.count * step.stride
    by = f" by {step.stride}" if step.stride > 1 else ""
    return f"repeat {one_line(step.var)} in {step.first}..{last}{by}:"


def _launch(launch: Launch, indent: int) -> Line:
    layer = f"{{i + {launch.layer}}}" if launch.layer else "{i}"
    args = (arg.replace("{i}", layer) for arg in launch.args)
    text = one_line(f"{launch.kernel}({', '.join(args)})")
    return Line(text, indent=indent, hanging=4, code=True)
