"""Norms, by the name of their tensors."""

from __future__ import annotations

from collections.abc import Callable

from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op

Norm = Callable[[GraphBuilder, Hparams, Ref, str], Ref]
"""The norm whose weight is `<name>.weight`; one shorter than the value is for each group of as many elements."""


def rms_norm(g: GraphBuilder, h: Hparams, x: Ref, name: str) -> Ref:
    return g.rms_norm(x, name, h.norm_eps)


def rms_norm_if_there(g: GraphBuilder, h: Hparams, x: Ref, name: str) -> Ref:
    """In models that have it by a flag."""
    return g.rms_norm(x, name, h.norm_eps) if g.has(f"{name}.weight") else x


def layer_norm(g: GraphBuilder, h: Hparams, x: Ref, name: str) -> Ref:
    """With a bias, if the file has one."""
    return g.layer_norm(x, name, h.norm_eps)


def bare_layer_norm(g: GraphBuilder, h: Hparams, x: Ref, name: str) -> Ref:
    """Without a weight: there is no tensor of this name."""
    return g.add(Op.LAYER_NORM, (x,), label=name, eps=h.norm_eps)
