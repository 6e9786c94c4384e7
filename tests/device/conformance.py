"""Every kernel of small models in several schemes, and every target that can be executed here.

Cases are the kernels that the compiler makes for prefill, decode and verify, at shapes that no
tile divides; equal ones of different schemes count once. Attention is there besides with one query
head for a kv head, and with eight: a driver was wrong at these alone. Targets are run by their
driver, or, where there is no such hardware, by compiling their own source for the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simt"))

from fake_drivers import simulated_cuda, simulated_hip
from fake_metal import simulated_metal
from kernel_arrays import ADAPTERS
from spirv_device import simulated_vulkan

from sterna.base.artifact import AdapterRoom, CompileOptions, Launch
from sterna.base.errors import CodegenError, Unavailable
from sterna.base.target import Target, parse_target
from sterna.checkpoint.model_folder import ModelFolder
from sterna.codegen.renderer import RenderedKernel, renderer_of
from sterna.compiler import compile_source
from sterna.ir.equal import digest
from sterna.ir.loop import PrimFunc
from sterna.runtime import cuda, hip, opencl, vulkan, webgpu
from sterna.runtime.vulkan import VulkanDevice
from sterna.runtime.work_groups import Device

CONFIG = {
    "hidden_act": "silu", "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3,
    "num_hidden_layers": 2, "num_key_value_heads": 1, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 77,
    "model_type": "llama", "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
CHAT = {"context_window_size": 256, "prefill_chunk_size": 80, "model_config": {"max_batch_size": 4}}
SCHEMES = ("q4f16_1", "q4f32_1", "q4bf16_1")
HEADS, HEADS_SCHEME = (1, 8), "q4f32_1"  # query heads of a kv head; its cache is every target's
ATTENTION = CONFIG | {
    "hidden_size": 32, "intermediate_size": 32, "head_dim": 32, "num_hidden_layers": 1,
    "vocab_size": 32,
}  # fmt: skip
TOKENS = (1, 3, 65)
ROOM = AdapterRoom(count=ADAPTERS, rank=5, modules=("model.layers.{i}.mlp.down_proj",))


def driver_opencl() -> Device:
    try:
        return opencl.open_device()
    except Unavailable as error:
        pytest.skip(str(error))


def driver_webgpu() -> Device:
    try:
        return webgpu.open_device()
    except Unavailable as error:
        pytest.skip(str(error))


def with_subgroups(device: Device, lanes: int) -> Device:
    """The device, where it can run kernels whose threads hand values on among so many."""
    if device.limits.lanes < lanes:
        device.close()
        pytest.skip(f"{device.name} has no subgroups of {lanes} threads")
    return device


def driver_webgpu_subgroups() -> Device:
    lanes = parse_target("webgpu:barrier-free-subgroups").subgroup
    return with_subgroups(driver_webgpu(), lanes)


def driver_vulkan() -> VulkanDevice:
    try:
        return vulkan.open_device()
    except Unavailable as error:
        pytest.skip(str(error))


def driver_cuda() -> Device:
    try:
        return cuda.open_device()
    except Unavailable as error:
        pytest.skip(str(error))


def driver_rocm() -> Device:
    try:
        return hip.open_device()
    except Unavailable as error:
        pytest.skip(str(error))


# Target, and what runs its kernels here.
TARGETS: dict[str, Callable[[], Device]] = {
    "opencl": driver_opencl,
    "opencl:mali": driver_opencl,
    "cuda": driver_cuda,
    "cuda:source": simulated_cuda,
    "rocm": driver_rocm,
    "rocm:source": simulated_hip,
    "metal": simulated_metal,
    "webgpu": driver_webgpu,
    "webgpu:f16": driver_webgpu,
    "webgpu:barrier-free": driver_webgpu,
    "webgpu:barrier-free-subgroups": driver_webgpu_subgroups,
    "vulkan": driver_vulkan,
    "vulkan:f32": driver_vulkan,
    # Whether a driver has these subgroups and matrices or not.
    "vulkan:matrix": partial(simulated_vulkan, parse_target("vulkan:matrix")),
    "vulkan:matrix8": partial(simulated_vulkan, parse_target("vulkan:matrix8")),
}


# Rows with subgroups, those without whose bits they have, and the kernels that they serve.
SUBGROUPS = {
    "opencl:subgroups": ("opencl", "attention"),
    "vulkan:subgroups": ("vulkan", "attention"),
    "webgpu:subgroups": ("webgpu", "attention"),
    "webgpu:barrier-free-subgroups": ("webgpu:barrier-free", "matmul"),
}


@dataclass(frozen=True)
class Case:
    """One kernel. `single`: it serves steps of one token a sequence."""

    name: str
    op: str
    schedule: str
    func: PrimFunc
    single: bool


def cases(target: Target) -> list[Case]:
    """The distinct kernels of CONFIG in all schemes for a target; of HEADS those of attention."""
    made: list[Case] = []
    for scheme in SCHEMES:
        adapters = ROOM if scheme == SCHEMES[0] else None
        made += _kernels(CONFIG, scheme, scheme, target, CompileOptions(adapters=adapters))
    for heads in HEADS:
        config, of = ATTENTION | {"num_attention_heads": heads}, f"{heads}_heads_{HEADS_SCHEME}"
        kernels = _kernels(config, HEADS_SCHEME, of, target, CompileOptions())
        made += [case for case in kernels if case.op == "attention"]
    found: dict[str, Case] = {}
    for case in made:
        same = " ".join([digest(case.func), *(d.name for d in case.func.dims)])
        found.setdefault(same, case)
    return list(found.values())


def _kernels(
    config: Mapping[str, Any], scheme: str, of: str, target: Target, options: CompileOptions
) -> list[Case]:
    """What a library launches, but for the choice of tokens; their names end with `of`."""
    folder = ModelFolder(Path(), dict(CHAT), dict(config), "llama", scheme, scheme, {})
    source = compile_source(folder, target, options)
    sampler = source.manifest.sampler
    choosing = {s.kernel for s in sampler.steps if isinstance(s, Launch)} if sampler else set()
    made = []
    for title, kernel in source.table.kernels.items():
        if title in choosing:
            continue  # its inputs are the sampler's own tests' business
        single = len(kernel.source.launches) > 1  # pieces of one query, then their merge
        func = replace(kernel.func, name=f"{title}_{of}")
        made.append(Case(func.name, kernel.op, kernel.schedule, func, single))
    return made


def rendered(found: list[Case], target: Target) -> dict[str, RenderedKernel]:
    """The kernels that a target can express; what has no 16-bit numbers in memory refuses some."""
    renderer = renderer_of(target)
    result = {}
    for c in found:
        try:
            result[c.name] = RenderedKernel(c.func, renderer.render_kernel(c.func, target))
        except CodegenError as error:
            if "memory has no such numbers" not in str(error):
                raise
    return result


def target_named(name: str) -> Target:
    return parse_target(name)
