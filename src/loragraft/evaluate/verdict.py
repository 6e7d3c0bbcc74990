"""Which deployment to take, in a sentence.

The yardstick is the mean KL divergence from the fine-tune at full precision: that of the base without the adapter is
all that the adapter changed, and a deployment keeps of it the share 1 - KL(deployment) / KL(base).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log10

from loragraft.arrays import Doubles
from loragraft.evaluate.deployment import Deployment
from loragraft.evaluate.uncertainty import SIGNIFICANT, Estimate, mean, share_kept
from loragraft.units import bytes_text

NOTHING = "The adapter changes nothing on this text, so there is nothing to lose."


def verdict(merged: Doubles, runtime: Doubles, base: Doubles) -> str:
    """Which of two deployments of one type keeps more, from the divergences [windows, tokens] of the same tokens.

    They are compared token by token, so the noise that they share (the base's quantization) cancels.
    """
    if not base.mean() > 0:
        return NOTHING
    difference = mean(merged - runtime)
    shares = {"merged": share_kept(merged, base).value, "runtime": share_kept(runtime, base).value}
    percent = {name: f"{100 * share:.1f} %" for name, share in shares.items()}
    if max(shares.values()) <= 0:
        return (
            f"Neither keeps the fine-tune: quantization moves the model further (mean KL {merged.mean():.4g} merged, "
            f"{runtime.mean():.4g} at run time) than the adapter does ({base.mean():.4g}); take a larger type."
        )
    measured = f"mean KL {merged.mean():.4g} merged against {runtime.mean():.4g} at run time"
    if not _certain(difference):
        return (
            f"Both keep the fine-tune equally well on this text ({percent['merged']} merged, {percent['runtime']} at "
            f"run time; {measured}, no more apart than chance): merge, it is one file and faster."
        )
    if difference.value > 0:
        return (
            f"The adapter at run time keeps more of the fine-tune: {percent['runtime']} of what it changed, against "
            f"{percent['merged']} when merged before quantizing ({measured})."
        )
    return (
        f"Merging before quantizing keeps more of the fine-tune: {percent['merged']} of what it changed, against "
        f"{percent['runtime']} with the adapter at run time ({measured})."
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deployment to choose: its label, bytes, and the share of the fine-tune that it keeps."""

    label: str
    size: int
    kept: Estimate

    def __str__(self) -> str:
        return f"{self.label} ({bytes_text(self.size)}, {percent_text(self.kept)})"


def percent_text(share: Estimate) -> str:
    """`99.41 ± 0.03 %`: as many decimals as the error makes sense of, from one to four."""
    decimals = 1 if share.error < 1e-9 else min(max(1, ceil(-log10(100 * share.error))), 4)
    return f"{100 * share.value:.{decimals}f} ± {100 * share.error:.{decimals}f} %"


def smallest(candidates: Sequence[Candidate], keep: float) -> Candidate | None:
    """The smallest that surely keeps at least the share `keep`; the first of equals."""
    sure = [candidate for candidate in candidates if candidate.kept.at_least(keep)]
    return min(sure, key=lambda candidate: candidate.size, default=None)


def recommendation(candidates: Sequence[Candidate], keep: float) -> str:
    """Which of `candidates` to take if the share `keep` of the fine-tune is wanted, and where the text is too short to
    tell."""
    wanted = f"{100 * keep:.4g} % of the fine-tune"
    chosen = smallest(candidates, keep)
    unsure = [
        one
        for one in candidates
        if not one.kept.at_least(keep)
        and not one.kept.below(keep)
        and (chosen is None or one.size < chosen.size)
    ]
    perhaps = ""
    if unsure:
        perhaps = f" {min(unsure, key=lambda one: one.size)} may too: this text is too short to tell."
    if chosen is not None:
        return f"The smallest that keeps {wanted}: {chosen}.{perhaps}"
    if perhaps:
        return f"None is sure to keep {wanted}.{perhaps}"
    best = max(candidates, key=lambda one: one.kept.value)
    return f"None keeps {wanted}; {best} comes closest. Take a larger type."


#: How much further from the fine-tune 8-bit activations take a model before that is worth a sentence.
NOTABLE = 1.5


def of_activations(deployment: Deployment) -> str | None:
    """What is lost not in the file but in how it is run, if that is much beside what is lost in the file."""
    file, engine = deployment.divergence, deployment.engine
    if file is None or engine is None or engine.mean < NOTABLE * file.mean:
        return None
    return (
        f"Most of what {deployment.label} loses is not in the file: with activations rounded to 8 bits, as this engine "
        f"and llama.cpp run it, the mean KL is {engine.mean:.3g}, with float ones (--activations f32) {file.mean:.3g}. "
        "No larger type helps against that."
    )


def budget_verdict(
    chosen: Deployment, chosen_kl: Doubles, mixes: Sequence[tuple[Deployment, Doubles]]
) -> str:
    """Whether types chosen tensor by tensor beat the mix of their size, and how they stand to the next larger one: each
    with its divergences [windows, tokens] of the same tokens. The first of `mixes` is that of the size."""

    def beside(mix: Deployment, kl: Doubles) -> str:
        kept = ""
        if chosen.kept is not None and mix.kept is not None:
            kept = f", {percent_text(chosen.kept)} of the fine-tune kept against {percent_text(mix.kept)}"
        return f"mean KL {chosen_kl.mean():.3g} against {kl.mean():.3g}{kept}"

    (mix, mix_kl), *larger = mixes
    better = _certain(mean(mix_kl - chosen_kl))
    name, sizes = mix.label, f"{chosen.size / 1e6:.2f} MB against {mix.size / 1e6:.2f} MB"
    if better < 0:
        return f"The chosen types are worse than {name} on this text: {beside(mix, mix_kl)}. Take {name}."
    if better == 0:
        return (
            f"The chosen types are no better than {name} on this text: {beside(mix, mix_kl)}, no more apart than "
            f"chance. Take {name}."
        )
    saved = percent_text(share_kept(chosen_kl, mix_kl))
    text = f"The chosen types lose {saved} less than {name} ({sizes}): {beside(mix, mix_kl)}."
    for other, kl in larger:
        relation = {1: "better than", 0: "as good as", -1: "not as good as"}[_certain(mean(kl - chosen_kl))]
        more = 100 * (other.size / chosen.size - 1)
        text += f" They are {relation} {other.label}, which is {more:.0f} % larger (mean KL {kl.mean():.3g})."
    return text


def _certain(difference: Estimate) -> int:
    """The sign of a difference, 0 if it may be chance."""
    if abs(difference.value) <= SIGNIFICANT * difference.error:
        return 0
    return 1 if difference.value > 0 else -1
