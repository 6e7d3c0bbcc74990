"""The options that `quantize` and `merge` share, declared once, and what both print."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from loragraft.cli import console
from loragraft.cli.units import bytes_text, count_text, plural
from loragraft.errors import LoragraftError

if TYPE_CHECKING:
    from loragraft.options import QuantizeOptions
    from loragraft.streaming.model_writer import Report

_Result = TypeVar("_Result")

_PANEL = "Quantization"
_OUTPUT = "Output"

ALLOW_REQUANTIZE = Annotated[
    bool,
    typer.Option(
        "--allow-requantize",
        help="Let tensors that are quantized already be quantized anew, at a cost in quality.",
        rich_help_panel=_PANEL,
    ),
]


def build_options(
    allow_requantize: ALLOW_REQUANTIZE = False,
    leave_output_tensor: Annotated[
        bool,
        typer.Option("--leave-output-tensor", help="Keep output.weight as it is.", rich_help_panel=_PANEL),
    ] = False,
    pure: Annotated[
        bool, typer.Option("--pure", help="No mix: one type for every tensor.", rich_help_panel=_PANEL)
    ] = False,
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An importance matrix, GGUF or .dat.", rich_help_panel=_PANEL),
    ] = None,
    include_weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Use its entries for these tensors only.", rich_help_panel=_PANEL),
    ] = None,
    exclude_weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Do not use its entries for these.", rich_help_panel=_PANEL),
    ] = None,
    output_tensor_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="The type of output.weight.", rich_help_panel=_PANEL),
    ] = None,
    token_embedding_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="The type of token_embd.weight.", rich_help_panel=_PANEL),
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX=TYPE",
            help="The type of tensors whose name matches; the first match counts.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    tensor_type_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file of REGEX=TYPE, one a line.", rich_help_panel=_PANEL),
    ] = None,
    nvfp4_naive: Annotated[
        bool,
        typer.Option(
            "--nvfp4-naive",
            help="Quantize to NVFP4 as ggml does: no scale per tensor, no search for the block scales.",
            rich_help_panel=_PANEL,
        ),
    ] = False,
    prune_layers: Annotated[
        str | None,
        typer.Option(metavar="L0,L1,...", help="Leave out these blocks.", rich_help_panel=_OUTPUT),
    ] = None,
    override_kv: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=TYPE:VALUE",
            help="Set metadata; TYPE is int, float, bool or str.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    keep_split: Annotated[
        bool,
        typer.Option("--keep-split", help="As many files as the input has.", rich_help_panel=_OUTPUT),
    ] = False,
    split_max_size: Annotated[
        str | None,
        typer.Option(
            metavar="N(M|G)", help="Split the output: bytes of tensors per file.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    split_max_tensors: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Split the output: tensors per file.", rich_help_panel=_OUTPUT),
    ] = None,
    max_memory: Annotated[
        int | None,
        typer.Option(
            "--max-memory",
            "--max-buffer-size",
            min=1,
            metavar="MIB",
            help="Memory for buffers; a few MiB per thread are used anyway.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue a run that was killed.", rich_help_panel=_OUTPUT),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read the output back and print each tensor's error.", rich_help_panel=_OUTPUT
        ),
    ] = False,
) -> QuantizeOptions:
    """What the command line says, as `QuantizeOptions`."""
    from loragraft import options
    from loragraft.formats.split import SplitLimits, parse_size

    if include_weights and exclude_weights:
        raise typer.BadParameter("give either --include-weights or --exclude-weights")
    if sum(map(bool, (keep_split, split_max_size, split_max_tensors))) > 1:
        raise typer.BadParameter("give one of --keep-split, --split-max-size and --split-max-tensors")
    limits = None
    if split_max_size or split_max_tensors:
        size = _parsed("--split-max-size", parse_size, split_max_size) if split_max_size else None
        limits = SplitLimits(split_max_tensors, size)
    patterns = [_parsed("--tensor-type", options.tensor_type, text) for text in tensor_type or ()]
    if tensor_type_file is not None:
        patterns += options.tensor_type_file(tensor_type_file)
    return options.QuantizeOptions(
        allow_requantize=allow_requantize,
        leave_output_tensor=leave_output_tensor,
        pure=pure,
        imatrix=imatrix,
        include_weights=include_weights or (),
        exclude_weights=exclude_weights or (),
        output_tensor_type=_optional("--output-tensor-type", options.weight_type, output_tensor_type),
        token_embedding_type=_optional("--token-embedding-type", options.weight_type, token_embedding_type),
        tensor_types=patterns,
        nvfp4_naive=nvfp4_naive,
        prune_layers=_optional("--prune-layers", options.layers, prune_layers) or frozenset(),
        override_kv=dict(_parsed("--override-kv", options.override, text) for text in override_kv or ()),
        keep_split=keep_split,
        split=limits,
        max_memory=None if max_memory is None else max_memory << 20,
        resume=resume,
        verify=verify,
    )


def with_quantize_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, which takes `options`, with the options of `build_options` in its place."""
    shared = _parameters(build_options)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = build_options(**{parameter.name: values.pop(parameter.name) for parameter in shared})
        command(options=options, **values)

    parameters = [*_parameters(command, without="options"), *shared]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__  # else its annotations would be looked up again
    return run


