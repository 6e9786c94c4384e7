"""A specialized module becomes an entry point: kernels, a launch program and a memory plan.

In: an IRModule of primitive Functions. Out: the manifest's Entry and the kernels it launches,
equal kernels once. Kernels are collected in a KernelTable that all entry points share. Knows the
target only to hand it to schedule rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

from msgspec import structs

from sterna.base.artifact import CHOOSE, KV_CACHE, STATES, Dim, Entry, Kernel, Launch, Repeat
from sterna.base.artifact import Buffer as ManifestBuffer
from sterna.base.dtype import F32
from sterna.base.errors import ScheduleError
from sterna.base.target import Target
from sterna.codegen.c_names import name
from sterna.codegen.renderer import Rendered, RenderedKernel, renderer_of
from sterna.ir.compute import Group
from sterna.ir.equal import digest
from sterna.ir.expr import Buffer, Expr, Var, const_value
from sterna.ir.graph import Binding, Function, IRModule, Value
from sterna.ir.loop import PrimFunc
from sterna.ir.printer import first_vars, to_text
from sterna.ir.rewrite import rename_buffers, substitute
from sterna.kernels.draw import draw_rows
from sterna.kernels.heaviest import DrawBuffers, sort_weights
from sterna.kernels.largest import LargestBuffers, edit_rows, place_rows, take_largest
from sterna.kernels.sample import ROW, sample
from sterna.ops import op as operator
from sterna.ops.restore import UNPACKING
from sterna.passes.cost import Cost, attention_cost, group_cost, moving_cost
from sterna.passes.lower import lower
from sterna.passes.lower_opaque import Setting, is_opaque, lower_opaque
from sterna.passes.plan_memory import MemoryPlan, Place, Run, Use, plan_memory
from sterna.passes.prepack import RowTile
from sterna.schedule.choose import Plan, plan_of, planned
from sterna.schedule.steps import Schedule
from sterna.schedule.steps import to_text as schedule_text

STEP_DIMS = ("n", "b", "p", "r", "t", "w", "q", "u")  # the last three of windows of an image


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel: its loop program, how it was scheduled, what it costs, its source."""

    func: PrimFunc
    op: str
    schedule: str
    cost: Cost
    source: Rendered


@dataclass(slots=True)
class KernelTable:
    """Every distinct kernel of a library, by name; `known` finds equal ones.

    `tuned` has plans that were measured, by the digest of the Group; the others are the table's.
    """

    target: Target
    tuned: Mapping[str, Plan] = field(default_factory=dict)
    kernels: dict[str, Compiled] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)

    def add(self, func: PrimFunc, op: str, schedule: str, cost: Cost) -> str:
        """The name of the kernel that computes `func`, rendered now if it is new.

        Bounds of the dims chose its schedule; the loops that came out serve any size, so entry
        points share them.
        """
        func = _unbounded(func)
        # A launch passes dims by name, so kernels over different dims stay apart.
        identity = " ".join([digest(func), *(d.name for d in func.dims)])
        if identity not in self.known:
            title = _unused(op, self.kernels)
            func = replace(func, name=title)
            source = renderer_of(self.target).render_kernel(func, self.target)
            self.kernels[title] = Compiled(func, op, schedule, cost, source)
            self.known[identity] = title
        return self.known[identity]

    def plan(self, group: Group) -> Plan:
        """How a Group is scheduled here."""
        found = self.tuned.get(digest(group)) if self.tuned else None
        return found or plan_of(group, self.target)

    def scheduled(self, group: Group, plan: Plan) -> tuple[Schedule, PrimFunc]:
        """The steps and loops of a Group; ScheduleError naming a tuned plan that does not fit."""
        try:
            return planned(group, plan)
        except ScheduleError as error:
            if not self.tuned:
                raise
            raise ScheduleError(
                f"{error}; the plan {plan} is one of those tuned or imported for this device: tune "
                "again, or compile with --no-tuned"
            ) from None

    def code(self) -> dict[str, RenderedKernel]:
        return {title: RenderedKernel(k.func, k.source) for title, k in self.kernels.items()}

    def manifest(self) -> tuple[Kernel, ...]:
        return tuple(
            Kernel(
                name=title,
                op=k.op,
                schedule=k.schedule,
                flops=k.cost.flops,
                bytes=k.cost.bytes,
                items=" + ".join(k.source.items),
                dims=k.source.dims,
                phases=k.source.launches,
            )
            for title, k in self.kernels.items()
        )


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """An Entry and the scheduled loop programs behind it, by primitive Function."""

    entry: Entry
    groups: Mapping[str, str]  # primitive Function -> text of its Group, for dumps
    scheduled: Mapping[str, Group]  # kernel -> the Group that a rule scheduled


