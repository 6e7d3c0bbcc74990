"""Makes models/gemma3-tokenizer and golden/gemma3-convert.json: what llama.cpp's converter writes of a small Gemma 3.

Needs sentencepiece, torch, transformers and a checkout of llama.cpp:
    python make_gemma3.py path/to/llama.cpp path/to/text.txt
The weights are drawn by tests/gemma3_folder.py, the same for it and for us.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import transformers

GOLDEN = Path(__file__).parent
sys.path.insert(0, str(GOLDEN.parent.parent))
from gemma3_folder import CASES, TOKENIZER, write_folder  # noqa: E402

USERS = ["<mask>", "[multimodal]", *(f"<unused{i}>" for i in range(4)), "<start_of_turn>", "<end_of_turn>"]
USERS += ["\n", "\n\n", "▁▁", "▁▁▁", "<table>", "</table>"]
SPECIAL = {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<mask>"}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}"
)
FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def make_tokenizer(text: str, folder: Path) -> None:
    """As Gemma's: SentencePiece's BPE with byte fallback, no space before a text, tokens of white space."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=640,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=USERS,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    size = pieces.vocab_size()
    added = {pieces.piece_to_id(text): text for text in ["<pad>", "<eos>", "<bos>", "<unk>", *USERS]}
    added[size] = "<image_soft_token>"
    decoder = {
        str(id_): {"content": text, **FLAGS, "special": text in SPECIAL or id_ == size}
        for id_, text in sorted(added.items())
    }
    (folder / "added_tokens.json").write_text(json.dumps({"<image_soft_token>": size}))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        **{f"{kind}_token": f"<{kind}>" for kind in ("bos", "eos", "pad", "unk")},
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "GemmaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False))
    with tempfile.TemporaryDirectory() as made:
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(made)
        content = json.loads((Path(made) / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")))


def plain(field: Any) -> Any:
    """A metadata value: numbers and texts themselves, long arrays by their digest."""
    value = field.contents()
    if isinstance(value, list) and len(value) > 16:
        return [len(value), hashlib.sha256(json.dumps(value).encode()).hexdigest()]
    return value


def converted(llama_cpp: Path, case: str, outtype: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "tiny-gemma-3", Path(scratch) / "out.gguf"
        write_folder(folder, case)
        script = [sys.executable, str(llama_cpp / "convert_hf_to_gguf.py"), str(folder)]
        subprocess.run([*script, "--outfile", str(out), "--outtype", outtype], check=True)
        sys.path.insert(0, str(llama_cpp / "gguf-py"))
        from gguf import GGUFReader

        reader = GGUFReader(out)
        metadata = {
            name: plain(field) for name, field in reader.fields.items() if not name.startswith("GGUF.")
        }
        tensors = {
            tensor.name: {
                "type": tensor.tensor_type.name,
                "shape": [int(length) for length in tensor.shape],
                "sha256": hashlib.sha256(np.ascontiguousarray(tensor.data).tobytes()).hexdigest(),
            }
            for tensor in reader.tensors
        }
    return {"metadata": metadata, "tensors": tensors}


def main() -> None:
    llama_cpp, text = Path(sys.argv[1]), Path(sys.argv[2])
    TOKENIZER.mkdir(exist_ok=True)
    make_tokenizer(text.read_text()[:150_000].replace("\0", "\n"), TOKENIZER)
    found = {case: converted(llama_cpp, case, outtype) for case, outtype in CASES.items()}
    (GOLDEN / "gemma3-convert.json").write_text(json.dumps(found, indent=0, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
