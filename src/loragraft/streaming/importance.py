"""An importance matrix on a model: which of its entries fit a tensor, and which tensors have none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loragraft.errors import ImatrixError
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.quants.roles import Category, category
from loragraft.streaming.options import QuantizeOptions
from loragraft.units import names_text, plural

if TYPE_CHECKING:
    from loragraft.formats.imatrix import Imatrix
    from loragraft.streaming.steps import Step

#: llama.cpp named the experts' weights one by one before it stacked them.
_EXPERT = re.compile(r"(?P<stack>blk\.\d{1,9}\.ffn_(?:gate|down|up))\.(?P<expert>\d{1,9})\.weight")


def load_imatrix(options: QuantizeOptions, model: ModelSource, notes: list[str]) -> Imatrix | None:
    """The matrix that the options name, without the entries that they leave out, those of single experts stacked as
    `model` has them; None if nothing is left. Entries that fit no tensor go to `notes`.

    Raises ImatrixError if none fits.
    """
    if options.imatrix is None:
        return None
    loaded = options.imatrix
    if isinstance(loaded, Path):
        from loragraft.formats.imatrix import Imatrix

        loaded = Imatrix.load(loaded)
    imatrix = loaded.select(options.include_weights, options.exclude_weights)
    if not imatrix.sums:
        return None
    fitted = _stacked(imatrix, model.tensors)
    strange = [name for name in fitted.sums if name not in model.tensors]
    if len(strange) == len(fitted.sums):
        raise ImatrixError(
            matrix_path(options) or "imatrix",
            f"none of its {len(strange)} entries fits a tensor of the model",
            found=names_text(strange),
            expected=f"names such as {names_text([name for name in model.tensors if 'blk.' in name], 1)}",
            hint=f"collect one on this model: loragraft imatrix {model.path} --text TEXT -o imatrix.gguf",
        )
    if strange:
        notes.append(
            f"{matrix_path(options) or 'imatrix'}: {len(strange)} of its {len(fitted.sums)} entries fit no tensor "
            f"({names_text(strange)})"
        )
    return fitted


def lacking_note(options: QuantizeOptions, steps: list[Step]) -> str | None:
    """A note on the tensors that are quantized without an entry. The embedding's and the output's have none unless they
    were asked for, and are not counted."""
    usual = (Category.TOKEN_EMBD, Category.OUTPUT)
    steps = [step for step in steps if not step.copies and not step.type.is_float]
    steps = [step for step in steps if category(step.source.name) not in usual]
    lacking = [step.source.name for step in steps if step.importance is None]
    if not lacking:
        return None
    return (
        f"{matrix_path(options) or 'imatrix'}: has no entry for {len(lacking)} of {plural(len(steps), 'tensor')} "
        f"({names_text(lacking)}): all of their columns count alike"
    )


def matrix_path(options: QuantizeOptions) -> Path | None:
    """The importance matrix's file; None for one in memory."""
    return options.imatrix if isinstance(options.imatrix, Path) else None


def _stacked(imatrix: Imatrix, tensors: Mapping[str, TensorSource]) -> Imatrix:
    """Entries of single experts as rows of their stack's; an expert without one counts as one that no token reached."""
    groups: dict[str, dict[int, str]] = {}
    for name in imatrix.sums:
        if match := _EXPERT.fullmatch(name):
            groups.setdefault(f"{match['stack']}_exps.weight", {})[int(match["expert"])] = name
    sums, counts = dict(imatrix.sums), dict(imatrix.counts)
    for stack, experts in groups.items():
        tensor = tensors.get(stack)
        if tensor is None or stack in sums or len(tensor.shape) != 3 or max(experts) >= tensor.shape[0]:
            continue
        width = tensor.columns
        if any(imatrix.sums[name].size != width for name in experts.values()):
            continue
        total = np.zeros((tensor.shape[0], width), np.float32)
        reached = np.zeros(tensor.shape[0], np.int64)
        for expert, name in experts.items():
            total[expert], reached[expert] = sums.pop(name).reshape(-1), counts.pop(name)[0]
        sums[stack], counts[stack] = total, reached
    return replace(imatrix, sums=sums, counts=counts)
