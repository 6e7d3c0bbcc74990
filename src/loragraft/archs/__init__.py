"""Architectures: one file per model_type, listed here by hand."""

from __future__ import annotations

from loragraft.archs import llama, qwen2, qwen3, qwen3moe, starcoder2
from loragraft.archs.base import Arch, Registry

ARCHS = Registry([llama.ARCH, qwen2.ARCH, qwen3.ARCH, starcoder2.ARCH, qwen3moe.ARCH])

__all__ = ["ARCHS", "Arch", "Registry"]
