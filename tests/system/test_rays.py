"""What there is to say before a cluster of Ray's is reached. (Ray itself: tests/streaming/test_ray.py.)"""

from __future__ import annotations

import socket

import pytest

from loragraft.errors import LoragraftError
from loragraft.system.workers.rays import _check_answers


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens(scheme: str) -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(
            LoragraftError, match=r"no cluster answers.*start one: ray start --head"
        ) as raised:
            _check_answers(address)
    assert "\n" not in str(raised.value)


def test_an_address_where_something_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        _check_answers(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["auto", "local", "ray://name", "127.0.0.1"])
def test_addresses_without_a_port_are_rays_to_find(address: str) -> None:
    _check_answers(address)