def build_sampler(vocabulary: int, rows: int, table: KernelTable) -> Entry:
    """The entry point that chooses tokens from up to `rows` rows of a step's logits."""
    func = sample("sample", vocabulary, Var("m", lo=1))
    cost = Cost(f"r * {vocabulary}", f"r * {vocabulary * F32.bytes}")
    kernel = table.add(func, "sample", "by hand", cost)
    *inputs, output = func.params
    return Entry(
        name="sample",
        symbol="sterna_sample",
        dims=(
            _dim("r", 1, rows),
            _dim("e", 0, rows * vocabulary),
            _dim("v", 1, vocabulary),
        ),
        inputs=tuple(_buffer(b.name, b) for b in inputs),
        outputs=(_buffer(output.name, output),),
        arena=(),
        arena_bytes=0,
        scratch_bytes=table.kernels[kernel].source.scratch_bytes,
        steps=(Launch(kernel=kernel, args=tuple(b.name for b in func.params)),),
    )


def build_chooser(vocabulary: int, rows: int, table: KernelTable) -> Entry:
    """The entry point that chooses tokens in work groups: the largest, then what is drawn."""
    target = table.target
    b = LargestBuffers.of(vocabulary, Var("m", lo=1), barriers=target.barriers)
    d = DrawBuffers.of(b)
    funcs = (
        *(place_rows("place", b), edit_rows("edit", b), take_largest("largest", b)),
        *(sort_weights("heaviest", d), draw_rows("draw", d)),
    )
    steps = []
    for func in funcs:
        cost = Cost(f"r * {vocabulary}", f"r * {vocabulary * F32.bytes}")
        kernel = table.add(func, f"sample_{func.name}", "by hand", cost)
        steps.append(Launch(kernel=kernel, args=tuple(p.name for p in func.params)))
    given = b.given
    logits = replace(given.logits, shape=(ROW, given.logits.shape[1]))
    *inputs, sampled = (logits, *given.params[1:])
    arena, end = [], 0
    for buffer in (b.x, b.tops, d.heavy, d.sums, d.marks):
        arena.append(_buffer(buffer.name, buffer, end))
        size = prod(int(const_value(extent) or 0) for extent in buffer.shape[1:])
        end = _aligned(end + rows * size * buffer.dtype.bytes, target.buffer_align)
    return Entry(
        name=CHOOSE,
        symbol="sterna_choose",
        dims=(
            *(_dim("r", 1, rows), _dim("e", 0, vocabulary), _dim("v", 1, vocabulary)),
            _dim("d", 0, 1),
        ),
        inputs=tuple(_buffer(p.name, p) for p in inputs),
        outputs=(_buffer(sampled.name, sampled),),
        arena=tuple(arena),
        arena_bytes=end,
        scratch_bytes=0,
        steps=tuple(steps),
    )


