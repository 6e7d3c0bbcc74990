"""GGUF's granite and granitemoe: Granite 3, and Granite 4 where no layer is Mamba's."""

from __future__ import annotations

from dataclasses import replace

from loragraft.archs import granite, granite_hybrid
from loragraft.archs.arch import Arch
from loragraft.archs.hparams import Hparams
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import FEED_FORWARD

#: What the converter writes of Mamba layers that there are none of.
_MAMBA = ("conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count")


def hyperparameters(keys: MetadataKeys) -> Hparams:
    """With `rope.scaling.finetuned` false, nothing turns. `extra` says whether it is Granite 4: keys of Mamba do."""
    keys.cover(granite.SHARED_WIDTH.gguf, *(f"ssm.{key}" for key in _MAMBA))
    h = replace(granite.hyperparameters(keys), extra={"hybrid": keys.has("ssm.conv_kernel")})
    if keys.flag("rope.scaling.finetuned", True):
        return h
    return h.with_layers(lambda _, own: replace(own, rope=None))


_DENSE = replace(
    granite_hybrid.GRANITE_HYBRID,
    when=lambda values: granite_hybrid.attends_only(values) and not values.get("num_local_experts"),
    experts=False,
)
_EXPERTS = replace(
    granite_hybrid.GRANITE_HYBRID,
    when=lambda values: granite_hybrid.attends_only(values) and bool(values.get("num_local_experts")),
    experts=True,
)
ARCH = Arch(
    name="granite",
    classes=(granite.GRANITE, _DENSE),
    tensors=(
        *granite.TENSORS,
        *(replace(one, when=lambda h: not h.extra["hybrid"]) for one in FEED_FORWARD),
        *(replace(one, when=lambda h: h.extra["hybrid"]) for one in granite_hybrid.shared("", experts=False)),
    ),
    hparams=hyperparameters,
    build=granite.DECODER,
)
MOE = Arch(
    name="granitemoe",
    classes=(granite.GRANITE_MOE, granite.GRANITE_MOE_SHARED, _EXPERTS),
    tensors=(
        *granite.TENSORS,
        *granite.EXPERT_STACKS,
        *granite_hybrid.shared("_shexp", experts=True),
    ),
    hparams=hyperparameters,
    build=granite.MOE_DECODER,
)
