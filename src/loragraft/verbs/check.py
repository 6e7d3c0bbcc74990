"""`check`: how every linear of a model will be computed, whether llama.cpp would get it right, and what each wrong
order costs on the user's own text. docs/numerics.md explains the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loragraft.archs import ARCHS
from loragraft.archs.graphs import model_graph
from loragraft.arrays import Floats, Ids
from loragraft.backends.batch import Piece
from loragraft.backends.program import Options, Program
from loragraft.backends.reference import ReferenceBackend, dequantized, evaluate
from loragraft.errors import LoragraftError
from loragraft.evaluate.divergence import DivergenceMeter
from loragraft.evaluate.picture import picture
from loragraft.formats.source import ModelSource
from loragraft.graph import llama_cpp
from loragraft.graph.chains import EMBEDDING, Chain, Stage, find_chains
from loragraft.graph.llama_cpp import Outcome
from loragraft.graph.lora import attach
from loragraft.graph.misorder import Mistake, misorder, misorder_each, possible, wrong_epilogue
from loragraft.graph.ops import Graph
from loragraft.graph.spec import verify
from loragraft.inference.measurement import Measurement, Window, measurement
from loragraft.inference.perplexity import Meter, log_softmax, losses
from loragraft.inference.tokenizer import Tokenizer
from loragraft.opening import AdapterArguments, load_adapters, open_model
from loragraft.progress import SILENT, Progress
from loragraft.streaming.verify import check_finite
from loragraft.system.mapped import intact
from loragraft.system.remote.paths import RemotePath
from loragraft.system.threads import thread_count
from loragraft.units import count_text, plural

RIGHT = "right order"
WITHOUT = "without the adapters"
PUBLISHED = "as llama.cpp's published graph"


@dataclass(frozen=True)
class LinearReport:
    """One linear layer as it will run. `scale` is the per-tensor weight scale, smallest and largest for experts."""

    name: str
    weight: str
    type: str
    scale: tuple[float, float] | None
    ranks: list[int]
    bias: bool
    order: list[str]
    llama_cpp: Outcome
    why: str
    source: str


@dataclass(frozen=True)
class OrderRun:
    """One way to compute the model, on the text: divergences are from the right order, in nats."""

    name: str
    linears: int
    """In how many linears the order is wrong: in all where the mistake is possible, or where llama.cpp makes one."""
    perplexity: float
    perplexity_error: float
    mean_kl: float
    same_top: float


@dataclass(frozen=True, repr=False)
class Conformance:
    """`runs` and `local` are empty if no text was given. `local`: for every mistake, the relative error
    ||wrong - right|| / ||right|| of the output of each linear where it is possible, fed with right inputs."""

    path: Path
    arch: str
    adapters: list[str]
    linears: list[LinearReport]
    runs: list[OrderRun] = field(default_factory=list)
    local: dict[str, dict[str, float]] = field(default_factory=dict)
    tokens: int = 0
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        right = sum(linear.llama_cpp == "right" for linear in self.linears)
        linears = plural(len(self.linears), "linear")
        return f"<Conformance {self.path}: {linears}, llama.cpp right on {count_text(right)}>"


@intact
def check(
    model: str | Path,
    adapters: AdapterArguments = (),
    *,
    text: str | Measurement | None = None,
    progress: Progress = SILENT,
) -> Conformance:
    """The conformance report of `model` with `adapters` (paths, or pairs of path and strength).

    With a `text`, every possible mistake is made in a copy of the graph and measured on it (8 windows of 256 tokens, if
    nothing else is said), by the reference backend: memory for the whole model in float32, time for one reading per
    mistake. Raises LoragraftError for files that do not fit each other or hold a weight that is not finite (of files
    that are read by URL only with a text), and GraphError for a model whose graph breaks the law.
    """
    base = open_model(model, dequantize=True)
    source, loaded = load_adapters(adapters, base)
    graph, extra = attach(model_graph(source), loaded, source.tensors)
    verify(graph)
    if not isinstance(source.path, RemotePath):  # over a network it would take the whole file
        check_finite(source.tensors.values(), source.path, threads=thread_count(None), progress=progress)
    notes = [*source.notes, *(note for adapter, _ in loaded for note in adapter.notes)]
    for adapter, _ in loaded:
        other = adapter.targets - adapter.pairs.keys()
        if other:
            what = "changes whole tensors" if adapter.whole else "multiplies weights"
            notes.append(
                f"{adapter.path}: {what} ({len(other)}), which llama.cpp's adapters cannot; there it has to be merged"
            )
    linears = [_linear(graph, chain, source) for chain in find_chains(graph)]
    names = [str(adapter.path) for adapter, _ in loaded]
    if text is None:
        return Conformance(source.path, source.arch, names, linears, notes=notes)
    how = measurement(text, context=256, windows=8)
    how.only_on("reference", "check")
    words = how.read_by(Tokenizer(source.metadata, source.path), source.context_length, progress)
    weights = {name: dequantized(tensor) for name, tensor in source.tensors.items()} | extra
    graphs = _graphs(graph, linears)
    programs = {name: _prepared(wrong, weights) for name, (wrong, _) in graphs.items()}
    if loaded and _same_vocabulary(base, source):
        plain = {
            name: tensor for name, tensor in base.tensors.items() if tensor is not source.tensors.get(name)
        }
        others = {name: dequantized(tensor) for name, tensor in plain.items()}
        without = _prepared(model_graph(base), weights | others)
        programs = {RIGHT: programs.pop(RIGHT), WITHOUT: without, **programs}
    bench = _Bench(graph, weights, programs, {name: wrong for name, (_, wrong) in graphs.items()})
    progress.start("Measuring wrong orders", len(words) * len(programs))
    for window in words:
        bench.read(window, progress)
    runs, tokens = bench.runs()
    return Conformance(source.path, source.arch, names, linears, runs, bench.local_errors(), tokens, notes)


def _prepared(graph: Graph, weights: Mapping[str, Floats]) -> Program:
    return ReferenceBackend().prepare(graph, weights, Options(unchecked=True))  # wrong orders are the point


def _same_vocabulary(one: ModelSource, other: ModelSource) -> bool:
    name = "token_embd.weight"
    return one.tensors[name].shape == other.tensors[name].shape


def _graphs(right: Graph, linears: Sequence[LinearReport]) -> dict[str, tuple[Graph, int]]:
    """Every graph to measure, by name, with the number of its wrong linears; the right one first."""
    graphs = {RIGHT: (right, 0)}
    if as_published := _published_mistakes(linears):
        graphs[PUBLISHED] = misorder_each(right, as_published), len(as_published)
    chains = find_chains(right)
    for mistake in Mistake:
        if (wrong := misorder(right, mistake)) is not None:
            graphs[str(mistake)] = wrong, sum(possible(chain, mistake) for chain in chains)
    return graphs


def _published_mistakes(linears: Sequence[LinearReport]) -> dict[str, Mistake]:
    """The mistakes of llama.cpp's graph, by linear; none if it is right everywhere or would not run at all."""
    mistakes = {}
    for linear in linears:
        match linear.llama_cpp:
            case Outcome.ABORTS | Outcome.REFUSES:
                return {}
            case Outcome.DROPS:
                mistakes[linear.name] = Mistake.SCALE_OMITTED
            case Outcome.MISORDERS if linear.ranks and linear.bias:
                mistakes[linear.name] = Mistake.BOTH_BEFORE_SCALE
            case Outcome.MISORDERS:
                mistakes[linear.name] = (
                    Mistake.LORA_BEFORE_SCALE if linear.ranks else Mistake.BIAS_BEFORE_SCALE
                )
    return mistakes


