"""What each kind of result has to show."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from loragraft.evaluate.deployment import Deployment
from loragraft.evaluate.uncertainty import SIGNIFICANT
from loragraft.evaluate.verdict import percent_text
from loragraft.quants.roles import layer_of
from loragraft.streaming.report import WriteReport
from loragraft.system.remote.paths import RemotePath
from loragraft.units import bytes_text, count_text, plural
from loragraft.verbs.budget import Budget
from loragraft.verbs.check import Conformance
from loragraft.verbs.compare import Comparison
from loragraft.verbs.inspect import AdapterOnModel, FileReport
from loragraft.verbs.launching import launches
from loragraft.verbs.report.charts import Mark, Series, bars, grid, scatter
from loragraft.verbs.report.page import Page, bullets, folded, paragraph, table

#: Where nothing is lost stands on a logarithmic axis.
_NOTHING_LOST = 1e-6
#: Rows of a table that is shown at once; characters of a value.
_MAX_ROWS, _MAX_VALUE = 2000, 200
_BLOCK = re.compile(r"blk\.\d+\.")


def comparison(result: Comparison) -> Page:
    page = Page("Which deployment keeps the fine-tune", result.verdict)
    ways = [("merged", "merged"), ("adapter at run time", "runtime")]
    if all(row.kept is not None for one in result.types for row in (one.merged, one.runtime)):
        series = [
            Series(name, [_kept_mark(getattr(one, field), one.type) for one in result.types])
            for name, field in ways
        ]
        levels = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999]
        page.add(
            "Share of the fine-tune kept, against the size",
            scatter(
                series,
                x_title="size, MB",
                y_title="of the fine-tune kept",
                y_text={1 - level: f"{100 * level:.5g} %" for level in levels},
                falling=True,
                limit=(1 - result.keep, f"wanted: {100 * result.keep:.4g} %"),
            ),
            paragraph("What is lost is on a logarithmic axis. Bars are two standard errors.", dim=True),
        )
    rows = [row for one in result.types for row in (one.merged, one.runtime)]
    page.add(
        "What was measured", _deployments([*rows, result.full, result.base], result.smallest, result.context)
    )
    if len(result.types) > 1:
        page.add("Merged, or at run time?", bullets(f"{one.type}: {one.verdict}" for one in result.types))
    return page


def _kept_mark(row: Deployment, kind: str) -> Mark:
    assert row.kept is not None
    lost = max(1 - row.kept.value, _NOTHING_LOST)
    label = kind if row.label.startswith("merged") else ""
    title = f"{row.label}: {percent_text(row.kept)}, {bytes_text(row.size)}"
    return Mark(row.size / 1e6, lost, label, title, SIGNIFICANT * row.kept.error)


def _deployments(rows: Sequence[Deployment], marked: str | None, context: int | None = None) -> str:
    first = rows[0].perplexity
    cells = [
        (
            row.label,
            f"{row.perplexity.value:.2f} ± {row.perplexity.error:.2f}",
            "" if row.divergence is None else f"{row.divergence.mean:.5f}",
            "" if row.divergence is None else f"{100 * row.divergence.same_top:.1f} %",
            "" if row.kept is None else percent_text(row.kept),
            bytes_text(row.size),
        )
        for row in rows
    ]
    on = next((number for number, row in enumerate(rows) if row.label == marked), None)
    windows = f"{plural(first.windows, 'window')}" + (f" of {plural(context, 'token')}" if context else "")
    return table(
        ["deployment", ">perplexity", ">mean KL", ">same top-1", ">kept", ">size"], cells, marked=on
    ) + paragraph(f"{plural(first.tokens, 'prediction')} in the second halves of {windows}.", dim=True)


def budget(result: Budget) -> Page:
    page = Page(f"Where the bits go, in {bytes_text(result.size)}", result.verdict)
    top = max(row.bits_per_weight for row in result.tensors)
    layers = sorted({layer_of(row.name) for row in result.tensors} - {-1})
    names = list(dict.fromkeys(_role(row.name) for row in result.tensors if layer_of(row.name) >= 0))
    cells = {
        (_role(row.name), str(layer_of(row.name))): (
            row.bits_per_weight / top,
            f"{row.name}: {row.type}, {row.bits_per_weight:.2f} bits, expected KL {row.cost:.6f}",
        )
        for row in result.tensors
    }
    page.add(
        "Bits per weight, by tensor and layer",
        grid(names, [str(layer) for layer in layers], cells, name="bits per weight by tensor and layer"),
        paragraph(f"The fullest colour is {top:.2f} bits. Point at a field to see its type.", dim=True),
    )
    sizes: dict[str, int] = {}
    for row in result.tensors:
        sizes[row.type] = sizes.get(row.type, 0) + row.size
    page.add("Bytes, by type", _sizes(sizes))
    judged = [result.chosen, *result.mixes]
    marks = [
        Mark(
            row.size / 1e6, row.divergence.mean, row.label, f"{row.label}: mean KL {row.divergence.mean:.5f}"
        )
        for row in judged
        if row.divergence is not None and row.divergence.mean > 0
    ]
    if len(marks) > 1:
        page.add(
            "Beside the mixes, on text that was not measured on",
            scatter(
                [Series("chosen types", marks[:1], joined=False), Series("mixes", marks[1:])],
                x_title="size, MB",
                y_title="mean KL divergence from the fine-tune",
                height=320,
            ),
        )
    page.add("What was measured", _deployments(judged, result.chosen.label))
    rows = [
        (
            row.name,
            row.type,
            f"{row.bits_per_weight:.2f}",
            row.mix_type,
            row.probe_type,
            f"{row.probe.value:.6f}",
            f"{row.cost:.6f}",
        )
        for row in result.tensors
    ]
    headings = ["tensor", "type", ">bits", f"in {result.mix}", "measured as", ">KL", ">KL expected"]
    page.add("Every tensor", folded(plural(len(rows), "tensor"), table(headings, rows)))
    return page


def conformance(result: Conformance) -> Page:
    wrong = sum(linear.llama_cpp != "right" for linear in result.linears)
    page = Page(
        f"How {_shown(result.path)} is computed",
        f"{plural(len(result.linears), 'linear')} of {result.arch}; here every one is right. llama.cpp's graph: "
        + (f"wrong on {count_text(wrong)}." if wrong else "right on all."),
    )
    if result.runs:
        bars_ = [(run.name, run.mean_kl, f"{run.mean_kl:.4g}") for run in result.runs if run.mean_kl > 0]
        page.add(
            "What each wrong order costs: mean KL divergence from the right one",
            bars(bars_, name="mean KL divergence of each order", logarithmic=True) if bars_ else "",
            table(
                ["order", ">linears", ">perplexity", ">mean KL", ">same top-1"],
                [
                    (
                        run.name,
                        run.linears or "",
                        f"{run.perplexity:.4g} ± {run.perplexity_error:.2g}",
                        f"{run.mean_kl:.4g}",
                        f"{100 * run.same_top:.1f} %",
                    )
                    for run in result.runs
                ],
            ),
            paragraph(f"On {plural(result.tokens, 'token')}; the bars are on a logarithmic axis.", dim=True),
        )
    reasons = {
        f"{linear.llama_cpp}: {linear.why} ({linear.source})" for linear in result.linears if linear.why
    }
    rows = [
        (
            linear.name,
            linear.type,
            "" if linear.scale is None else " to ".join(dict.fromkeys(f"{end:.3g}" for end in linear.scale)),
            "+".join(map(str, linear.ranks)),
            ", ".join(linear.order),
            linear.llama_cpp,
        )
        for linear in result.linears[:_MAX_ROWS]
    ]
    headings = ["linear", "type", ">weight scale", ">rank", "order", "llama.cpp"]
    page.add(
        "Every linear", bullets(sorted(reasons)), folded(plural(len(rows), "linear"), table(headings, rows))
    )
    _notes(page, result.notes)
    return page


def inspection(result: FileReport) -> Page:
    one = "weight" if str(result.kind) == "GGUF model" else "element"
    page = Page(
        _shown(result.path),
        f"{str(result.kind)[0].upper()}{str(result.kind)[1:]}: {plural(len(result.tensors), 'tensor')}, "
        f"{plural(result.n_elements, one)}, {bytes_text(result.nbytes)}, {result.bits_per_element:.2f} bits per {one}",
    )
    for adapter in result.adapters:
        _adapter(page, adapter)
    if result.tensors:
        page.add("Bytes, by type", _sizes({name: size for name, (_, size) in result.types().items()}))
    metadata = [
        (fact.key, fact.type, _value(fact.value)) for fact in result.metadata if fact.value is not None
    ]
    if metadata:
        page.add(
            "Metadata",
            folded(f"{count_text(len(metadata))} entries", table(["key", "type", "~value"], metadata)),
        )
    tensors = [
        (each.name, " x ".join(map(str, each.shape)) or "scalar", each.type, bytes_text(each.nbytes))
        for each in result.tensors[:_MAX_ROWS]
    ]
    if tensors:
        more = len(result.tensors) - len(tensors)
        page.add(
            "Tensors",
            folded(
                plural(len(result.tensors), "tensor"), table(["tensor", "shape", "type", ">size"], tensors)
            ),
            paragraph(f"and {count_text(more)} more", dim=True) if more else "",
        )
    _notes(page, result.notes)
    return page


def _adapter(page: Page, adapter: AdapterOnModel) -> None:
    receipt = adapter.receipt
    page.add(
        f"Adapter {receipt.name}",
        paragraph(
            f"{receipt.tensors} of {plural(receipt.found, 'tensor')} used, on {plural(receipt.targets, 'weight')}, "
            f"{receipt.changing} of which it changes, at strength {receipt.scale:g}. sha256 {receipt.sha256}"
        ),
        bullets(f"left out: {name}" for name in adapter.left_out),
    )
    finite = {norm.target: norm.relative for norm in adapter.norms if math.isfinite(norm.relative)}
    top = max(finite.values(), default=0.0)
    in_blocks = {name: value for name, value in finite.items() if layer_of(name) >= 0}
    if not top or not in_blocks:
        return
    layers = [str(layer) for layer in sorted({layer_of(name) for name in in_blocks})]
    names = list(dict.fromkeys(map(_role, in_blocks)))
    cells = {
        (_role(name), str(layer_of(name))): (value / top, f"{name}: {value:.2%} of the weight's norm")
        for name, value in in_blocks.items()
    }
    page.parts.append(grid(names, layers, cells, name="norm of the change beside the weight's"))
    page.parts.append(
        paragraph(
            f"Norm of each change beside its weight's, by tensor and layer. The fullest colour is {top:.2%}.",
            dim=True,
        )
    )


def receipt(result: WriteReport) -> Page:
    place = ", ".join(_shown(path) for path in result.paths) or "What would be written"
    page = Page(
        place,
        f"{result.target}: {plural(len(result.tensors), 'tensor')}, {bytes_text(result.size)}, "
        f"{result.bits_per_weight:.2f} bits per weight",
    )
    if result.adapters:
        rows = [
            (
                use.name,
                f"{use.scale:g}",
                use.rank or "",
                f"{use.tensors} of {use.found}",
                use.targets,
                use.changing,
                use.sha256,
            )
            for use in result.adapters
        ]
        headings = [
            "adapter",
            ">strength",
            ">rank",
            ">tensors used",
            ">on weights",
            ">which it changes",
            "sha256",
        ]
        page.add("What went in", table(headings, rows))
    sizes: dict[str, int] = {}
    for tensor in result.tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size
    page.add("Bytes, by type", _sizes(sizes))
    if result.errors:
        worst = sorted(result.errors, key=lambda error: -error.relative)[:12]
        page.add(
            "Read back: relative error of the tensors with the largest",
            bars(
                [(each.name, each.relative, f"{each.relative:.5f}") for each in worst], name="relative error"
            ),
        )
    tensors = [
        (each.name, " x ".join(map(str, each.shape)), each.source_type, each.type, bytes_text(each.size))
        for each in result.tensors[:_MAX_ROWS]
    ]
    page.add(
        "Tensors",
        folded(
            plural(len(result.tensors), "tensor"),
            table(["tensor", "shape", "from", "type", ">size"], tensors),
        ),
    )
    if result.paths:
        lines = [f"{each.program}: {each.line}" for each in launches(result.paths[0].name)]
        page.add("How to run it", bullets(lines))
    _notes(page, result.notes)
    return page


def _sizes(sizes: dict[str, int]) -> str:
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    return bars([(name, float(size), bytes_text(size)) for name, size in ordered], name="bytes by type")


def _role(name: str) -> str:
    return _BLOCK.sub("", name).removesuffix(".weight")


def _shown(path: object) -> str:
    """A path on this machine says no more than its name: a report is passed on."""
    return str(path) if isinstance(path, RemotePath) else str(getattr(path, "name", path))


def _value(value: object) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)[: _MAX_VALUE + 1]
    return shown if len(shown) <= _MAX_VALUE else f"{shown[:_MAX_VALUE]}..."


def _notes(page: Page, notes: Sequence[str]) -> None:
    if notes:
        page.add("Notes", bullets(notes))
