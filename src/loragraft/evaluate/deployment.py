"""One way to deploy a fine-tune, with what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass

from loragraft.arrays import Doubles
from loragraft.evaluate.divergence import Divergence
from loragraft.evaluate.reading import Reading
from loragraft.evaluate.uncertainty import Estimate, share_kept
from loragraft.inference.perplexity import Perplexity


@dataclass(frozen=True, slots=True)
class Deployment:
    """`size`: bytes of weights (and of the adapter, where it is separate).

    `divergence` is from the full-precision merged model, None for that model itself; `kept` the share of the fine-tune,
    None for that model, for the base, and if the adapter changes nothing. `engine`: the divergence with activations
    rounded to 8 bits besides, as the native engine and llama.cpp run quantized weights, where that was measured.
    """

    label: str
    size: int
    perplexity: Perplexity
    divergence: Divergence | None = None
    kept: Estimate | None = None
    engine: Divergence | None = None

    @classmethod
    def of(
        cls,
        label: str,
        size: int,
        reading: Reading,
        base: Doubles | None = None,
        engine: Reading | None = None,
    ) -> Deployment:
        """From what it made of a text; `base`: the divergences [windows, tokens] of the base without the adapter."""
        kept = share_kept(reading.kl, base) if base is not None and base.mean() > 0 else None
        rounded = None if engine is None else engine.divergence
        return cls(label, size, reading.perplexity, reading.divergence, kept, rounded)