def _linear(graph: Graph, chain: Chain, source: ModelSource) -> LinearReport:
    scale = next((graph.nodes[index].weights[0] for index in chain.at(Stage.WEIGHT_SCALE)), None)
    values = None if scale is None else dequantized(source.tensors[scale])
    ranks = [graph.tensors[graph.nodes[index].weights[0]].shape[-2] for index in chain.at(Stage.LORA)]
    type_ = graph.tensors[chain.weight].type
    rule = llama_cpp.published(
        llama_cpp.LinearFacts(
            arch=ARCHS.by_name(graph.arch).llama_cpp,
            role=chain.base.rpartition(".")[2],
            type=type_,
            scale=scale,
            adapted=bool(ranks),
            decomposed=bool(chain.at(Stage.DORA_SCALE)),
            biased=bool(chain.at(Stage.BIAS)),
            tied="output.weight" not in graph.tensors,
        )
    )
    return LinearReport(
        name=chain.base,
        weight=chain.weight,
        type=type_,
        scale=None if values is None else (float(values.min()), float(values.max())),
        ranks=ranks,
        bias=bool(chain.at(Stage.BIAS)),
        order=chain.family.words(chain.stages),
        llama_cpp=rule.outcome,
        why=rule.why,
        source=rule.source,
    )


