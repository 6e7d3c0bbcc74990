"""Names of a language model's tensors inside of a multimodal one, and of what is around it.

transformers from 4.52 on calls them `model.language_model.layers.*`, before `language_model.model.layers.*`; others put
`text_model`, `llm` or `thinker` around them. The language model alone calls them `model.layers.*`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from copy import copy
from itertools import islice
from pathlib import Path

from loragraft.archs import ARCHS
from loragraft.errors import LoragraftError, UnsupportedError
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.safetensors import SafetensorsFile
from loragraft.huggingface.intake import Intake
from loragraft.huggingface.tensor_names import Place, TensorNames
from loragraft.units import names_text

_AROUND = frozenset(["language_model", "text_model", "llm", "thinker"])
#: Parts of the names of what is not a language model's: towers that see and hear, and what leads from them to it.
_OTHERS = frozenset(
    """
    audio_encoder audio_model audio_projector audio_tower connector embed_audio embed_vision image_newline image_tower
    mm_projector multi_modal_projector talker token2wav vision vision_embed_tokens vision_encoder vision_model
    vision_projector vision_tower visual vit
    """.split()  # noqa: SIM905
)
#: Whose older config.json has the language model's keys at the top.
_FLAT = ("qwen2_vl", "qwen2_5_vl")


def plain_names(name: str) -> Iterator[str]:
    """`name`, and then what the language model alone may call it."""
    yield name
    parts = name.split(".")
    if not _AROUND & set(parts):
        return
    inner = [part for part in parts if part not in _AROUND]
    while inner[:2] == ["model", "model"]:
        inner = inner[1:]
    yield ".".join(inner)
    if inner[0] == "model":
        yield ".".join(inner[1:])


def is_other_part(name: str) -> bool:
    """Whether the tensor or module belongs to what is around the language model."""
    return bool(_OTHERS & set(name.split(".")))


class TextNames(TensorNames):
    """A base's names, under which also the tensors of a wrapper around the same model are found."""

    def has_module(self, name: str) -> bool:
        """Whether modules of the architecture may be called `name` (`lm_head`, `mlp.gate_proj`)."""
        return any(f".{known.rpartition('.')[0]}".endswith(f".{name}") for known in self.by_name())

    def modules(self, tensors: Container[str]) -> list[str]:
        """The modules whose weights are matrices among `tensors` (GGUF's names), experts left out."""
        return [
            name.removesuffix(".weight")
            for name, places in self.by_name().items()
            if name.endswith(".weight")
            and "{e}" not in name
            and not places[0].tensor.exact
            and not places[0].name.endswith("_norm.weight")
            and places[0].name in tensors
        ]

    def module(self, name: str) -> str:
        """The language model's own name of the module `name`."""
        known = self.by_name()
        for plain in plain_names(name):
            for candidate in (plain, f"model.{plain}"):
                if f"{candidate}.weight" in known:
                    return candidate
        return name

    def places(self, name: str) -> tuple[Place, ...]:
        return next((found for plain in plain_names(name) if (found := self._direct(plain))), ())

    def _direct(self, name: str) -> tuple[Place, ...]:
        """Where the tensor goes if the base itself calls it so."""
        return super().places(name)


def refuse_or_note(
    path: Path, others: Sequence[str], intake: Intake, notes: list[str], error: type[LoragraftError]
) -> None:
    """Of tensors of another part than the language model: a note if they may be left out, else an error."""
    if not others:
        return
    listed = names_text(others)
    if not intake.text_only:
        raise error(
            path,
            f"holds {len(others)} tensors of a vision or audio part, for which a language model has no place",
            found=listed,
            expected="those of the language model alone",
            hint="add --text-only to leave them out; the answers to pictures or sounds are then not the tuned model's",
        )
    notes.append(f"{path}: {len(others)} tensors of its vision or audio part are left out ({listed})")


def text_model(checkpoint: Checkpoint, intake: Intake) -> Checkpoint:
    """The language model in a multimodal `checkpoint`, which config.json describes under `text_config`; another
    checkpoint as it is.

    Raises UnsupportedError unless `intake` lets the other parts go, or there are none.
    """
    config, path = checkpoint.config, checkpoint.path / "config.json"
    text, kind = config.get("text_config"), config.get("model_type")
    if kind in _FLAT and not isinstance(text, Mapping):
        text = {key: value for key, value in config.items() if key != "vision_config"}
        text["model_type"] = f"{kind}_text"
    if not isinstance(text, Mapping) or ARCHS.has_model_type(str(kind)):
        return checkpoint
    others = [name for name in checkpoint.tensors if is_other_part(name)]
    if others and not intake.text_only:
        raise UnsupportedError(
            path,
            f"a multimodal model ({kind}) around a language model ({text.get('model_type')})",
            found=f"{len(others)} of {len(checkpoint.tensors)} tensors are of its other parts",
            expected="a language model alone",
            hint="add --text-only to take its language model and leave the rest out",
        )
    files = []
    for file in checkpoint.files:
        inner = [copy(tensor) for tensor in file.tensors.values() if not is_other_part(tensor.name)]
        for tensor in inner:
            tensor.name = next(islice(plain_names(tensor.name), 1, None), tensor.name)
        files.append(SafetensorsFile(file.path, file.metadata, {tensor.name: tensor for tensor in inner}))
    outer: dict[str, object] = {
        key: config[key] for key in ("tie_word_embeddings", "quantization_config") if key in config
    }
    vision = config.get("vision_config")
    if isinstance(vision, Mapping) and "deepstack_visual_indexes" in vision:
        outer["deepstack_visual_indexes"] = vision["deepstack_visual_indexes"]
    note = f"{path}: only the language model of {kind} is taken; {len(others)} tensors are left out"
    if not others:
        note = f"{path}: holds only the language model of {kind}, which is taken"
    return Checkpoint(checkpoint.path, dict(text) | outer, files, [*checkpoint.notes, note])
