"""Architectures: one file per family, listed here by hand."""

from __future__ import annotations

from loragraft.archs import (
    arcee,
    command_r,
    exaone4,
    gemma,
    gemma3,
    granite,
    llama,
    nemotron,
    olmo2,
    olmoe,
    qwen2,
    qwen2moe,
    qwen3,
    qwen3moe,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
)
from loragraft.archs.arch import Arch, ConfigClass, Registry

ARCHS = Registry(
    [
        arcee.ARCH,
        command_r.ARCH,
        command_r.ARCH2,
        exaone4.ARCH,
        gemma.ARCH,
        gemma.ARCH2,
        gemma3.ARCH,
        granite.ARCH,
        granite.MOE,
        llama.ARCH,
        nemotron.ARCH,
        olmo2.ARCH,
        olmoe.ARCH,
        qwen2.ARCH,
        qwen2moe.ARCH,
        qwen3.ARCH,
        qwen3moe.ARCH,
        seed_oss.ARCH,
        smollm3.ARCH,
        stablelm.ARCH,
        starcoder2.ARCH,
    ]
)

__all__ = ["ARCHS", "Arch", "ConfigClass", "Registry"]