def _parameters(function: Callable[..., Any], without: str = "") -> list[inspect.Parameter]:
    """The parameters as keywords with real annotations. (`QuantizeOptions` is a name for the type checker alone: it
    is not imported, so that --help is quick.)"""
    return [
        parameter.replace(
            kind=inspect.Parameter.KEYWORD_ONLY,
            annotation=eval(parameter.annotation, function.__globals__),
        )
        for name, parameter in inspect.signature(function).parameters.items()
        if name != without
    ]


def _parsed(option: str, parse: Callable[[str], _Result], text: str) -> _Result:
    try:
        return parse(text)
    except (LoragraftError, ValueError) as problem:
        raise typer.BadParameter(str(problem), param_hint=f"'{option}'") from None


def _optional(option: str, parse: Callable[[str], _Result], text: str | None) -> _Result | None:
    return None if text is None else _parsed(option, parse, text)


# ---- what both verbs print ----


def show_dry_run(report: Report) -> None:
    """The table of `--dry-run`."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("tensor", "shape", "from", "to", ">size", ">bits per weight"):
        table.add_column(heading.lstrip(">"), justify="right" if heading.startswith(">") else "left")
    for tensor in report.tensors:
        shape = " x ".join(map(str, tensor.shape))
        bits = f"{8 * tensor.size / tensor.weights:.2f}"
        kinds = tensor.source_type, tensor.type
        table.add_row(Text(tensor.name), shape, *kinds, bytes_text(tensor.size), bits)
    console.show(table)
    console.result(
        f"{plural(len(report.tensors), 'tensor')}, {plural(report.weights, 'weight')}: "
        f"{bytes_text(report.source_size)} to {bytes_text(report.size)}, {report.bits_per_weight:.2f} bits per weight"
    )
    if report.fallbacks:
        console.result(f"{plural(report.fallbacks, 'tensor')} in another type than wanted, to fit the rows")
    for name, kind in report.lacking_importance[:1]:
        console.result(
            f"{plural(len(report.lacking_importance), 'tensor')} will need an importance matrix (--imatrix): "
            f"{name} as {kind}"
        )


def show_result(report: Report) -> None:
    """What was written, and with `--verify` how well."""
    if report.errors:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("tensor")
        table.add_column("type")
        table.add_column("relative error", justify="right")
        for error in report.errors:
            table.add_row(Text(error.name), error.type, f"{error.relative:.5f}")
        console.show(table)
    for use in report.adapters:
        console.info(
            f"{use.path}: {use.tensors} of {plural(use.tensors, 'tensor')} used, on {plural(use.targets, 'weight')}"
            f" of the base, at scale {use.scale:g}"
        )
    place = str(report.paths[0]) if len(report.paths) == 1 else f"{len(report.paths)} files"
    speed = report.weights / max(report.seconds, 1e-9) / 1e6
    console.info(
        f"{place}: {report.target}, {plural(len(report.tensors), 'tensor')}, {bytes_text(report.size)}, "
        f"{report.bits_per_weight:.2f} bits per weight, in {report.seconds:.1f} s "
        f"({count_text(round(speed))} M weights/s)"
    )


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "type": report.target.name,
        "paths": [str(path) for path in report.paths],
        "bytes": report.size,
        "source_bytes": report.source_size,
        "weights": report.weights,
        "bits_per_weight": report.bits_per_weight,
        "seconds": report.seconds,
        "fallbacks": report.fallbacks,
        "adapters": [{**asdict(use), "path": str(use.path)} for use in report.adapters],
        "tensors": [asdict(tensor) for tensor in report.tensors],
        "errors": {error.name: error.relative for error in report.errors},
    }