def _aligned(size: int, to: int) -> int:
    return -(-size // to) * to


@dataclass(frozen=True, slots=True)
class _Launch:
    kernel: str
    args: tuple[Place, ...]
    use: Use
    layer: int = 0  # of the layers that a repeated body spans

    def moved(self, places: Mapping[Value, Value], layer: int) -> _Launch:
        """The same launch on other values, for another layer of the body."""

        def at(place: Place) -> Place:
            return places.get(place, place) if isinstance(place, Value) else place

        use = Use(
            tuple(at(p) for p in self.use.reads),
            tuple(at(p) for p in self.use.writes),
            {places.get(a, a): places.get(b, b) for a, b in self.use.aliases.items()},
        )
        return _Launch(self.kernel, tuple(at(p) for p in self.args), use, layer)


def build_entry(
    title: str,
    module: IRModule,
    tiles: Mapping[str, RowTile],
    setting: Setting,
    table: KernelTable,
    output: str = "logits",
    whole: IRModule | None = None,
) -> EntryPoint:
    """Lower, schedule and render every kernel of `module`, and plan its memory.

    `output` is what the manifest calls the result. `whole` is the module before it was specialized:
    where kernels take long to compile when they are loaded, as they do without barriers, bounds
    choose their schedules and nothing else, so that entry points share them.
    """
    wide = module
    if whole is not None and setting.groups and not setting.barriers:
        wide = whole
        dims = {d.name: d for d in whole.dims}
        setting = replace(setting, dims=tuple(dims[d.name] for d in setting.dims))
    builder = _Builder(module, wide, tiles, setting, table)
    entry = module.functions[module.entry]
    steps = builder.steps(entry)
    fixed = (*entry.params, *entry.results)
    plan = plan_memory([_timed(s) for s in steps], fixed, table.target.buffer_align)
    names = _Names(plan, entry, output)
    scratch = [table.kernels[k].source.scratch_bytes for k in builder.used]
    return EntryPoint(
        Entry(
            name=title,
            symbol=f"sterna_entry_{title}",
            dims=tuple(_dim(d.name, d.lo, d.hi) for d in module.dims if d.name in STEP_DIMS),
            inputs=tuple(_buffer(v.name, v) for v in entry.params if v.name != KV_CACHE),
            outputs=(_buffer(output, entry.results[0]),),
            arena=names.arena(),
            arena_bytes=plan.total,
            scratch_bytes=max(scratch, default=0),
            steps=_with_rows(tuple(names.step(s) for s in steps), entry),
            tile=builder.tile,
        ),
        builder.groups,
        builder.scheduled,
    )


@dataclass(slots=True)
class _Repeated:
    """A function run for some layers in turn."""

    binding: Binding
    function: Function
    body: list[_Launch]

    def attr(self, name: str, usual: int) -> int:
        return int(dict(self.binding.call.attrs).get(name, usual))  # type: ignore[arg-type]


@dataclass(slots=True)
class _Builder:
    module: IRModule
    wide: IRModule  # the same Functions, with the bounds that kernels are made for
    tiles: Mapping[str, RowTile]
    setting: Setting
    table: KernelTable
    groups: dict[str, str] = field(default_factory=dict)
    scheduled: dict[str, Group] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    bodies: dict[str, list[_Launch]] = field(default_factory=dict)
    tile: int = 1  # rows of x that products take together

    def steps(self, function: Function) -> list[_Launch | _Repeated]:
        result: list[_Launch | _Repeated] = []
        for binding in function.bindings:
            callee = self.module.functions[binding.call.op]
            if callee.primitive:
                result.append(self.launch(callee))
            else:
                result.append(_Repeated(binding, callee, self.body(callee)))
        return result

    def body(self, function: Function) -> list[_Launch]:
        """The launches of a Function, lowered once however often it is called."""
        if function.name not in self.bodies:
            self.bodies[function.name] = [
                launch for binding in function.bindings for launch in self._launches(binding)
            ]
        return self.bodies[function.name]

    def _launches(self, binding: Binding) -> list[_Launch]:
        callee = self.module.functions[binding.call.op]
        if callee.primitive:
            return [self.launch(callee)]
        body = self.body(callee)
        places = {v: Value(v.name, v.type) for v in _made(body)}
        places |= zip(callee.params, binding.call.args, strict=True)
        places |= zip(callee.results, binding.outs, strict=True)
        offset = int(dict(binding.call.attrs)["offset"])  # type: ignore[arg-type]
        return [launch.moved(places, offset) for launch in body]

    def launch(self, function: Function) -> _Launch:
        """The kernel of a primitive Function; its values are those of the caller."""
        heads = [b.call.op for b in function.bindings if b.call.op not in _QUIET]
        op = "_".join(heads) or function.bindings[-1].call.op  # one that only moves is heard of
        wide = self.wide.functions[function.name]
        if is_opaque(function, self.setting):
            program = lower_opaque(wide, self.setting)
            own = _counterparts(wide, function)
            cost = _opaque_cost(function, self.tiles)
            kernel = self.table.add(program.func, op, "by hand", cost)
            self.groups[function.name] = to_text(self_contained(program.func))
            args = tuple(own[a] if isinstance(a, Value) else a for a in program.args)
            aliases = {own[a]: own[b] for a, b in program.aliases.items()}
            workspaces = tuple(a for a in args if isinstance(a, Buffer))
        else:
            lowered = lower(function, self.tiles)
            group = lowered.group if wide is function else lower(wide, self.tiles).group
            plan = self.table.plan(lowered.group)
            self.tile = max(self.tile, plan.tile)
            steps, func = self.table.scheduled(group, plan)
            cost = group_cost(lowered.group)
            kernel = self.table.add(func, op, schedule_text(steps), cost)
            self.scheduled.setdefault(kernel, lowered.group)
            self.groups[function.name] = to_text(lowered.group)
            args, aliases, workspaces = (*lowered.inputs, *lowered.outputs), {}, ()
        self.used.add(kernel)
        weights = set(function.weights)
        results = tuple(r for r in function.results if r not in aliases)
        values = dict.fromkeys(a for a in args if isinstance(a, Value))  # a view is no second one
        reads = tuple(v for v in values if v not in weights and v not in results)
        return _Launch(kernel, tuple(args), Use(reads, (*results, *workspaces), aliases))


def _counterparts(of: Function, function: Function) -> dict[Value, Value]:
    """The values of a Function for those of one that differs in bounds alone."""

    def values(f: Function) -> tuple[Value, ...]:
        return (*f.params, *f.weights, *(out for b in f.bindings for out in b.outs), *f.results)

    return dict(zip(values(of), values(function), strict=True))


def _made(body: list[_Launch]) -> list[Value]:
    """Values that launches write, or that are new names of what they change."""
    made = (p for launch in body for p in (*launch.use.writes, *launch.use.aliases))
    return [p for p in made if isinstance(p, Value)]


_QUIET = (*UNPACKING, "slice", "slice_groups", "repeat_heads", "flatten", "cast")


def _opaque_cost(function: Function, tiles: Mapping[str, RowTile]) -> Cost:
    head = function.bindings[-1]
    if operator(head.call.op).compute is not None:
        return group_cost(lower(function, tiles).group)
    if head.call.op != "attention":
        return moving_cost(function)
    dim = int(dict(head.call.attrs)["head_dim"])  # type: ignore[arg-type]
    cache = head.call.args[1]
    heads = int(const_value(head.call.args[0].shape[1]) or 0) // dim
    return attention_cost(function, heads, dim, Buffer("cache", cache.dtype, cache.shape))


def _timed(step: _Launch | _Repeated) -> Use | Run:
    if isinstance(step, _Launch):
        return step.use
    return Run(step.binding, step.function, tuple(launch.use for launch in step.body))


class _Names:
    """What places are called in the manifest: inputs, outputs and weights by their own names."""

    def __init__(self, plan: MemoryPlan, entry: Function, output: str) -> None:
        self.plan = plan
        self.fixed = {plan.home(v): v.name for v in entry.params}
        self.fixed[plan.home(entry.results[0])] = output
        self.given: dict[Place, str] = {}
        for place in plan.offsets:
            taken = {*self.fixed.values(), *self.given.values()}
            self.given[place] = _unused(name(place.name), taken)

    def of(self, place: Place) -> str:
        home = self.plan.home(place)
        return self.fixed.get(home) or self.given.get(home) or place.name

    def arena(self) -> tuple[ManifestBuffer, ...]:
        return tuple(_buffer(self.given[p], p, offset) for p, offset in self.plan.offsets.items())

    def step(self, step: _Launch | _Repeated) -> Launch | Repeat:
        if isinstance(step, _Launch):
            args = tuple(self.of(a) for a in step.args)
            return Launch(kernel=step.kernel, args=args, layer=step.layer)
        body = tuple(self.step(launch) for launch in step.body)
        return Repeat(
            var="i",
            count=step.attr("repeat", 1),
            body=body,  # type: ignore[arg-type]
            first=step.attr("first", 0),
            stride=step.attr("stride", 1),
        )


def _with_rows(steps: tuple[Launch | Repeat, ...], entry: Function) -> tuple[Launch | Repeat, ...]:
    """Launches that know under which row a cache has their layer, where it has some layers only."""
    sizes = {v.name: const_value(v.shape[1]) for v in entry.params if v.name in (KV_CACHE, STATES)}
    rows: dict[str, dict[int, int]] = {}
    for title, size in sizes.items():
        layers = sorted(
            {
                step.first + step.stride * i + launch.layer
                for step in steps
                if isinstance(step, Repeat)
                for launch in step.body
                if title in launch.args
                for i in range(step.count)
            }
        )
        if len(layers) == size and layers != list(range(len(layers))):
            rows[title] = {layer: row for row, layer in enumerate(layers)}

    def placed(launch: Launch, step: Repeat) -> Launch:
        own = next((rows[a] for a in launch.args if a in rows), None)
        if own is None:
            return launch
        first = step.first + launch.layer
        row = own[first]
        stride = own[first + step.stride] - row if step.count > 1 else 0
        return structs.replace(launch, row=row, row_stride=stride)

    return tuple(
        structs.replace(step, body=tuple(placed(launch, step) for launch in step.body))
        if isinstance(step, Repeat)
        else step
        for step in steps
    )


def _unbounded(func: PrimFunc) -> PrimFunc:
    """The same loops over dims without upper bounds."""
    dims: dict[Var, Expr] = {d: replace(d, hi=None) for d in func.dims}
    params = {p: replace(p, shape=tuple(substitute(d, dims) for d in p.shape)) for p in func.params}
    body = rename_buffers(substitute(func.body, dims), params)
    return PrimFunc(func.name, tuple(params.values()), tuple(dims.values()), body)  # type: ignore[arg-type]


def self_contained(func: PrimFunc) -> PrimFunc:
    """The kernel as text that reads back: all sizes in the shapes of its parameters are dims.

    The number of cached pages is none of a compiled kernel's dims: no address depends on it.
    """
    used = first_vars(extent for p in func.params for extent in p.shape)
    return replace(func, dims=(*func.dims, *(v for v in used if v not in func.dims)))


def _unused(wanted: str, taken: object) -> str:
    title, i = wanted, 1
    while title in taken:  # type: ignore[operator]
        i += 1
        title = f"{wanted}_{i}"
    return title


def _dim(title: str, lo: int | None, hi: int | None) -> Dim:
    return Dim(name=title, lo=lo or 0, hi=hi or 0)


def _buffer(title: str, place: Place, offset: int = 0) -> ManifestBuffer:
    shape = tuple(to_text(d) for d in place.shape)
    return ManifestBuffer(name=title, dtype=place.dtype.name, shape=shape, offset=offset)
