"""The difference of two models as a LoRA adapter: for every weight the best pair of a rank (Eckart and Young 1936)."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np

from loragraft.adapters.difference import Difference, differ
from loragraft.adapters.lora import EMBEDDING, OUTPUT, Adapter, LoraPair
from loragraft.adapters.rebase import unscaled
from loragraft.adapters.spectrum import LowRank, low_rank, squared_norm
from loragraft.arrays import Floats
from loragraft.errors import AdapterError, LoragraftError, OutputError, check_number
from loragraft.formats.gguf.model import model_files
from loragraft.formats.gguf.scales import scale_of
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.formats.views import in_memory, values_of
from loragraft.huggingface.intake import STRICT, Intake
from loragraft.opening import open_model, outer_scale
from loragraft.progress import SILENT, Noted, Progress
from loragraft.quants.roles import layer_of
from loragraft.system.files import named_path
from loragraft.system.threads import in_threads, thread_count
from loragraft.verbs.adapter_files import kind_of, write_adapter

#: What the differences that are worked on may take together.
_MOST_BYTES = 1 << 29
_ROUTERS = (".ffn_gate_inp.weight", ".ffn_gate_inp_shexp.weight")


@dataclass(frozen=True, slots=True)
class Extracted:
    """One weight's difference as a pair."""

    target: str
    rank: int
    energy: float
    """The part of the difference's squared norm that the pair keeps."""
    relative: float
    """The difference's norm beside the weight's."""


@dataclass(frozen=True)
class ExtractReport:
    """What was written, and what of the difference it keeps."""

    path: Path
    kind: str
    modules: list[Extracted]
    energy: float
    """Of all adapted weights together."""
    whole: list[str] = field(default_factory=list)
    """Tensors that are carried whole (--norms)."""
    left_out: list[str] = field(default_factory=list)
    """Tensors that differ and are not carried."""
    notes: list[str] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """The largest of its pairs."""
        return max(one.rank for one in self.modules)


@dataclass(frozen=True, slots=True)
class _Found:
    """A weight's pair (None: no difference), the part of the energy that it keeps, and the squared norms of the
    difference and of the weight."""

    pair: LoraPair | None
    energy: float
    difference: float
    weight: float


