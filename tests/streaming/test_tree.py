"""Sums that are the same whoever makes which part of them."""

from __future__ import annotations

import numpy as np
import pytest

from loragraft.streaming.tree import Tree, shares


def leaf(number: int) -> list[np.ndarray]:
    rng = np.random.default_rng(number)
    return [rng.standard_normal((3, 3)).astype(np.float32), rng.standard_normal(2).astype(np.float32)]


@pytest.mark.parametrize("leaves", [1, 2, 3, 7, 8, 13, 32])
def test_any_shares_add_up_to_the_same_bits(leaves: int) -> None:
    alone = Tree()
    for number in range(leaves):
        alone.add(number, leaf(number))
    expected = alone.total()
    exact = [sum(leaf(n)[k].astype(np.float64) for n in range(leaves)) for k in range(2)]
    for one, whole in zip(expected, exact, strict=True):
        assert np.allclose(one, whole, atol=1e-5)
    for workers in (1, 2, 3, 5, 8, 40):
        for extra in (0, 3):
            together = Tree()
            for share in shares(leaves, workers, extra):
                own = Tree()
                for number in share:
                    own.add(number, leaf(number))
                assert sum(node.size for node in own.nodes) == len(share)
                for node in own.nodes:
                    for array in node.arrays:
                        array.flags.writeable = False  # as what comes out of a cluster's shared memory
                together.extend(own.nodes)
            for one, other in zip(together.total(), expected, strict=True):
                assert np.array_equal(one, other)


def test_shares_are_alike_and_all_there_is() -> None:
    for leaves in range(1, 40):
        for workers in range(1, 12):
            found = shares(leaves, workers)
            assert [number for share in found for number in share] == list(range(leaves))
            assert len(found) == workers
            assert max(map(len, found)) <= 1.5 * -(-leaves // workers)
    assert [len(share) for share in shares(16, 2, 4)] == [10, 6]
    assert [len(share) for share in shares(16, 1, 4)] == [16]
