"""Architectures: one file per family, listed here by hand."""

from __future__ import annotations

from loragraft.archs import (
    arcee,
    command_r,
    ernie4_5,
    exaone4,
    falcon,
    gemma,
    gemma3,
    glm4,
    gpt2,
    gpt_neox,
    granite,
    hunyuan,
    llama,
    nemotron,
    olmo,
    olmo2,
    olmoe,
    phi,
    phi3,
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
        ernie4_5.ARCH,
        exaone4.ARCH,
        falcon.ARCH,
        gemma.ARCH,
        gemma.ARCH2,
        gemma3.ARCH,
        glm4.ARCH,
        glm4.CHATGLM,
        gpt2.ARCH,
        gpt2.BIGCODE,
        gpt_neox.ARCH,
        granite.ARCH,
        granite.MOE,
        hunyuan.ARCH,
        llama.ARCH,
        nemotron.ARCH,
        olmo.ARCH,
        olmo2.ARCH,
        olmoe.ARCH,
        phi.ARCH,
        phi3.ARCH,
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
