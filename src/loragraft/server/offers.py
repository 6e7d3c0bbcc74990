"""Requests that offer another protocol, served as HTTP/1.1, as a server may (RFC 9110, 7.8).

Java's client offers HTTP/2 (`Upgrade: h2c`) with its first request, which has a body. The parser stops behind the head
of such a request, and the body would be lost: so the head is parsed once more, without the offer.
"""

from __future__ import annotations

from collections.abc import Callable

import httptools

Headers = list[tuple[bytes, bytes]]


class Parser:
    """httptools' parser for `protocol`. `head`: the URL and the headers, with names in small letters, of the request
    that came last."""

    def __init__(self, protocol: object, head: Callable[[], tuple[bytes, Headers]]) -> None:
        self._protocol, self._head = protocol, head
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self._protocol)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.get_method = self._parser.get_method
        self.get_http_version = self._parser.get_http_version
        self.should_keep_alive = self._parser.should_keep_alive
        self.should_upgrade = self._parser.should_upgrade

    @property
    def is_offer(self) -> bool:
        """Whether this head is one that will be parsed once more."""
        return bool(self.should_upgrade()) and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        rest = memoryview(data)
        while True:
            try:
                self._parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as offer:
                if not self.is_offer:
                    raise
                rest = rest[offer.args[0] :]
                head = self._without_offer()
                self._begin()
                self._parser.feed_data(head)

    def _without_offer(self) -> bytes:
        url, headers = self._head()
        lines = [b"%b %b HTTP/%b" % (self.get_method(), url, self.get_http_version().encode())]
        for name, value in headers:
            if name == b"connection":
                named = (token.strip() for token in value.split(b","))
                value = b", ".join(
                    token for token in named if token.lower() not in (b"upgrade", b"http2-settings")
                )
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])
