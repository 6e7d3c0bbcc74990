"""A fine-tune that is smaller than a step of its base's own grid: rounding to nearest goes back to the base, and error
feedback does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gguf_files import write_gguf
from loragraft.formats.gguf.model import open_gguf
from loragraft.quants import native
from loragraft.quants.types import BY_NAME
from small_models import small_model
from streaming.test_calibrated import log_softmax, logits, nearest, text, written

Floats = npt.NDArray[np.float32]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "NVFP4"])
def test_a_small_change_of_a_base_on_the_grid_is_kept(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(3)
    model = small_model("llama", rng, layers=2)
    base, adapted = dict(model.arrays), dict(model.arrays)
    for name, weights in model.arrays.items():
        if name.startswith("blk.") and weights.ndim == 2:
            base[name] = on_the_grid(weights, kind)
            delta = rng.standard_normal((len(weights), 2)) @ rng.standard_normal((2, weights.shape[1]))
            adapted[name] = (base[name] + 0.1 * base[name].std() * delta / delta.std()).astype(np.float32)
    files = {
        name: write_gguf(tmp_path / f"{name}.gguf", model.metadata, arrays)
        for name, arrays in (("base", base), ("adapted", adapted))
    }
    source, other = open_gguf(files["adapted"]), text(8, seed=1)
    nearest(source, tmp_path / "nearest.gguf", kind)
    written(source, tmp_path / "feedback.gguf", text(), kind)
    true = log_softmax(logits(files["adapted"], other))

    def kl(name: str) -> float:
        found = log_softmax(logits(tmp_path / f"{name}.gguf", other))
        return float((np.exp(true) * (true - found)).sum(axis=-1).mean())

    kept = {way: 1 - kl(way) / kl("base") for way in ("nearest", "feedback")}
    assert kept["nearest"] < 0.45
    assert kept["feedback"] > 0.6


def on_the_grid(weights: Floats, kind: str) -> Floats:
    """What `kind` makes of them; rows of NVFP4 go on to whole blocks."""
    wide = np.pad(weights, ((0, 0), (0, -weights.shape[1] % BY_NAME[kind].block)))
    rows = native.dequantize(native.quantize(wide, BY_NAME[kind]), BY_NAME[kind])
    return np.ascontiguousarray(rows.reshape(wide.shape)[:, : weights.shape[1]])
