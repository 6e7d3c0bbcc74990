"""Architectures: one file per family, listed here by hand."""

from __future__ import annotations

from loragraft.archs import (
    gemma3,
    llama,
    qwen2,
    qwen2moe,
    qwen3,
    qwen3moe,
    starcoder2,
)
from loragraft.archs.arch import Arch, ConfigClass, Registry

ARCHS = Registry(
    [
        gemma3.ARCH,
        llama.ARCH,
        qwen2.ARCH,
        qwen2moe.ARCH,
        qwen3.ARCH,
        qwen3moe.ARCH,
        starcoder2.ARCH,
    ]
)

__all__ = ["ARCHS", "Arch", "ConfigClass", "Registry"]
