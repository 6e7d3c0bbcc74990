"""What config.json and GGUF both say, each in its own way: the rules that records are made of."""

from loragraft.archs.keys.plain_rope import PlainRope
from loragraft.archs.keys.rope import LayerRopes, RopeParameters, RotaryPart
from loragraft.archs.keys.rule import FILE_TYPE, GgufModel, Rule
from loragraft.archs.keys.usual import usual_keys
from loragraft.archs.keys.values import (
    Computed,
    Count,
    FeedForward,
    Flag,
    HeadDim,
    HiddenAct,
    KvHeads,
    Layers,
    NormTopK,
    Number,
    SparseLayers,
)
from loragraft.archs.keys.windows import Windows

__all__ = [
    "FILE_TYPE",
    "Computed",
    "Count",
    "FeedForward",
    "Flag",
    "GgufModel",
    "HeadDim",
    "HiddenAct",
    "KvHeads",
    "LayerRopes",
    "Layers",
    "NormTopK",
    "Number",
    "PlainRope",
    "RopeParameters",
    "RotaryPart",
    "Rule",
    "SparseLayers",
    "Windows",
    "usual_keys",
]
