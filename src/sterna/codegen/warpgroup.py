"""NVIDIA's product of a warpgroup (wgmma), in CUDA C++.

In: a name, the size of a unit, and the dtype of its operands. Out: the text of that function. It
is one group of asynchronous instructions and the wait for them, in one statement: no compiler can
move a register of the sum in between. PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
The instruction's A is the weight and its B is x, so its columns are rows of x.

Operands are read from shared memory by descriptors, K-major and without swizzle: eight rows of
eight elements lie together (see octets), the next eight rows 128 bytes on (the stride), the next
octet of k a column on (the leading dimension). Such reads are of the "async proxy", which sees what
threads wrote if each of them has said so (`publish_shared`) before the barrier.
"""

from __future__ import annotations

from sterna.base.dtype import DType
from sterna.base.target import MatrixUnit

_STEP = 16  # of k, in an instruction

# "Matrix Descriptor Format": address, leading and stride byte offsets, each in units of 16 bytes.
OCTETS = r"""
#ifndef STERNA_SIMT
STERNA_MAYBE u32 shared_address(const void *p) {
    u32 r;
    asm("{ .reg .u64 at; cvta.to.shared.u64 at, %1; cvt.u32.u64 %0, at; }" : "=r"(r) : "l"(p));
    return r;
}
STERNA_MAYBE void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif
STERNA_MAYBE u64 octets_at(const u16 *first, i32 column) {
    return (u64)((shared_address(first) & 0x3ffffu) >> 4) | (u64)(u32)column << 16 | (u64)8 << 32;
}
"""


def warpgroup_product(name: str, unit: MatrixUnit, dtype: DType) -> str:
    """The function for a unit of this size, once in a library however many kernels bring it."""
    kept, steps = unit.kept, unit.depth // _STEP
    inner = f"wgmma_n{unit.rows}_{dtype}"
    own = range(kept)
    numbers = ", ".join(f"%{i}" for i in own)
    instruction = f"wgmma.mma_async.sync.aligned.m{unit.columns}n{unit.rows}k{_STEP}"
    instruction += f".f32.{dtype}.{dtype}"
    products = "\n".join(
        f'        "{instruction} {{{numbers}}}, %{a}, %{a + steps}, add, 1, 1, 0, 0; "'
        for a in range(kept, kept + steps)
    )
    results = ", ".join(f'"+f"(c[{i}])' for i in own)
    sides = ", ".join(f'"l"({side}[{i}])' for side in "ab" for i in range(steps))
    return f"""\
#ifndef STERNA_{name}
#define STERNA_{name}
#ifndef STERNA_SIMT
STERNA_MAYBE void {inner}(f32 (&c)[{kept}], const u64 (&a)[{steps}], const u64 (&b)[{steps}]) {{
    asm volatile("{{ .reg .pred add; setp.eq.u32 add, 0, 0; wgmma.fence.sync.aligned; "
{products}
        "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; }}"
        : {results}
        : {sides}
        : "memory");
}}
#endif
STERNA_MAYBE void {name}({", ".join(f"f32 &c{i}" for i in own)},
    const u16 *x, i32 x_column, const u16 *weight, i32 weight_column) {{
    f32 c[{kept}] = {{{", ".join(f"c{i}" for i in own)}}};
    u64 a[{steps}], b[{steps}];
#pragma unroll
    for (i32 i = 0; i < {steps}; i++) {{
        a[i] = octets_at(weight + i * {_STEP} * weight_column, weight_column);
        b[i] = octets_at(x + i * {_STEP} * x_column, x_column);
    }}
    {inner}(c, a, b);
    {" ".join(f"c{i} = c[{i}];" for i in own)}
}}
#endif"""
