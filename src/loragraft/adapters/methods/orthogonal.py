"""OFT, BOFT and HRA: the weight's rows are turned (Qiu et al. 2023, arXiv 2306.07280; Liu et al. 2023, arXiv
2311.06243; Yuan et al. 2024, arXiv 2405.17484).

OFT: W' = W R^T with blocks R = Cayley(Q), Q skew-symmetric from its upper triangle. BOFT: the same with Q = (X - X^T) /
2 of whole blocks, and rows scaled. HRA: W' = W prod (I - 2 u u^T), or with Gram-Schmidt W (I - 2 U U^T). Sources:
peft/tuners/oft/layer.py, boft/layer.py, hra/layer.py."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from loragraft.adapters.advice import merge_with_peft
from loragraft.adapters.methods.method import Context, Method, ModuleTransform, need
from loragraft.adapters.transform import Blocks, Reflections
from loragraft.arrays import Doubles, Floats
from loragraft.errors import AdapterError


def _oft(context: Context, module: str, parts: Mapping[str, Floats]) -> ModuleTransform:
    (vectors,) = need(context, module, parts, "oft_R")
    size = round((1 + (1 + 8 * vectors.shape[-1]) ** 0.5) / 2)
    if vectors.ndim != 2 or size * (size - 1) // 2 != vectors.shape[1] or not len(vectors):
        raise context.misfit(module, vectors.shape, "upper triangles of square blocks")
    skew = np.zeros((len(vectors), size, size), np.float64)
    rows, columns = np.triu_indices(size, 1)
    skew[:, rows, columns] = vectors
    skew -= skew.swapaxes(1, 2)
    if context.config.get("coft"):
        skew = _constrained(skew, float(context.number("eps")))
    if context.config.get("use_cayley_neumann", False):
        blocks = _neumann(skew, context.number("num_cayley_neumann_terms", whole=True))
    else:
        blocks = _cayley(skew)
    if context.config.get("block_share"):
        count = context.config.get("r") or 0
        wanted = context.config.get("oft_block_size") or 0
        if len(blocks) != 1 or (wanted and wanted != size):
            raise context.misfit(
                module, f"{len(blocks)} blocks of {size}", f"one block of {wanted or 'in / r'}"
            )
        return ModuleTransform(module, ("oft_R",), rotation=SharedBlock(_turned(blocks), count))
    return ModuleTransform(module, ("oft_R",), rotation=Blocks(_turned(blocks)))


class SharedBlock(Blocks):
    """One block for all of the columns, however many; `size` is set once the weight is known."""

    def __init__(self, blocks: Floats, count: int) -> None:
        super().__init__(blocks)
        self.size = 0

    def of_size(self, columns: int) -> Blocks:
        """The blocks for weights of so many columns. Raises ValueError if they do not divide."""
        height = self.blocks.shape[1]
        if columns % height:
            raise ValueError(f"{columns} columns do not divide into blocks of {height}")
        return Blocks(np.repeat(self.blocks, columns // height, axis=0))


def _constrained(skew: Doubles, eps: float) -> Doubles:
    """COFT: each block's distance from zero is at most eps / sqrt(blocks)."""
    most = eps / len(skew) ** 0.5
    norms = np.sqrt(np.square(skew).sum(axis=(1, 2), keepdims=True))
    return np.where(norms <= most, skew, most * skew / np.where(norms > 0, norms, 1))


def _cayley(skew: Doubles) -> Doubles:
    """(I - Q) (I + Q)^-1 of each block."""
    one = np.eye(skew.shape[-1])
    return np.asarray(
        np.linalg.solve((one + skew).swapaxes(1, 2), (one - skew).swapaxes(1, 2)).swapaxes(1, 2)
    )


def _neumann(skew: Doubles, terms: int) -> Doubles:
    """Its approximation, I + 2 Q + 2 Q^2 + ... + Q^(terms - 1), as PEFT sums it."""
    total = np.repeat(np.eye(skew.shape[-1])[None], len(skew), axis=0)
    if terms > 1:
        total += 2 * skew
    if terms > 2:
        power = skew @ skew
        total += 2 * power
        for _ in range(3, min(terms, 64) - 1):
            power = power @ skew
            total += 2 * power
        total += power @ skew
    return total


def _turned(blocks: Doubles) -> Floats:
    return np.ascontiguousarray(blocks.swapaxes(1, 2), np.float32)


def _boft(context: Context, module: str, parts: Mapping[str, Floats]) -> ModuleTransform:
    blocks, lengths = need(context, module, parts, "boft_R", "boft_s")
    if blocks.ndim != 4 or blocks.shape[2] != blocks.shape[3] or lengths.ndim != 2 or lengths.shape[1] != 1:
        raise context.misfit(
            module, f"{blocks.shape} and {lengths.shape}", "(1, blocks, size, size) and (out, 1)"
        )
    if blocks.shape[0] != 1:
        raise AdapterError(
            context.path,
            f"BOFT of {module} with more than one butterfly factor is not supported",
            found=f"boft_n_butterfly_factor {blocks.shape[0]}",
            expected=1,
            hint=merge_with_peft(context.path),
        )
    raw = blocks[0].astype(np.float64)
    skew = (raw - raw.swapaxes(1, 2)) / 2
    rotation = Blocks(_turned(_cayley(skew)))
    flat = np.ascontiguousarray(lengths.reshape(-1))
    return ModuleTransform(module, ("boft_R", "boft_s"), lengths=flat, rotation=rotation)


def _hra(context: Context, module: str, parts: Mapping[str, Floats]) -> ModuleTransform:
    (vectors,) = need(context, module, parts, "hra_u")
    rank = context.number("r", whole=True)
    if vectors.ndim != 2 or vectors.shape[1] != rank or not vectors.any(axis=0).all():
        raise context.misfit(module, vectors.shape, f"(in, {rank}), no column zero")
    units = vectors.astype(np.float64).T
    if context.config.get("apply_GS"):
        units = _orthogonal(units)
    units = units / np.linalg.norm(units, axis=1, keepdims=True)
    return ModuleTransform(module, ("hra_u",), rotation=Reflections(np.ascontiguousarray(units, np.float32)))


def _orthogonal(vectors: Doubles) -> Doubles:
    """Gram-Schmidt: reflections in orthogonal directions do not depend on their order."""
    units: list[npt.NDArray[np.float64]] = []
    for vector in vectors:
        for unit in units:
            vector = vector - (unit @ vector) * unit
        units.append(vector / np.linalg.norm(vector))
    return np.stack(units)


OFT = Method(
    "OFT",
    frozenset(["oft_R"]),
    _oft,
    honoured=frozenset(
        """
        r oft_block_size coft eps block_share use_cayley_neumann num_cayley_neumann_terms
        """.split()  # noqa: SIM905
    ),
    harmless=frozenset(["module_dropout", "init_weights"]),
)
BOFT = Method(
    "BOFT",
    frozenset(["boft_R", "boft_s"]),
    _boft,
    honoured=frozenset(["boft_block_size", "boft_block_num", "boft_n_butterfly_factor"]),
    harmless=frozenset(["boft_dropout", "init_weights"]),
)
HRA = Method(
    "HRA",
    frozenset(["hra_u"]),
    _hra,
    honoured=frozenset(["r", "apply_GS"]),
    harmless=frozenset(["init_weights"]),
)
