"""Every format that is read, by the name that the command line takes."""

from __future__ import annotations

from fuzz.file_formats import (
    Gguf,
    GgufTokenizer,
    GgufUse,
    ImatrixFile,
    JournalFile,
    JsonFile,
    Safetensors,
    Torch,
)
from fuzz.folder_formats import (
    AdapterConfig,
    AdapterFolder,
    Card,
    Folder,
    IndexFile,
    IntegerWeights,
    MethodFolder,
    SlowTokenizer,
    TokenizerFiles,
)
from fuzz.format import Format
from fuzz.text_formats import Conversations, Options, ServerBody, Template

FORMATS: dict[str, type[Format]] = {
    "gguf": Gguf,
    "gguf-tokenizer": GgufTokenizer,
    "gguf-verbs": GgufUse,
    "safetensors": Safetensors,
    "index": IndexFile,
    "torch": Torch,
    "imatrix": ImatrixFile,
    "json": JsonFile,
    "adapter-config": AdapterConfig,
    "checkpoint": Folder,
    "adapter": AdapterFolder,
    "tokenizer": TokenizerFiles,
    "slow-tokenizer": SlowTokenizer,
    "model-card": Card,
    "template": Template,
    "options": Options,
    "journal": JournalFile,
    "methods": MethodFolder,
    "integer-weights": IntegerWeights,
    "conversations": Conversations,
    "server": ServerBody,
}
