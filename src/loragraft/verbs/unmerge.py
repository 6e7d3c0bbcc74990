"""Takes adapters that were merged into a model out of it again."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike

from loragraft.adapters.lora import Adapter
from loragraft.adapters.parts import refuse_parts
from loragraft.adapters.receipt import RECEIPTS, digest_of, receipts_in, without_receipts
from loragraft.errors import AdapterError
from loragraft.formats.source import ModelSource
from loragraft.huggingface.intake import STRICT, Intake
from loragraft.opening import AdapterArgument, AdapterArguments, listed, open_model, read_adapters
from loragraft.progress import SILENT, Progress
from loragraft.quants.filetypes import FileType
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.report import WriteReport
from loragraft.verbs.merge import merge


def unmerge(
    model: str | PathLike[str] | ModelSource,
    adapters: AdapterArguments,
    output: str | PathLike[str] | None,
    *,
    type: str | int | FileType | None = None,  # noqa: A002 (the word that everyone uses for it)
    options: QuantizeOptions | None = None,
    intake: Intake = STRICT,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> WriteReport:
    """Write `model` without `adapters` (paths, or pairs of path and the strength that they were merged at).

    Their deltas are subtracted. What is left is the base, up to the rounding of the merged file's type.

    `merge` writes into a file what was merged. Of such a file, any other adapter is refused, a strength that is not
    given is the merged one, and the entry of what is taken out is removed. `type`: if None, the model's own if all its
    weights have one float type, else as for `merge`.

    Raises AdapterError for an adapter that did more than add (DoRA, whole tensors, biases, factors): what it replaced
    is no longer in the model.
    """
    source = model if isinstance(model, ModelSource) else open_model(model, intake=intake)
    said = receipts_in(source.metadata)
    given = [argument if isinstance(argument, tuple) else (argument, None) for argument in listed(adapters)]
    paths: list[AdapterArgument] = [adapter for adapter, _ in given]
    loaded = [adapter for adapter, _ in read_adapters(paths, source, intake=intake)]
    taken = list[tuple[Adapter | str, float]]()
    left = list(said)
    for adapter, (_, strength) in zip(loaded, given, strict=True):
        _check_added(adapter)
        digest = digest_of(adapter.files)
        known = next((one for one in left if one[3] == digest), None)
        if said and known is None:
            raise AdapterError(
                adapter.path,
                f"was not merged into {source.path.name}, according to its {RECEIPTS}",
                found=f"sha256 {digest[:12]}",
                expected="; ".join(f"{name} at {scale:g}, sha256 {sha[:12]}" for name, scale, _, sha in said),
                hint="name the adapter that was, from the file that was merged",
            )
        if known is None:
            progress.note(
                f"{source.path}: does not say what was merged into it: {adapter.path} is taken out all the same"
            )
        else:
            left.remove(known)
        merged_at = strength if strength is not None else known[1] if known else 1.0
        taken.append((replace(adapter, files=()), -merged_at))
    plain = replace(source, metadata=without_receipts(source.metadata, left))
    if type is None:
        floats = {tensor.type.name for tensor in source.tensors.values() if len(tensor.shape) > 1}
        type = floats.pop() if len(floats) == 1 and floats <= {"F32", "F16", "BF16"} else None  # noqa: A001
    return merge(
        plain,
        taken,
        output,
        type=type,
        options=options,
        intake=intake,
        threads=threads,
        progress=progress,
        receipts=False,
    )


def _check_added(adapter: Adapter) -> None:
    decomposed = [name for name, pair in adapter.pairs.items() if pair.magnitude is not None]
    refuse_parts(
        adapter,
        (
            ("DoRA's magnitudes", decomposed),
            ("what multiplies weights", adapter.transforms),
            ("whole tensors", adapter.whole),
            ("its own tokenizer", adapter.tokenizer),
        ),
        "so it cannot be taken out: what it replaced is no longer in the model",
        expected="only pairs",
        hint="take the base itself, which it was merged into",
    )
