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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loragraft.adapters.combine import Combination as Combination
    from loragraft.errors import AdapterError as AdapterError
    from loragraft.errors import BusyError as BusyError
    from loragraft.errors import CheckpointError as CheckpointError
    from loragraft.errors import ContextError as ContextError
    from loragraft.errors import FormatError as FormatError
    from loragraft.errors import GGUFError as GGUFError
    from loragraft.errors import GraphError as GraphError
    from loragraft.errors import ImatrixError as ImatrixError
    from loragraft.errors import LoragraftError as LoragraftError
    from loragraft.errors import OutputError as OutputError
    from loragraft.errors import PoolError as PoolError
    from loragraft.errors import QuantizeError as QuantizeError
    from loragraft.errors import TextError as TextError
    from loragraft.errors import TimeLimitError as TimeLimitError
    from loragraft.errors import UnknownAdapterError as UnknownAdapterError
    from loragraft.errors import UnsupportedError as UnsupportedError
    from loragraft.inference.measurement import Measurement as Measurement
    from loragraft.inference.model import Model as Model
    from loragraft.inference.model import load as load
    from loragraft.inference.tokenizer import Tokenizer as Tokenizer
    from loragraft.streaming.options import QuantizeOptions as QuantizeOptions
    from loragraft.verbs.budget import budget as budget
    from loragraft.verbs.check import check as check
    from loragraft.verbs.combine import combine as combine
    from loragraft.verbs.compare import compare as compare
    from loragraft.verbs.convert import convert as convert
    from loragraft.verbs.convert import convert_adapter as convert_adapter
    from loragraft.verbs.devices import devices as devices
    from loragraft.verbs.export import export as export
    from loragraft.verbs.extract import extract as extract
    from loragraft.verbs.imatrix import imatrix as imatrix
    from loragraft.verbs.inspect import inspect as inspect
    from loragraft.verbs.merge import merge as merge
    from loragraft.verbs.ollama import ollama as ollama
    from loragraft.verbs.push import push as push
    from loragraft.verbs.quantize import quantize as quantize
    from loragraft.verbs.report import report as report
    from loragraft.verbs.split import join as join
    from loragraft.verbs.split import split as split
    from loragraft.verbs.unmerge import unmerge as unmerge

__version__ = "0.1.0"

#: Where each public name is defined.
_HOMES = {
    "AdapterError": "loragraft.errors",
    "Combination": "loragraft.adapters.combine",
    "BusyError": "loragraft.errors",
    "TimeLimitError": "loragraft.errors",
    "UnknownAdapterError": "loragraft.errors",
    "ContextError": "loragraft.errors",
    "CheckpointError": "loragraft.errors",
    "FormatError": "loragraft.errors",
    "GGUFError": "loragraft.errors",
    "GraphError": "loragraft.errors",
    "ImatrixError": "loragraft.errors",
    "LoragraftError": "loragraft.errors",
    "OutputError": "loragraft.errors",
    "PoolError": "loragraft.errors",
    "QuantizeError": "loragraft.errors",
    "TextError": "loragraft.errors",
    "UnsupportedError": "loragraft.errors",
    "Measurement": "loragraft.inference.measurement",
    "Model": "loragraft.inference.model",
    "Tokenizer": "loragraft.inference.tokenizer",
    "budget": "loragraft.verbs.budget",
    "check": "loragraft.verbs.check",
    "combine": "loragraft.verbs.combine",
    "compare": "loragraft.verbs.compare",
    "convert": "loragraft.verbs.convert",
    "convert_adapter": "loragraft.verbs.convert",
    "devices": "loragraft.verbs.devices",
    "export": "loragraft.verbs.export",
    "extract": "loragraft.verbs.extract",
    "imatrix": "loragraft.verbs.imatrix",
    "load": "loragraft.inference.model",
    "inspect": "loragraft.verbs.inspect",
    "join": "loragraft.verbs.split",
    "merge": "loragraft.verbs.merge",
    "QuantizeOptions": "loragraft.streaming.options",
    "ollama": "loragraft.verbs.ollama",
    "push": "loragraft.verbs.push",
    "quantize": "loragraft.verbs.quantize",
    "report": "loragraft.verbs.report",
    "split": "loragraft.verbs.split",
    "unmerge": "loragraft.verbs.unmerge",
}


__all__ = [
    "AdapterError",
    "BusyError",
    "CheckpointError",
    "Combination",
    "ContextError",
    "FormatError",
    "GGUFError",
    "GraphError",
    "ImatrixError",
    "LoragraftError",
    "Measurement",
    "Model",
    "OutputError",
    "PoolError",
    "QuantizeError",
    "QuantizeOptions",
    "TextError",
    "TimeLimitError",
    "Tokenizer",
    "UnknownAdapterError",
    "UnsupportedError",
    "__version__",
    "budget",
    "check",
    "combine",
    "compare",
    "convert",
    "convert_adapter",
    "devices",
    "export",
    "extract",
    "imatrix",
    "inspect",
    "join",
    "load",
    "merge",
    "ollama",
    "push",
    "quantize",
    "report",
    "split",
    "unmerge",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loragraft' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
