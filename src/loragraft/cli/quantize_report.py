"""What `merge`, `quantize` and `convert` print about what they wrote."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from loragraft.cli import console
from loragraft.units import bytes_text, count_text, plural

if TYPE_CHECKING:
    from loragraft.adapters.receipt import AdapterReceipt
    from loragraft.streaming.report import WriteReport


def show_dry_run(report: WriteReport) -> None:
    """The table of `--dry-run`."""
    table = console.table("tensor", "shape", "from", "to", ">size", ">bits per weight")
    for tensor in report.tensors:
        shape = " x ".join(map(str, tensor.shape))
        bits = f"{8 * tensor.size / tensor.weights:.2f}"
        kinds = tensor.source_type, tensor.type
        table.add_row(console.cell(tensor.name), shape, *kinds, bytes_text(tensor.size), bits)
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


def show_result(report: WriteReport) -> None:
    """What was written, and with `--verify` how well."""
    if report.errors:
        table = console.table("tensor", "type", ">relative error")
        for error in report.errors:
            table.add_row(console.cell(error.name), error.type, f"{error.relative:.5f}")
        console.show(table)
    for use in report.adapters:
        console.info(use_text(use))
    speed = report.weights / max(report.seconds, 1e-9) / 1e6
    console.info(f"{report}, in {report.seconds:.1f} s ({count_text(round(speed))} M weights/s)")


def use_text(use: AdapterReceipt) -> str:
    """`A: 56 of 56 tensors used, on 28 weights of the base, at scale 1`; how many it changes, if not all."""
    effect = "" if use.changing == use.targets else f", {use.changing} of which it changes"
    return (
        f"{use.path}: {use.tensors} of {plural(use.found, 'tensor')} used, on {plural(use.targets, 'weight')} of the "
        f"base{effect}, at scale {use.scale:g}"
    )


def report_as_json(report: WriteReport) -> dict[str, Any]:
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
        "notes": report.notes,
    }
