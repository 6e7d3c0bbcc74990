"""The names of files that lie elsewhere, as paths: their parts, and nothing of what is there."""

from __future__ import annotations

from pathlib import PosixPath

SCHEMES = ("hf", "s3", "gs", "http", "https")


class Url(PosixPath):
    """What a URL says. Its parts are the scheme, the bucket, host or organisation, and so on."""

    __slots__ = ()

    def __str__(self) -> str:
        parts = self.parts
        if parts and parts[0][:-1] in SCHEMES and parts[0].endswith(":"):
            return f"{parts[0]}//{'/'.join(parts[1:])}"
        return "/".join(parts) or "."

    @property
    def scheme(self) -> str:
        return self.parts[0][:-1] if self.parts else ""

    @property
    def repository(self) -> str:
        """The last name without a revision: of a model on the hub, what it is called."""
        return self.name.partition("@")[0] if self.scheme == "hf" and len(self.parts) <= 3 else self.name
