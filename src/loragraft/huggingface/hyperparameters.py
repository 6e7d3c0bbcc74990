"""config.json to GGUF's hyperparameters: the keys of a record in its order, which is that of llama.cpp's converter."""

from __future__ import annotations

from loragraft.archs import Arch, ConfigClass
from loragraft.archs.config import Config
from loragraft.archs.keys import FILE_TYPE
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value
from loragraft.huggingface.unread_keys import unread_notes


def hyperparameters(arch: Arch, config_class: ConfigClass, config: Config, file_type: int) -> Metadata:
    """The `<arch>.*` keys and `general.file_type`.

    Raises CheckpointError for a value that is missing or makes no sense, UnsupportedError for one that the
    architecture's GGUF form cannot express.
    """
    metadata: Metadata = {}
    for rule in config_class.keys:
        if rule is FILE_TYPE:
            metadata["general.file_type"] = Value.u32(file_type)
        metadata.update({f"{arch.name}.{key}": value for key, value in rule.to_gguf(config).items()})
    return metadata


def check_expressible(arch: Arch, config_class: ConfigClass, config: Config) -> list[str]:
    """Notes on what GGUF or llama.cpp leaves out; raises UnsupportedError for what would change the results."""
    for key, allowed in config_class.requires.items():
        value = config.get(key)
        if value is not None and value not in allowed:
            raise UnsupportedError(
                config.path,
                f"{arch.name} in GGUF has no {key} other than {' or '.join(map(repr, allowed))}",
                found=repr(value),
            )
    notes = [note for rule in config_class.keys for note in rule.notes(config, arch.name)]
    return notes + unread_notes(config_class, config)
