"""A Hugging Face tokenizer as GGUF's `tokenizer.*` metadata.

Token list, types and merges as llama.cpp's conversion/base.py (`get_vocab_base`) writes them; special tokens, BOS and
EOS flags and chat templates as gguf-py's `SpecialVocab` finds them. The pre-tokenizer is recognised by its definition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import TokenType

from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.gguf.values import Metadata, Value, ValueType
from loragraft.formats.pretokenizers import IGNORE_MERGES, PRETOKENIZERS, recognise

#: Kinds of special token in the order in which their keys are written.
SPECIAL_KINDS = ("bos", "eos", "unk", "sep", "pad", "mask")
#: More tokens than any tokenizer has; a file that says so is refused before anything is sized by it.
_MAX_TOKENS = 1 << 24
#: What GGUF calls them (`tokenizer.ggml.<this>_token_id`), where it differs.
_GGUF_KIND = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # the spelling is GGUF's


def tokenizer_metadata(checkpoint: Checkpoint, vocab_size: int | None, notes: list[str]) -> Metadata:
    """The `tokenizer.*` keys of the model in `checkpoint`; `vocab_size` as config.json has it.

    A vocabulary smaller than `vocab_size` is padded with unused tokens `[PAD<id>]`. Raises CheckpointError for a
    tokenizer.json that is malformed or larger than the model's vocabulary, UnsupportedError for a kind of tokenizer, or
    a pre-tokenizer, that GGUF has no name for. What cannot be carried over is added to `notes`.
    """
    file = _TokenizerFile(checkpoint)
    tokens, types = file.tokens(vocab_size)
    metadata: Metadata = {
        "tokenizer.ggml.model": Value.string("gpt2"),
        "tokenizer.ggml.pre": Value.string(file.pretokenizer(notes)),
        "tokenizer.ggml.tokens": Value.strings(tokens),
        "tokenizer.ggml.token_type": Value.numbers(ValueType.INT32, types),
    }
    if merges := file.merges():
        metadata["tokenizer.ggml.merges"] = Value.strings(merges)
    else:
        notes.append("tokenizer.json has no merges: text will be read letter by letter")
    metadata.update(_special_tokens(checkpoint, file, notes))
    metadata.update(_chat_templates(checkpoint, notes))
    return metadata


class _TokenizerFile:
    """tokenizer.json, of a byte-level BPE tokenizer."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path / "tokenizer.json"
        if not checkpoint.has("tokenizer.json"):
            found = next(
                (n for n in ("tokenizer.model", "tekken.json", "vocab.json") if checkpoint.has(n)), None
            )
            raise UnsupportedError(
                checkpoint.path,
                "no tokenizer.json",
                found=found,
                hint="load the tokenizer with transformers and save_pretrained it again",
            )
        self.json = checkpoint.json("tokenizer.json")
        self.model: dict[str, Any] = self._object(self.json.get("model"), "model")
        kind = self.model.get("type", "BPE" if "merges" in self.model else None)
        if kind != "BPE":
            raise UnsupportedError(self.path, "this kind of tokenizer", found=repr(kind), expected="BPE")
        if self.model.get("byte_fallback"):
            raise UnsupportedError(
                self.path,
                "BPE with byte_fallback (SentencePiece: Llama 2 and its kin)",
                expected="byte-level BPE",
                hint="convert the model with llama.cpp and give loragraft the GGUF",
            )
        vocab = self._object(self.model.get("vocab"), "model.vocab")
        if not all(type(id_) is int and id_ >= 0 for id_ in vocab.values()):
            raise CheckpointError(self.path, "model.vocab has ids that are not numbers")
        self.vocab: dict[str, int] = vocab
        self.added: list[dict[str, Any]] = self.json.get("added_tokens") or []
        for token in self.added:
            fields = token if isinstance(token, dict) else {}
            if type(fields.get("id")) is not int or not isinstance(fields.get("content"), str):
                raise CheckpointError(
                    self.path, "added_tokens has an entry without id or content", found=repr(token)[:80]
                )

    def _object(self, value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise CheckpointError(self.path, f"{name} is missing or no object")
        return value

    def tokens(self, vocab_size: int | None) -> tuple[list[str], list[int]]:
        """Every token's text and type, `vocab_size` of them."""
        texts = {id_: text for text, id_ in self.vocab.items()}
        kinds = dict.fromkeys(texts, TokenType.NORMAL)
        for token in self.added:
            text = token["content"]
            special = bool(token.get("special")) or _looks_special(text)
            # a user-defined token may spell its spaces as SentencePiece does
            texts[token["id"]] = text if special else text.replace("\u2581", " ")
            kinds[token["id"]] = TokenType.CONTROL if special else TokenType.USER_DEFINED
        size = max(texts, default=-1) + 1
        if vocab_size is None:
            vocab_size = size
        if max(size, vocab_size) > _MAX_TOKENS:
            raise CheckpointError(
                self.path,
                "no vocabulary is this large",
                found=max(size, vocab_size),
                expected=f"<= {_MAX_TOKENS}",
            )
        if size > vocab_size:
            raise CheckpointError(
                self.path,
                "the tokenizer has more tokens than the model",
                found=f"token id {size - 1} ({texts[size - 1]!r})",
                expected=f"ids below config.json's vocab_size {vocab_size}",
                hint="were tokens added without resizing the model's embeddings?",
            )
        return (
            [texts.get(id_, f"[PAD{id_}]") for id_ in range(vocab_size)],
            [int(kinds.get(id_, TokenType.UNUSED)) for id_ in range(vocab_size)],
        )

    def merges(self) -> list[str]:
        """`left right` per merge; a space within a part is written as byte-level BPE writes it (U+0120)."""
        merges = self.model.get("merges") or []
        if not isinstance(merges, list):
            raise CheckpointError(self.path, "model.merges is no list")
        lines = []
        for merge in merges:
            parts = merge if isinstance(merge, list) else [merge]
            if not all(isinstance(part, str) for part in parts) or len(parts) not in (1, 2):
                raise CheckpointError(self.path, "model.merges has a bad entry", found=repr(merge)[:80])
            lines.append(parts[0] if len(parts) == 1 else " ".join(part.replace(" ", "Ġ") for part in parts))
        return lines

    def pretokenizer(self, notes: list[str]) -> str:
        """GGUF's name of this tokenizer's pre-tokenizer."""
        expressions = list(_expressions(self.path, self.json.get("pre_tokenizer")))
        normalizers = _flat(
            self.json.get("normalizer") or {"type": "Sequence", "normalizers": []}, "normalizers"
        )
        if any(normalizer != {"type": "NFC"} for normalizer in normalizers):
            raise UnsupportedError(
                self.path,
                "a normalizer that GGUF cannot express",
                found=repr(normalizers)[:120],
                expected="none or NFC",
            )
        ignore_merges = bool(self.model.get("ignore_merges"))
        name = recognise(expressions, ignore_merges)
        if name is None:
            raise UnsupportedError(
                self.path,
                "no GGUF pre-tokenizer has this definition",
                found=" then ".join(expressions) or "none",
                hint="llama.cpp could not read the result; train the tokenizer with a known pre-tokenizer",
            )
        if (name in IGNORE_MERGES) != ignore_merges:
            notes.append(
                f"tokenizer.json: GGUF's pre-tokenizer {name} implies ignore_merges = {not ignore_merges}: "
                "rare words may be cut differently"
            )
        return name

    def id_of(self, text: str) -> int | None:
        return next((token["id"] for token in self.added if token["content"] == text), None)


def _flat(component: Any, children: str) -> list[Any]:
    """The components of a `Sequence`, or the one component, as a list."""
    if isinstance(component, dict) and component.get("type") == "Sequence":
        inner = component.get(children)
        return (
            [leaf for item in inner for leaf in _flat(item, children)]
            if isinstance(inner, list)
            else [component]
        )
    return [component]


def _expressions(path: Path, pre_tokenizer: Any) -> Iterator[str]:
    """The regular expressions that cut a text into words, in order.

    Every component is one: Split as it says, Digits by its meaning, ByteLevel by GPT-2's expression if it uses it.
    """
    byte_level = False
    for step in _flat(pre_tokenizer, "pretokenizers"):
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "Split" and isinstance(step.get("pattern"), dict):
            # keeping the matches (Removed, inverted) and isolating them differ only where nothing matches
            behaviour = (step.get("behavior"), bool(step.get("invert")))
            expression = step["pattern"].get("Regex")
            if behaviour in (("Isolated", False), ("Removed", True)) and isinstance(expression, str):
                yield expression
                continue
        elif kind == "Digits":
            yield r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
            continue
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            byte_level = True
            if step.get("use_regex", True):
                yield from PRETOKENIZERS["gpt-2"]
            continue
        raise UnsupportedError(
            path,
            "a pre-tokenizer that GGUF cannot express",
            found=repr(step)[:400],
            expected="Split, Digits, ByteLevel",
        )
    if not byte_level:
        raise UnsupportedError(
            path, "a BPE tokenizer that is not byte-level", expected="a ByteLevel pre-tokenizer"
        )


def _looks_special(text: str) -> bool:
    """Texts that published models add as ordinary tokens though they are control tokens."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _special_tokens(checkpoint: Checkpoint, file: _TokenizerFile, notes: list[str]) -> Metadata:
    """Ids from tokenizer_config.json's texts, else from config.json; `add_*` flags from the post-processor, else from
    tokenizer_config.json."""
    config = checkpoint.json("tokenizer_config.json") if checkpoint.has("tokenizer_config.json") else {}
    texts = {kind: _content(config.get(f"{kind}_token")) for kind in SPECIAL_KINDS}
    cls = _content(config.get("cls_token"))
    texts["bos"] = texts["bos"] or cls
    texts["eos"] = texts["eos"] or texts["sep"]
    kinds = list(SPECIAL_KINDS)
    added: dict[str, bool] = {}
    processor = file.json.get("post_processor")
    for step in _flat(processor, "processors"):
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "ByteLevel":
            added.setdefault("bos", False)
            added.setdefault("eos", False)
        elif kind == "TemplateProcessing":
            first, last = _template_ends(step.get("single"))
            if first is not None:
                texts["bos"] = texts["bos"] or first
                added["bos"] = first in (texts["bos"], cls)
                if not added["bos"]:
                    notes.append(f"tokenizer.json puts {first!r} before every text; GGUF cannot say so")
            if last is not None:
                if last != texts["eos"]:
                    # the model's end of text differs from its end of turn
                    kinds.append("eot")
                    texts["eot"], texts["eos"] = texts["eos"], last
                added["eos"] = True
    ids: dict[str, Any] = {}
    for kind in kinds:
        if isinstance(flag := config.get(f"add_{kind}_token"), bool):
            added.setdefault(kind, flag)
        if (text := texts.get(kind)) is not None and (id_ := file.id_of(text)) is not None:
            ids[kind] = id_
    for kind in kinds:
        ids.setdefault(kind, checkpoint.config.get(f"{kind}_token_id"))
    metadata: Metadata = {
        f"tokenizer.ggml.{_GGUF_KIND.get(kind, kind)}_token_id": Value.u32(id_)
        for kind, id_ in ids.items()
        if type(id_) is int and id_ >= 0
    }
    metadata.update({f"tokenizer.ggml.add_{kind}_token": Value.boolean(flag) for kind, flag in added.items()})
    return metadata


def _content(entry: Any) -> str | None:
    """A token's text in tokenizer_config.json: a string, or an AddedToken's `content`."""
    text = entry.get("content") if isinstance(entry, Mapping) else entry
    return text if isinstance(text, str) and text else None


def _template_ends(single: Any) -> tuple[str | None, str | None]:
    """The special tokens that a TemplateProcessing puts before and behind one text."""
    if not isinstance(single, list) or len(single) < 2:
        return None, None

    def token(piece: Any) -> str | None:
        inner = piece.get("SpecialToken") if isinstance(piece, dict) else None
        return inner.get("id") if isinstance(inner, dict) and isinstance(inner.get("id"), str) else None

    return token(single[0]), token(single[-1])


def _chat_templates(checkpoint: Checkpoint, notes: list[str]) -> Metadata:
    """`tokenizer.chat_template`, and `.chat_template.<name>` for others; from tokenizer_config.json or *.jinja."""
    config = checkpoint.json("tokenizer_config.json") if checkpoint.has("tokenizer_config.json") else {}
    template: Any = config.get("chat_template")
    if template is None and checkpoint.has("chat_template.jinja"):
        template = _read(checkpoint.path / "chat_template.jinja")
        others = sorted((checkpoint.path / "additional_chat_templates").glob("*.jinja"))
        if others:
            named = [{"name": path.stem, "template": _read(path)} for path in others]
            template = [{"name": "default", "template": template}, *named]
    elif template is None and checkpoint.has("chat_template.json"):
        template = checkpoint.json("chat_template.json").get("chat_template")
    if template is None:
        return {}
    if isinstance(template, str):
        return {"tokenizer.chat_template": Value.string(template)}
    if not isinstance(template, list):
        notes.append("tokenizer_config.json: chat_template is neither a text nor a list; left out")
        return {}
    return _named_templates(template)


def _named_templates(templates: Sequence[Any]) -> Metadata:
    named: dict[str, str] = {}
    for entry in templates:
        if (
            isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("template"), str)
        ):
            named["".join(c if c.isalnum() or c == "_" else "_" for c in entry["name"])] = entry["template"]
    metadata: Metadata = {}
    default = named.pop("default", None)
    if named:
        metadata.update(
            {f"tokenizer.chat_template.{name}": Value.string(text) for name, text in named.items()}
        )
        metadata["tokenizer.chat_templates"] = Value.strings(list(named))
    if default is not None:
        metadata["tokenizer.chat_template"] = Value.string(default)
    return metadata


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise CheckpointError(path, f"cannot be read: {problem}") from None
