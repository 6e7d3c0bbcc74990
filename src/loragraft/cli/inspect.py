"""`loragraft inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import FILE, argument, command, flag
from loragraft.cli.intake_options import intake_options
from loragraft.cli.options import HTML, JSON, LORA, check_html, reported
from loragraft.cli.quantize_report import use_text
from loragraft.units import bytes_text, count_text, plural

if TYPE_CHECKING:
    from rich.table import Table

    from loragraft.huggingface.intake import Intake
    from loragraft.verbs.inspect import AdapterOnModel, FileReport

_MAX_VALUE = 100  # characters of a metadata value
_MAX_ITEMS = 5  # elements of an array


@command(
    "loragraft inspect model-Q4_K_M.gguf",
    "loragraft inspect my-adapter/ --no-tensors",
    "loragraft inspect Llama-3.2-1B --lora my-adapter",
    "loragraft inspect merged.gguf --html merged.html",
    "loragraft inspect hf://HuggingFaceTB/SmolLM2-135M-Instruct",
    "loragraft inspect model.gguf --json | jq '.metadata[\"general.architecture\"].value'",
)
@argument(
    "file",
    metavar="FILE",
    type=FILE,
    help="A GGUF file (one of a split model stands for all), a safetensors file, an importance matrix, a Hugging Face "
    "or a PEFT folder; or the URL of one.",
)
@flag("--tensors/--no-tensors", default=True, help="List every tensor.")
@flag("--full", help="Print all metadata, long values in full.")
@LORA
@HTML
@JSON
@intake_options
def inspect(
    file: Path,
    tensors: bool,
    full: bool,
    lora: tuple[tuple[Path, float], ...],
    html: Path | None,
    as_json: bool,
    intake: Intake,
) -> None:
    """Show what a file holds: its metadata and its tensors.

    Only headers are read. Shapes are given as (rows, columns): out x in for a linear weight. With --lora, FILE is a
    model: what of each adapter would be used on it, and how large its changes are beside the weights.
    """
    check_html(html)
    report = lg.inspect(file, lora, intake=intake)
    reported(report, html)
    if as_json:
        console.result(json.dumps(report.as_json(), indent=1, allow_nan=False))
        return
    for note in report.notes:
        console.info(note)
    console.result(f"{_printable(str(report.path))}: {report.kind}")
    if report.adapters:
        for adapter in report.adapters:
            _show_adapter(adapter, tensors)
        return
    if report.metadata:
        console.show(_metadata_table(report, full))
    if tensors and report.tensors:
        console.show(_tensor_table(report))
    console.result(_summary(report))


def _metadata_table(report: FileReport, full: bool) -> Table:
    table = console.table("metadata", "type", "value")
    for fact in report.metadata:
        if fact.value is None and not full:  # a PEFT configuration is full of them
            continue
        table.add_row(_text(fact.key), _text(fact.type), _text(_value_text(fact.value, full)))
    return table


def _tensor_table(report: FileReport) -> Table:
    table = console.table("tensor", "shape", "type", ">size")
    for tensor in report.tensors:
        shape = " x ".join(str(length) for length in tensor.shape) or "scalar"
        table.add_row(_text(tensor.name), shape, tensor.type, bytes_text(tensor.nbytes))
    return table


def _show_adapter(adapter: AdapterOnModel, tensors: bool) -> None:
    receipt = adapter.receipt
    if tensors and adapter.norms:
        table = console.table(
            "target", ">rank", ">scale", ">norm of the change", ">norm of the weight", ">relative"
        )
        for norm in adapter.norms:
            rank, scale = (str(norm.rank), f"{norm.scale:.4g}") if norm.rank else ("", "")
            table.add_row(
                _text(norm.target),
                rank,
                scale,
                f"{norm.delta:.4g}",
                f"{norm.weight:.4g}",
                f"{norm.relative:.2%}",
            )
        console.show(table)
    for name in adapter.left_out:
        console.result(f"left out: {_printable(name)}")
    console.result(_printable(use_text(receipt)))
    console.result(f"sha256 {receipt.sha256}" if receipt.sha256 else "no file")


def _summary(report: FileReport) -> str:
    from loragraft.huggingface.contents import Kind

    parts = ", ".join(
        f"{count} {name} ({bytes_text(size)})" for name, (count, size) in report.types().items()
    )
    line = f"{plural(len(report.tensors), 'tensor')}: {parts}" if report.tensors else "no tensors"
    if report.parts:
        line += "\n" + ", ".join(f"{count} {part}" for part, count in report.parts.items())
    one = "weight" if report.kind is Kind.GGUF_MODEL else "element"
    density = f"{report.bits_per_element:.2f} bits per {one}"
    total = f"{plural(report.n_elements, one)}, {bytes_text(report.nbytes)}, {density}"
    files = f", in {len(report.files)} files" if len(report.files) > 1 else ""
    return f"{line}\n{total}{files}"


def _text(content: str) -> Any:
    """Names and values come from the file: no markup, no control characters."""
    from rich.text import Text

    return Text(_printable(content))


def _printable(content: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in content)


def _value_text(value: Any, full: bool) -> str:
    if isinstance(value, str):
        return value if full else _shortened(value)
    if isinstance(value, list) and len(value) > _MAX_ITEMS and not full:
        shown = ", ".join(_shortened(_plain_json(item)) for item in value[:_MAX_ITEMS])
        return f"[{shown}, ...] ({count_text(len(value))})"
    return _plain_json(value) if full else _shortened(_plain_json(value))


def _plain_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}... ({count_text(len(text))} characters)"
