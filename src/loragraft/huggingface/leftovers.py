"""What training and converting leave that is not a model or an adapter yet, and what to do with it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from loragraft.system.remote.paths import RemotePath

_MAX_FOLDERS = 100


@dataclass(frozen=True, slots=True)
class Leftover:
    """`found` in the folder `path` (itself, or one in it): `what` it is, and the next command."""

    path: Path
    found: str
    what: str
    advice: str


_SAFETENSORS = "take the repository's safetensors: hf download REPOSITORY --include '*.safetensors' '*.json'"
#: Patterns of files and folders, what wrote them, and what to do.
_LEFTOVERS = (
    (
        ("*.crdownload", "*.part", "*.aria2", "*.incomplete"),
        "a download that did not finish",
        "take it again: hf download REPOSITORY --local-dir {path}",
    ),
    (
        (".cache/huggingface/download/*.incomplete", ".cache/huggingface/download/*/*.incomplete"),
        "a download that did not finish",
        "go on with it: hf download REPOSITORY --local-dir {path}",
    ),
    (
        ("global_step*", "zero_to_fp32.py", "*_model_states.pt"),
        "DeepSpeed's shards, not gathered",
        "gather them: python {path}/zero_to_fp32.py {path} {path}-gathered --safe_serialization",
    ),
    (
        ("pytorch_model_fsdp_*", "*.distcp", "__*_*.distcp"),
        "FSDP's shards, not gathered",
        "gather them: accelerate merge-weights {path} {path}-gathered",
    ),
    (
        ("adapters.npz",),
        "an mlx-lm adapter in NumPy's format",
        "save it as safetensors: python -c \"import mlx.core as mx; mx.save_safetensors('{path}/adapters.safetensors', "
        "dict(mx.load('{path}/adapters.npz')))\"",
    ),
    (
        ("adapter_[0-9]*.pt", "hf_model_*.pt"),
        "a torchtune checkpoint of torch's own format",
        "save it again with safe_serialization: True of torchtune's checkpointer",
    ),
    (
        ("lit_model.pth*",),
        "a LitGPT checkpoint",
        "convert it: litgpt convert_from_litgpt {path} {path}-hf",
    ),
    (
        ("consolidated*.pth", "consolidated*.safetensors"),
        "a checkpoint in its maker's own layout",
        "take the repository's version for transformers, with config.json",
    ),
    (
        ("[0-9]*_adapters.safetensors",),
        "checkpoints of mlx-lm without the last one",
        "take one of them: cp {path}/{found} {path}/adapters.safetensors",
    ),
    (
        ("pytorch_lora_weights.*", "learned_embeds.*"),
        "an adapter of diffusers, which is for images",
        "loragraft is for language models: use it with diffusers",
    ),
    (
        ("*.ckpt", "*.nemo"),
        "a checkpoint of Lightning or NeMo",
        "save the model inside it for transformers: model.save_pretrained, or NeMo's convert_nemo_to_hf script",
    ),
    (("*.msgpack",), "a model of Flax", _SAFETENSORS),
    (("*.h5",), "a model of TensorFlow", _SAFETENSORS),
    (
        ("*.onnx", "onnx/*.onnx", "openvino_model.*", "rust_model.ot"),
        "a model for another runtime",
        _SAFETENSORS,
    ),
    (("mmproj*.gguf",), "a projector of images without its language model", "name the language model's GGUF"),
)


def leftover_in(path: Path, deep: bool) -> Leftover | None:
    """The first that lies in the folder, or if `deep` in a folder in it."""
    children: list[Path] = []
    if deep and not isinstance(path, RemotePath):  # where every folder is a request
        children = [child for child in islice(sorted(path.iterdir()), _MAX_FOLDERS) if child.is_dir()]
    for folder in (path, *children):
        for patterns, what, advice in _LEFTOVERS:
            for pattern in patterns:
                for file in folder.glob(pattern):
                    found = str(file.relative_to(folder))
                    return Leftover(folder, found, what, advice.format(path=folder, found=found))
    return None