def extract(
    base: str | PathLike[str] | ModelSource,
    tuned: str | PathLike[str] | ModelSource,
    output: str | PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    norms: bool = False,
    embeddings: bool = False,
    to: str | None = None,
    intake: Intake = STRICT,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> ExtractReport:
    """Write the adapter that makes `tuned` of `base` as well as a rank can: Hugging Face folders or GGUFs, each of any
    type, of one architecture and one size.

    `rank`: of every pair, at most. `energy`: the part of each difference's squared norm to keep, 0 to 1, at the
    smallest rank that does; one of the two must be given, and with both the smaller rank counts. Weights that do not
    differ get no pair. `norms`: norms and biases that differ are carried whole. `embeddings`: pairs for the embedding
    and the output too. Memory: the adapter, and the differences of a few weights in float32 (`_MOST_BYTES`).

    Raises `FormatError`, `AdapterError` for models that do not fit each other or do not differ, `OutputError`.
    """
    path = named_path(output, OutputError)
    _check(rank, energy)
    kind = kind_of(path, to)
    source, target = (
        one if isinstance(one, ModelSource) else open_model(one, dequantize=True, intake=intake)
        for one in (base, tuned)
    )
    progress = Noted(progress)
    names = _common(source, target)
    scaled = {name for name in names if outer_scale(name, source) is not None}
    pairs: dict[str, LoraPair] = {}
    report = ExtractReport(path, kind, [], 0.0)
    whole: dict[str, TensorSource] = {}
    kept = total = 0.0
    progress.start("Extracting", sum(target.tensors[name].n_rows for name in names))
    room = _Room()

    def work(name: str) -> _Found | None:
        """The pair of a matrix; None for what gets none."""
        before, after = _both(source, target, name)
        found = None
        if before.shape == after.shape and _is_adapted(name, after, embeddings) and name not in scaled:
            own = Difference(before, after, 0, after.shape[-2])
            # For an energy, also what all singular vectors of the smaller side take.
            with room.of(own.nbytes + (32 * min(own.shape) ** 2 if energy is not None else 0)):
                found = _pair(name, before, after, rank, energy)
        progress.advance(after.n_rows)
        return found

    for name, found in zip(names, in_threads(work, names, thread_count(threads)), strict=True):
        if found is None:
            before, after = _both(source, target, name)
            if before.shape != after.shape:
                report.left_out.append(name)
            elif differ(before, after):
                if norms and len(before.shape) == 1 and name.endswith("_norm.weight"):
                    whole[name] = in_memory(name, values_of(after))
                else:
                    report.left_out.append(name)
        elif found.pair is not None:
            pairs[name] = found.pair
            kept, total = kept + found.energy * found.difference, total + found.difference
            relative = (found.difference / found.weight) ** 0.5 if found.weight else float("inf")
            report.modules.append(Extracted(name, found.pair.rank, found.energy, relative))
    if not pairs and not whole:
        raise AdapterError(
            target.path,
            f"does not differ from {source.path.name} in what an adapter changes",
            found=f"{len(report.left_out)} other tensors that differ" + _listed(report.left_out),
            expected="another model",
            hint="add --embeddings or --norms if these are what was tuned"
            if report.left_out
            else f"are these the same weights? Compare the files: {_compared(source, target)}",
        )
    never = [name for name in report.left_out if name in scaled]
    if never:
        progress.note(
            f"{len(never)} tensors differ and no adapter can carry them{_listed(never)}: {source.arch} multiplies what "
            "these experts give by numbers of their own"
        )
    if others := [name for name in report.left_out if name not in scaled]:
        progress.note(
            f"{len(others)} tensors differ and are not carried{_listed(others)}: --norms carries norms, --embeddings "
            "the embedding and the output"
        )
    adapter = Adapter(
        Path(path.name).with_suffix(""),
        pairs,
        source.arch,
        replaced=whole,
        n_tensors=2 * len(pairs) + len(whole),
    )
    write_adapter(
        adapter, source, path, kind, [*model_files(source), *model_files(target)], progress=progress
    )
    return ExtractReport(
        path,
        kind,
        report.modules,
        kept / total if total else 1.0,
        sorted(whole),
        report.left_out,
        progress.notes,
    )


def _check(rank: int | None, energy: float | None) -> None:
    if rank is None and energy is None:
        raise LoragraftError("extract", "needs a rank or an energy", hint="add --rank 16, or --energy 0.95")
    if rank is not None:
        check_number("rank", rank, int, least=1)
    if energy is not None and not 0 < energy <= 1:
        raise LoragraftError("energy", "out of range", found=energy, expected="above 0, up to 1")


def _common(source: ModelSource, target: ModelSource) -> list[str]:
    """The tensors of both, layer by layer. A tied output that one of them has as a tensor of its own is its
    embedding in the other."""
    if source.arch != target.arch:
        raise AdapterError(
            target.path,
            "has another architecture",
            found=target.arch,
            expected=f"{source.arch}, as {source.path}",
        )
    scales = {scale_of(name, source.tensors) for name in source.tensors}
    names = [
        name
        for name in source.tensors
        if name not in scales and not name.endswith((".input_scale", "rope_freqs.weight"))
    ]
    if OUTPUT in target.tensors and OUTPUT not in source.tensors:
        names.append(OUTPUT)
    missing = [name for name in names if _stored(target, name) not in target.tensors]
    layers = len({name.split(".")[1] for name in target.tensors if name.startswith("blk.")})
    own = len({name.split(".")[1] for name in names if name.startswith("blk.")})
    if layers != own or len(missing) > len(names) // 2:
        raise AdapterError(
            target.path,
            "has another number of layers",
            found=f"{layers} layers",
            expected=f"{own}, as {source.path}",
        )
    return sorted((name for name in names if name not in missing), key=layer_of)


def _both(source: ModelSource, target: ModelSource, name: str) -> tuple[TensorSource, TensorSource]:
    before, after = (unscaled(model.tensors, _stored(model, name)) for model in (source, target))
    return before, after


def _is_adapted(name: str, weight: TensorSource, embeddings: bool) -> bool:
    """Whether it gets a pair if it differs."""
    if len(weight.shape) < 2 or name.endswith(_ROUTERS):
        return False
    return embeddings or name not in (EMBEDDING, OUTPUT)


def _stored(model: ModelSource, name: str) -> str:
    return EMBEDDING if name == OUTPUT and OUTPUT not in model.tensors else name


class _Room:
    """Lets threads wait until the differences that are worked on take little memory together."""

    def __init__(self) -> None:
        self._taken, self._changed = 0, threading.Condition()

    @contextmanager
    def of(self, nbytes: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + nbytes <= _MOST_BYTES)
            self._taken += nbytes
        try:
            yield
        finally:
            with self._changed:
                self._taken -= nbytes
                self._changed.notify_all()


def _pair(
    name: str, before: TensorSource, after: TensorSource, rank: int | None, energy: float | None
) -> _Found:
    rows = after.shape[-2]
    found: list[LowRank] = []
    squares: list[float] = []
    weight = 0.0
    for first in range(0, after.n_rows, rows):
        difference = Difference(before, after, first, rows)
        matrix: Floats | Difference = difference
        if difference.is_held:
            matrix, own = difference.held()
            squares.append(squared_norm(matrix))
        else:
            own, square = difference.norms()
            squares.append(square)
        weight += own
        if not np.isfinite(squares[-1]):
            raise AdapterError(
                name,
                "holds NaN or infinity in one of the models",
                hint="loragraft check MODEL tells which of the two",
            )
        found.append(low_rank(matrix, rank, energy))
    total = sum(squares)
    if not total:
        return _Found(None, 0.0, 0.0, weight)
    kept = sum(one.energy * square for one, square in zip(found, squares, strict=True)) / total
    width = max(one.rank for one in found)
    if len(found) == 1:
        a, b = found[0].a, found[0].b
    else:
        a = np.zeros((len(found), width, after.columns), np.float32)
        b = np.zeros((len(found), rows, width), np.float32)
        for number, one in enumerate(found):
            a[number, : one.rank], b[number, :, : one.rank] = one.a, one.b
    experts = after.shape[:-2]
    pair = LoraPair(name, a.reshape(*experts, width, -1), b.reshape(*experts, rows, width), 1.0)
    return _Found(pair, kept, total, weight)


def _listed(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def _compared(*models: ModelSource) -> str:
    """A command that compares the files of weights; sha256sum reads no folder."""
    weights = [
        path
        for model in models
        for path in model_files(model)
        if path.suffix in (".gguf", ".safetensors", ".bin") or not model.path.is_dir()
    ]
    return shlex.join(["sha256sum", *map(str, weights[:8])])
