"""Records hf-convert.json: what llama.cpp's converter makes of the models of hf-configs.json, and the like.

    PYTHONPATH=llama.cpp/gguf-py:llama.cpp:tests python make_hf_convert.py [CASE ...]

It needs torch, and llama.cpp at 0c1e57098. With names of cases, or how they begin, these are made anew, and what there
is of the others stays.

By case: `keys`, the architecture's own, in order; `tensors`, in order: name, shape (NumPy's order), the first 16 digits
of its bytes' sha256; of decays the values themselves, as torch's exponential is not the same everywhere. Vocabularies
are left out: these have letters for tokens.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import conversion.base
import gguf
from safetensors.numpy import save_file

from hf_configs import CONVERTED, as_published, kind, weights, write_tokenizer

#: Cases of the families whose files are recorded elsewhere, or that the converter refuses.
SKIPPED = (
    *("llama", "mistral", "mixtral", "qwen2-", "qwen2moe", "qwen3-", "qwen3moe", "starcoder"),
    *(
        "glm-wide",
        "lfm2-bias",
        "lfm2_moe-plain",
        "nemotron-llama3",
        "qwen3_next-dense",
        "granitehybrid-rope",
        "falcon_h1-bias",
        "falcon_h1-tied",
        "granite4-no-rope",
        "nemotron_h_moe-dense",
        "gemma3n-three",
    ),
)
#: Whose published config.json has keys that the converter reads and that this transformers drops on the way to it.
AS_PUBLISHED = ("gpt_neox", "falcon", "minimax_m2")


#: Multimodal models whose language model the converter writes as we do. Mistral 3's it calls mistral3.
ALSO = ("qwen3_vl_moe", "qwen2moe", "qwen2moe-no-bias", "qwen3", "qwen3-bias")
GEMMA3N = ("gemma3n", "gemma3n-plain", "gemma3n-published")
TOWERS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3_vl", "llava")


def skipped(case: str) -> bool:
    if case in (*TOWERS, *ALSO) or case.startswith("llama4"):
        return False
    if case.startswith("bitnet"):  # weights are rounded whatever config.json says
        return case != "bitnet-online"
    if case.startswith("bamba"):  # rows of q and k stand as if whole heads turned
        return case != "bamba-whole"
    if case in ("ministral", "internvl", "idefics3", "qwen2", "qwen3", "phimoe", "phimoe-plain"):
        return True
    return case.startswith((*SKIPPED, "gemma3", "mistral")) and case not in GEMMA3N


def without_vocabulary() -> None:
    find = conversion.get_model_class

    def found(name: str, mmproj: bool = False) -> Any:
        model = find(name, mmproj)
        model.set_vocab = lambda self: None
        return model

    conversion.get_model_class = found
    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "default"


def with_published_keys() -> None:
    load = conversion.base.ModelBase.load_hparams

    def loaded(folder: Path, *args: Any, **options: Any) -> dict[str, Any]:
        own = json.loads((Path(folder) / "config.json").read_text())
        read: dict[str, Any] = load(folder, *args, **options)
        if own["model_type"] == "nemotron_h":  # transformers would say something of experts
            return own
        if own["model_type"] not in AS_PUBLISHED:
            return read
        return {**read, "num_kv_heads": None, **own}

    conversion.base.ModelBase.load_hparams = staticmethod(loaded)


def convert(record: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(
            as_published(weights(record["shapes"], kind(record["config"])), kind(record["config"])),
            folder / "model.safetensors",
            {"format": "pt"},
        )
        (folder / "config.json").write_text(json.dumps(record["config"]))
        write_tokenizer(folder)
        program = Path(conversion.__file__).parent.parent / "convert_hf_to_gguf.py"
        sys.argv = [str(program), str(folder), "--outfile", str(folder / "m.gguf"), "--outtype", "f32"]
        if kind(record["config"]).startswith(("qwen3_next", "qwen3_5")):
            sys.argv.append("--no-mtp")  # layers that predict further tokens, which these have not
        runpy.run_path(str(program), run_name="__main__")
        reader = gguf.GGUFReader(folder / "m.gguf")
        arch = reader.fields["general.architecture"].contents()
        return {
            "keys": {
                key.removeprefix(f"{arch}."): field.contents()
                for key, field in reader.fields.items()
                if key.startswith(f"{arch}.")
            },
            **(
                {
                    "global": {
                        key: field.contents()
                        for key, field in reader.fields.items()
                        if key.startswith("xielu.")
                    }
                }
                if arch == "apertus"
                else {}
            ),
            "tensors": [
                [
                    tensor.name,
                    [int(n) for n in reversed(tensor.shape)],
                    tensor.data.reshape(-1).tolist()
                    if tensor.name.endswith(".ssm_a")
                    else hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16],
                ]
                for tensor in reader.tensors
            ],
        }


def main() -> None:
    without_vocabulary()
    with_published_keys()
    chosen = tuple(sys.argv[1:])
    folder = Path(__file__).parent
    for name, file in CONVERTED.items():
        cases = json.loads((folder / f"{name}.json").read_text())
        golden = folder / f"{file}.json"
        made = json.loads(golden.read_text()) if chosen else {}
        for case, record in cases.items():
            if not skipped(case) and (not chosen or case.startswith(chosen)):
                made[case] = convert(record)
        made = {case: made[case] for case in cases if case in made}
        text = json.dumps(made, separators=(",", ":")).replace('},"', '},\n"')
        golden.write_text(text + "\n")


if __name__ == "__main__":
    main()
