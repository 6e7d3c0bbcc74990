"""A rule between config.json and GGUF's metadata, both ways."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams
from loragraft.archs.metadata import MetadataKeys
from loragraft.formats.gguf.values import Metadata


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A GGUF on its way back to a config.json. `shapes`: of its tensors, by name."""

    keys: MetadataKeys
    h: Hparams
    shapes: Mapping[str, tuple[int, ...]]
    rope_freqs: npt.NDArray[np.float32] | None = None


class Rule(ABC):
    """Something that config.json and GGUF both say, each in its own way. Stateless; a record has many."""

    @property
    @abstractmethod
    def config_keys(self) -> frozenset[str]:
        """Those of config.json that it reads."""

    @abstractmethod
    def to_gguf(self, config: Config) -> Metadata:
        """GGUF's keys, without the architecture's prefix, in order.

        Raises CheckpointError for a value that is missing or makes no sense, UnsupportedError for one that GGUF cannot
        express.
        """

    @abstractmethod
    def to_config(self, model: GgufModel) -> dict[str, Any]:
        """The way back: keys of config.json. Raises UnsupportedError for what they cannot say."""

    def tensors(self, config: Config) -> Mapping[str, npt.NDArray[np.float32]]:
        """Tensors that config.json implies, by GGUF's names."""
        return {}

    def notes(self, config: Config, arch: str) -> list[str]:
        """What is lost, or what llama.cpp does otherwise, in a model that `general.architecture` calls `arch`."""
        return []


class _FileType(Rule):
    """Stands where `general.file_type` goes among the keys; who writes them knows its value."""

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset()

    def to_gguf(self, config: Config) -> Metadata:
        return {}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        return {}


FILE_TYPE = _FileType()
