"""PEFT's methods beside LoRA: what their tensors mean, one file per family.

Each is read into what the rest of loragraft knows: pairs (`ModuleDelta`), or factors and rotations (`ModuleTransform`).
"""

from __future__ import annotations

from loragraft.adapters.methods.adalora import ADALORA
from loragraft.adapters.methods.ia3 import IA3
from loragraft.adapters.methods.lycoris import LOHA, LOKR
from loragraft.adapters.methods.method import Method
from loragraft.adapters.methods.orthogonal import BOFT, HRA, OFT
from loragraft.adapters.methods.vera import VERA
from loragraft.adapters.methods.whole import LN_TUNING, TRAINABLE_TOKENS

METHODS: dict[str, Method] = {
    method.peft_type: method
    for method in (ADALORA, BOFT, HRA, IA3, LN_TUNING, LOHA, LOKR, OFT, TRAINABLE_TOKENS, VERA)
}
