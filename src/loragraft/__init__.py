"""Get a LoRA fine-tune onto a quantized model without losing it.

    import loragraft as lg

    lg.merge("base", [("adapter", 1.0)], "merged.Q4_K_M.gguf", type="Q4_K_M")
    model = lg.load("merged.Q4_K_M.gguf")
    for text in model.generate("Once upon a time"):
        print(text, end="")

What the commands do is here as functions, of which `help(lg.merge)` says what they take, or as methods of the `Model`
that `load` returns (generate, perplexity, tokenize). Names are imported when first used, so that ``import loragraft``
costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loragraft.budget import budget as budget
    from loragraft.check import check as check
    from loragraft.compare import compare as compare
    from loragraft.convert import convert as convert
    from loragraft.convert import convert_adapter as convert_adapter
    from loragraft.errors import AdapterError as AdapterError
    from loragraft.errors import CheckpointError as CheckpointError
    from loragraft.errors import FormatError as FormatError
    from loragraft.errors import GGUFError as GGUFError
    from loragraft.errors import GraphError as GraphError
    from loragraft.errors import ImatrixError as ImatrixError
    from loragraft.errors import LoragraftError as LoragraftError
    from loragraft.errors import OutputError as OutputError
    from loragraft.errors import QuantizeError as QuantizeError
    from loragraft.errors import TextError as TextError
    from loragraft.errors import UnsupportedError as UnsupportedError
    from loragraft.export import export as export
    from loragraft.imatrix import imatrix as imatrix
    from loragraft.inspect import inspect as inspect
    from loragraft.load import Model as Model
    from loragraft.load import load as load
    from loragraft.merge import merge as merge
    from loragraft.options import QuantizeOptions as QuantizeOptions
    from loragraft.quantize import quantize as quantize
    from loragraft.split import join as join
    from loragraft.split import split as split
    from loragraft.tokenizer import Tokenizer as Tokenizer

__version__ = "0.1.0"

#: Where each public name is defined.
_HOMES = {
    "AdapterError": "loragraft.errors",
    "CheckpointError": "loragraft.errors",
    "FormatError": "loragraft.errors",
    "GGUFError": "loragraft.errors",
    "GraphError": "loragraft.errors",
    "ImatrixError": "loragraft.errors",
    "LoragraftError": "loragraft.errors",
    "OutputError": "loragraft.errors",
    "QuantizeError": "loragraft.errors",
    "TextError": "loragraft.errors",
    "UnsupportedError": "loragraft.errors",
    "Model": "loragraft.load",
    "Tokenizer": "loragraft.tokenizer",
    "budget": "loragraft.budget",
    "check": "loragraft.check",
    "compare": "loragraft.compare",
    "convert": "loragraft.convert",
    "convert_adapter": "loragraft.convert",
    "export": "loragraft.export",
    "imatrix": "loragraft.imatrix",
    "load": "loragraft.load",
    "inspect": "loragraft.inspect",
    "join": "loragraft.split",
    "merge": "loragraft.merge",
    "QuantizeOptions": "loragraft.options",
    "quantize": "loragraft.quantize",
    "split": "loragraft.split",
}


__all__ = [
    "AdapterError",
    "CheckpointError",
    "FormatError",
    "GGUFError",
    "GraphError",
    "ImatrixError",
    "LoragraftError",
    "Model",
    "OutputError",
    "QuantizeError",
    "QuantizeOptions",
    "TextError",
    "Tokenizer",
    "UnsupportedError",
    "__version__",
    "budget",
    "check",
    "compare",
    "convert",
    "convert_adapter",
    "export",
    "imatrix",
    "inspect",
    "join",
    "load",
    "merge",
    "quantize",
    "split",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loragraft' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Package(ModuleType):
    """A verb and the module that defines it share a name: `loragraft.merge` is the function. The import system would
    bind the module there as soon as anything imports it; this declines."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
