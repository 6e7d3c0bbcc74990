"""What golden/peft-combined.npz was made of: adapters with their weights, and the combination."""

from __future__ import annotations

from typing import Any

SEED = 11
_TWO = {"one": 0.7, "two": 1.3}
_MIXED = {"one": 0.7, "small": 1.3}

RECIPES: dict[str, tuple[dict[str, float], dict[str, Any]]] = {
    "linear": (_TWO, {"method": "linear"}),
    "linear-negative": ({"one": 1.0, "two": -0.5}, {"method": "linear"}),
    "linear-embedding": ({"one": 1.0, "embedding": -0.5}, {"method": "linear"}),
    "cat": ({**_TWO, "small": -1.0}, {"method": "cat"}),
    "svd": ({**_TWO, "small": -1.0}, {"method": "svd"}),
    "svd-rank": (_TWO, {"method": "svd", "rank": 3}),
    "ties": (_TWO, {"method": "ties", "density": 0.5}),
    "ties_svd": ({**_TWO, "small": 1.0}, {"method": "ties_svd", "density": 0.4}),
    "dare_linear": (_TWO, {"method": "dare_linear", "density": 0.6, "seed": SEED}),
    "dare_ties": (_TWO, {"method": "dare_ties", "density": 0.6, "seed": SEED}),
    "dare_linear_svd": (_MIXED, {"method": "dare_linear_svd", "density": 0.6, "seed": SEED}),
    "dare_ties_svd": (_MIXED, {"method": "dare_ties_svd", "density": 0.6, "seed": SEED}),
    "magnitude_prune": (_TWO, {"method": "magnitude_prune", "density": 0.3}),
    "magnitude_prune_svd": (_MIXED, {"method": "magnitude_prune_svd", "density": 0.3}),
    "one-alone": ({"one": 0.5}, {"method": "cat"}),
}
