"""How several adapters become one: options of `merge` and `combine`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from loragraft.cli.command import option

#: As `adapters.combine` has them, which is not imported for help alone; a test compares them.
METHODS = (
    *("linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties"),
    *("dare_ties_svd", "magnitude_prune", "magnitude_prune_svd"),
)


def combine_options(
    name: str, default_text: str, *also: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command these options, the method's under `name` and under `also`, as the argument `combination`."""
    options = (
        option(
            name,
            *also,
            "method",
            type=click.Choice(METHODS),
            metavar="METHOD",
            default_text=default_text,
            help="How to make one adapter of all, as PEFT's add_weighted_adapter: "
            + ", ".join(METHODS)
            + ".",
        ),
        option(
            "--density",
            type=click.FloatRange(0, 1, min_open=True),
            metavar="D",
            help="For ties, dare and magnitude_prune: the share of the values to keep.",
        ),
        option(
            "--rank",
            type=click.IntRange(1),
            metavar="R",
            default_text="the largest of the adapters'",
            help="For svd and ..._svd: the rank to cut to.",
        ),
        option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            metavar="N",
            help="For dare: what is dropped at random.",
        ),
    )

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def wrapped(
            *args: Any,
            method: str | None,
            density: float | None,
            rank: int | None,
            seed: int,
            **others: Any,
        ) -> None:
            if method is None and (density is not None or rank is not None):
                raise click.UsageError(f"--density and --rank are for {name}: name a method")
            combination = None
            if method is not None:
                from loragraft.adapters.combine import Combination

                combination = Combination(method, density, rank, seed)
            function(*args, combination=combination, **others)

        for each in reversed(options):
            wrapped = each(wrapped)
        return wrapped

    return decorate
