"""Every way in which a linear can be scaled, adapted and biased gives what float64 says, and every wrong order is
refused: {model} x {linear} x {no adapter, one, two, DoRA, DoRA among others} x {bias or not} x {weight scale or not}.
The models hold dense, fused, shared and routed linears, embedding and output."""

from __future__ import annotations

import zlib
from itertools import product

import numpy as np
import pytest

from float64_model import Float64Model
from gpu import GPU, needs_gpu
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.program import Options
from loragraft.backends.reference import ReferenceBackend
from loragraft.errors import GraphError
from loragraft.graph.lora import attach
from loragraft.graph.misorder import Mistake, misorder
from loragraft.graph.spec import verify
from running import logits_of
from small_models import HEAD_NORM, LAYERS, POST_NORM, SmallModel, linears, random_adapter, small_model
from tolerances import NATIVE_F32, REFERENCE, nmse

BACKENDS = [(ReferenceBackend(), REFERENCE), (NativeBackend(), NATIVE_F32)]
#: A GPU emulated on the CPU takes its time: it computes a sixth of the combinations of up to two adapters. All of them:
#: make test-gpu.
GPU_SHARE = 6
IDS = np.array([3, 17, 39, 0, 17, 5], dtype=np.int32)
#: Adapters of a linear, in their order: LoRA, DoRA.
KINDS = ("", "L", "LL", "D", "LDLD")
CELLS = [
    pytest.param(
        model, base, adapters, bias, scale, id=f"{model}-{base}-{adapters}{'-b' * bias}{'-s' * scale}"
    )
    for model in LAYERS
    for base, adapters, bias, scale in product(linears(model), KINDS, (False, True), (False, True))
    if not ((bias or "D" in adapters) and base == "token_embd") and (len(adapters) < 4 or (bias and scale))
]


def cell_model(model: str, base: str, adapters: str, bias: bool, scale: bool) -> SmallModel:
    seed = zlib.crc32(f"{model} {base} {adapters} {bias} {scale}".encode())
    rng = np.random.default_rng(seed)
    small = small_model(model, rng, biased=(base,) * bias, scaled=(base,) * scale)
    shape = {base: linears(model)[base]}
    strengths = [1.0] if adapters == "D" else [0.5, 1.5, -0.7, 1.0]
    small.adapters = [
        (random_adapter(rng, shape, rank=2 + i, dora=kind == "D"), strengths[i])
        for i, kind in enumerate(adapters)
    ]
    return small


@pytest.mark.parametrize(("model", "base", "adapters", "bias", "scale"), CELLS)
def test_every_combination(model: str, base: str, adapters: str, bias: bool, scale: bool) -> None:
    small = cell_model(model, base, adapters, bias, scale)
    graph, tensors = attach(small.graph(), small.adapters, small.arrays)
    weights = small.arrays | tensors
    wanted = Float64Model(small).logits(IDS)
    drawn = zlib.crc32(f"{model}{base}{adapters}{bias}{scale}".encode()) % GPU_SHARE == 0
    on_gpu = GPU if drawn or len(adapters) > 2 else []
    for backend, tolerance in [*BACKENDS, *on_gpu]:
        assert nmse(logits_of(backend, graph, weights, IDS), wanted) < tolerance, backend.name

    start = "lookup" if base == "token_embd" else "GEMM"
    for mistake in Mistake:
        wrong = misorder(graph, mistake)
        assert (wrong is not None) == expected_possible(mistake, adapters, bias, scale)
        if wrong is None:
            continue
        for backend, _ in [*BACKENDS, *on_gpu]:
            with pytest.raises(GraphError, match=f"^{base}.weight: .*found {start}.*, expected {start}"):
                backend.prepare(wrong, weights)
        wrongly = logits_of(ReferenceBackend(), wrong, weights, IDS, Options(unchecked=True))
        if len(
            adapters
        ) < 3 and not (  # of four, the last may drown what is before it in a gate that saturates
            mistake in (Mistake.SCALE_OMITTED, Mistake.SCALE_TWICE)
            and normalised_away(small, base, adapters, bias)
        ):
            assert nmse(wrongly, wanted) > 1e-5, f"the oracle cannot see: {mistake}"


@needs_gpu
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(("model", "base", "adapters", "bias", "scale"), CELLS)
def test_every_combination_on_a_gpu(model: str, base: str, adapters: str, bias: bool, scale: bool) -> None:
    small = cell_model(model, base, adapters, bias, scale)
    graph, tensors = attach(small.graph(), small.adapters, small.arrays)
    for backend, tolerance in GPU:
        found = logits_of(backend, graph, small.arrays | tensors, IDS)
        assert nmse(found, Float64Model(small).logits(IDS)) < tolerance


def normalised_away(small: SmallModel, base: str, adapters: str, bias: bool) -> bool:
    """QK norm divides q and k by their size, a norm behind a part what that part is linear in: a missing or doubled
    scale cannot be seen, but for epsilon, in one that is nothing but the product."""
    normed = ("attn_q", "attn_k") if small.arch in HEAD_NORM else ()
    behind = ("attn_v", "attn_output", "ffn_up", "ffn_down") if small.arch in POST_NORM else ()
    return base.endswith((*normed, *behind)) and not adapters and not bias


def expected_possible(mistake: Mistake, adapters: str, bias: bool, scale: bool) -> bool:
    match mistake:
        case Mistake.DORA_SCALE_BEFORE_LORA | Mistake.DORA_SCALE_OMITTED:
            return "D" in adapters
        case Mistake.BIAS_BEFORE_DORA_SCALE:
            return "D" in adapters and bias
        case Mistake.LORA_BEFORE_SCALE:
            return scale and bool(adapters)
        case Mistake.BIAS_BEFORE_SCALE:
            return scale and bias
        case Mistake.BOTH_BEFORE_SCALE:
            return scale and bias and bool(adapters)
        case Mistake.SCALE_OMITTED | Mistake.SCALE_TWICE:
            return scale
        case Mistake.ARCH_SCALE_BEFORE_BIAS:
            return False  # no architecture here has such a scale; tests/graph/test_spec.py builds one


@pytest.mark.parametrize("model", LAYERS)
@pytest.mark.parametrize("tied", [False, True])
def test_everything_at_once(model: str, tied: bool) -> None:
    """Two layers, every linear scaled and biased, two adapters on every linear, the output's on the tied weight too."""
    rng = np.random.default_rng(11)
    every = tuple(base for layer in (0, 1) for base in linears(model, layer=layer, tied=tied))
    biased = tuple(base for base in every if base != "token_embd")
    small = small_model(model, rng, layers=2, tied=tied, biased=biased, scaled=every)
    shapes = linears(model, layer=0) | linears(model, layer=1)
    small.adapters = [(random_adapter(rng, shapes, rank=2), 0.7), (random_adapter(rng, shapes, rank=4), -0.3)]
    graph, tensors = attach(small.graph(), small.adapters, small.arrays)
    verify(graph)
    wanted = Float64Model(small).logits(IDS)
    for backend, tolerance in [*BACKENDS, *GPU]:
        found = logits_of(backend, graph, small.arrays | tensors, IDS)
        assert nmse(found, wanted) < tolerance, backend.name
