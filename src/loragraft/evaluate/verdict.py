"""Which of two deployments keeps more of a fine-tune, in a sentence.

The yardstick is the mean KL divergence from the fine-tune at full precision: that of the base without the adapter is
all that the adapter changed, and a deployment keeps of it the share 1 - KL(deployment) / KL(base). The two are
compared token by token, so the noise that they share (the base's quantization) cancels.
"""

from __future__ import annotations

from math import sqrt

from loragraft.evaluate.perplexity import Doubles

SIGNIFICANT = 2.0  # standard errors


def kept(deployment: Doubles, base: Doubles) -> float:
    """The share of the fine-tune that is kept; negative if quantization moved the model further than the adapter."""
    return 1 - float(deployment.mean()) / float(base.mean())


def verdict(merged: Doubles, runtime: Doubles, base: Doubles) -> str:
    """One sentence from the divergences [n] of the same n tokens."""
    if not base.mean() > 0:
        return "The adapter changes nothing on this text, so there is nothing to lose."
    difference = merged - runtime
    mean, error = float(difference.mean()), float(difference.std() / sqrt(max(len(difference) - 1, 1)))
    shares = {"merged": kept(merged, base), "runtime": kept(runtime, base)}
    percent = {name: f"{100 * share:.1f} %" for name, share in shares.items()}
    if max(shares.values()) <= 0:
        return (
            f"Neither keeps the fine-tune: quantization moves the model further (mean KL {merged.mean():.4g} merged, "
            f"{runtime.mean():.4g} at run time) than the adapter does ({base.mean():.4g}); take a larger type."
        )
    measured = f"mean KL {merged.mean():.4g} merged against {runtime.mean():.4g} at run time"
    if abs(mean) <= SIGNIFICANT * error:
        return (
            f"Both keep the fine-tune equally well on this text ({percent['merged']} merged, {percent['runtime']} at "
            f"run time; {measured}, no more apart than chance): merge, it is one file and faster."
        )
    if mean > 0:
        return (
            f"The adapter at run time keeps more of the fine-tune: {percent['runtime']} of what it changed, against "
            f"{percent['merged']} when merged before quantizing ({measured})."
        )
    return (
        f"Merging before quantizing keeps more of the fine-tune: {percent['merged']} of what it changed, against "
        f"{percent['runtime']} with the adapter at run time ({measured})."
    )