class _Bench:
    """Programs of the right graph, first, and of every other, by name, that read window by window; `wrong` are the
    numbers of wrong linears."""

    def __init__(
        self,
        right: Graph,
        weights: Mapping[str, Floats],
        programs: Mapping[str, Program],
        wrong: Mapping[str, int],
    ) -> None:
        self._programs = programs
        self._wrong = {name: wrong.get(name, 0) for name in programs}
        self._losses = {name: Meter() for name in programs}
        self._divergence = {name: DivergenceMeter() for name in programs}
        self._squares: dict[tuple[str, str], tuple[float, float]] = {}
        self._graph, self._weights = right, weights
        chains = find_chains(right)
        self._lookups = [chain for chain in chains if chain.family is EMBEDDING]
        self._products = {chain.weight: chain for chain in chains if chain.family is not EMBEDDING}
        self._programs[RIGHT].observer = self._observe

    def read(self, window: Window, progress: Progress) -> None:
        expected = None
        with np.errstate(all="ignore"):  # a wrong order may overflow; NaN is then the honest figure
            for chain in self._lookups:
                self._compare(chain, window.ids)
            for name, program in self._programs.items():
                sequence = program.open_sequence()
                logits = program.run([Piece(sequence, window.ids, wants="all")])
                program.close_sequence(sequence)
                scores = log_softmax(logits[window.scored])
                expected = scores if expected is None else expected
                self._losses[name].add(losses(scores, window.targets))
                self._divergence[name].add(expected, scores)
                progress.advance(1)

    def runs(self) -> tuple[list[OrderRun], int]:
        """The figures of every graph, and how many tokens they are of."""
        runs, tokens = [], 0
        for name, wrong in self._wrong.items():
            perplexity, divergence = self._losses[name].result(), self._divergence[name].result()
            tokens = perplexity.tokens
            figures = perplexity.value, perplexity.error, divergence.mean, divergence.same_top
            runs.append(OrderRun(name, wrong, *figures))
        return runs, tokens

    def _observe(self, weights: tuple[str, ...], x: Floats, ids: Ids | None) -> None:
        for name in weights:
            self._compare(self._products[name], *((x,) if ids is None else (x, ids)))

    def _compare(self, chain: Chain, *inputs: Floats | Ids) -> None:
        """One linear of the right graph with right inputs: its epilogue again, in every wrong order."""
        nodes = self._graph.nodes
        head = nodes[chain.product]
        given = dict(zip(head.inputs, inputs, strict=True))
        weight = self._weights.__getitem__
        product = evaluate([head], inputs[0], given, weight)
        after = [nodes[index] for index in chain.nodes[1:]]
        right = evaluate(after, product, given, weight).astype(np.float64)
        for mistake in Mistake:
            if not possible(chain, mistake):
                continue
            y = evaluate(wrong_epilogue(self._graph, chain, mistake), product, given, weight)
            off, size = self._squares.get((str(mistake), chain.base), (0.0, 0.0))
            error = float(np.sum((y - right) ** 2))
            self._squares[str(mistake), chain.base] = off + error, size + float(np.sum(right**2))

    def local_errors(self) -> dict[str, dict[str, float]]:
        local: dict[str, dict[str, float]] = {}
        for (mistake, base), (off, size) in self._squares.items():
            local.setdefault(mistake, {})[base] = float(np.sqrt(off / size)) if size else 0.0
        return local


def save_picture(report: Conformance, path: Path) -> None:
    """The relative error of each linear under each mistake, by layer, as PNG or SVG. Needs matplotlib."""
    if not report.local:
        raise LoragraftError(
            path, "nothing to draw", found="no mistake is possible in this model, or no text was given"
        )
    names = [
        linear.name
        for linear in report.linears
        if any(linear.name in local for local in report.local.values())
    ]
    with picture(path, max(6.0, 0.28 * len(names)), 4.8) as axes:
        for mistake, errors in report.local.items():
            points = [(names.index(name), max(error, 1e-9)) for name, error in errors.items()]
            axes.plot(
                *zip(*sorted(points), strict=True), marker="o", markersize=3, linewidth=1, label=mistake
            )
        axes.set_yscale("log")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_ylabel("relative error of the linear's output")
        axes.axhline(1.0, color="grey", linewidth=0.5)
        axes.set_title(f"{report.path.name}: what a wrong epilogue order costs", fontsize=10)
        axes.legend(fontsize=7)
