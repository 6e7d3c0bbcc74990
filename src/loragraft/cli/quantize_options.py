"""The options that `quantize` and `merge` share, by llama-quantize's names."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from loragraft.cli.command import FILE, option
from loragraft.cli.options import Parsed

if TYPE_CHECKING:
    from loragraft.streaming.options import QuantizeOptions

_what = functools.partial(option, panel="Quantization")
_where = functools.partial(option, panel="Output")
_WEIGHT_TYPE = Parsed("loragraft.streaming.options:weight_type")
_POSITIVE = click.IntRange(min=1)

MAX_MEMORY = _where(
    "--max-memory",
    "--max-buffer-size",
    type=_POSITIVE,
    metavar="MIB",
    help="Memory for buffers. A few MiB per thread are always used.",
)
RESUME = _where("--resume", is_flag=True, help="Continue a run that was killed.")

_OPTIONS = (
    _what(
        "--allow-requantize",
        is_flag=True,
        help="Quantize tensors again that are already quantized. This costs quality.",
    ),
    _what("--leave-output-tensor", is_flag=True, help="Keep output.weight as it is."),
    _what("--pure", is_flag=True, help="No mix: one type for every tensor."),
    _what("--imatrix", type=FILE, metavar="FILE", help="An importance matrix, GGUF or .dat."),
    _what("--include-weights", multiple=True, metavar="NAME", help="Use the matrix for these tensors only."),
    _what(
        "--exclude-weights", multiple=True, metavar="NAME", help="Do not use the matrix for these tensors."
    ),
    _what(
        "--calibrate",
        multiple=True,
        type=FILE,
        metavar="FILE",
        help="Round with error feedback on this text, or JSONL of chats (repeatable).",
    ),
    _what(
        "--calibrate-windows",
        type=_POSITIVE,
        default=64,
        metavar="N",
        help="Calibrate on this many windows of 256 tokens.",
    ),
    _what(
        "--calibrate-device",
        default="cpu",
        metavar="NAME",
        help="Where --calibrate rounds: cpu, or a GPU through torch (cuda or xpu).",
    ),
    _what(
        "--general",
        multiple=True,
        type=FILE,
        metavar="FILE",
        help="With --calibrate: also tell what rounding does to this text (repeatable).",
    ),
    _what("--output-tensor-type", type=_WEIGHT_TYPE, metavar="TYPE", help="The type of output.weight."),
    _what("--token-embedding-type", type=_WEIGHT_TYPE, metavar="TYPE", help="The type of token_embd.weight."),
    _what(
        "--tensor-type",
        multiple=True,
        type=Parsed("loragraft.streaming.options:tensor_type"),
        metavar="REGEX=TYPE",
        help="The type of tensors whose name matches; the first match counts.",
    ),
    _what("--tensor-type-file", type=FILE, metavar="FILE", help="A file with one REGEX=TYPE per line."),
    _what(
        "--nvfp4-naive",
        is_flag=True,
        help="Quantize to NVFP4 as ggml does: no scale per tensor, no search for the block scales.",
    ),
    _where(
        "--prune-layers",
        type=Parsed("loragraft.streaming.options:layers"),
        metavar="L0,L1,...",
        help="Leave out these blocks.",
    ),
    _where(
        "--override-kv",
        multiple=True,
        type=Parsed("loragraft.streaming.options:override"),
        metavar="KEY=TYPE:VALUE",
        help="Set metadata; TYPE is int, float, bool or str.",
    ),
    _where("--keep-split", is_flag=True, help="Write as many files as the input has."),
    _where(
        "--split-max-size",
        type=Parsed("loragraft.formats.split:parse_size"),
        metavar="N(M|G)",
        help="Split the output: at most this many bytes of tensors per file.",
    ),
    _where(
        "--split-max-tensors",
        type=_POSITIVE,
        metavar="N",
        help="Split the output: at most this many tensors per file.",
    ),
    MAX_MEMORY,
    RESUME,
    _where("--verify", is_flag=True, help="Read the output back and print each tensor's error."),
)


def quantize_options(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command's function, which takes `options: QuantizeOptions`, the options that say what these are."""
    own = set(inspect.signature(function).parameters)

    @functools.wraps(function)
    def run(**values: Any) -> None:
        shared = {name: values.pop(name) for name in values.keys() - own}
        if shared["calibrate"]:
            from loragraft.system.memory import keep_arrays

            keep_arrays()
        function(options=_build(**shared), **values)

    decorated: Callable[..., None] = run
    for add in reversed(_OPTIONS):
        decorated = add(decorated)
    return decorated


def _build(
    *,
    tensor_type: Any,
    tensor_type_file: Any,
    prune_layers: Any,
    override_kv: Any,
    keep_split: bool,
    split_max_size: int | None,
    split_max_tensors: int | None,
    max_memory: int | None,
    **same: Any,
) -> QuantizeOptions:
    """Options that `QuantizeOptions` has by the same name and in the same form are in `same`."""
    from loragraft.formats.split import SplitLimits
    from loragraft.streaming import options

    if same["include_weights"] and same["exclude_weights"]:
        raise click.UsageError("give either --include-weights or --exclude-weights")
    if sum(map(bool, (keep_split, split_max_size, split_max_tensors))) > 1:
        raise click.UsageError("give one of --keep-split, --split-max-size and --split-max-tensors")
    from_file = options.tensor_type_file(tensor_type_file) if tensor_type_file else []
    return options.QuantizeOptions(
        tensor_types=[*tensor_type, *from_file],
        prune_layers=prune_layers or frozenset(),
        override_kv=dict(override_kv),
        keep_split=keep_split,
        split=SplitLimits(split_max_tensors, split_max_size) if split_max_size or split_max_tensors else None,
        max_memory=max_memory << 20 if max_memory else None,
        **same,
    )
