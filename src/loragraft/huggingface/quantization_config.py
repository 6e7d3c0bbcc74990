"""What a folder's configuration says of its quantization, checked against what is understood.

`quantization_config` of config.json (`compression_config` in older files) and ModelOpt's hf_quant_config.json. Which
tensors are quantized is not taken from here: a tensor's dtype and companions say so, where the lists of modules
(`ignore`, `exclude_modules`, `targets`, with their globs and regular expressions) only repeat it. Sources: NVIDIA
Model-Optimizer (torch/export/convert_hf_config.py), vllm-project/compressed-tensors (quantization/quant_config.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.checkpoint import Checkpoint
from loragraft.huggingface.bitnet_weights import METHOD as BITNET
from loragraft.huggingface.bitnet_weights import check_bitnet, is_online

#: `quant_method`; the algorithms of ModelOpt (`quant_algo`) and the formats of compressed-tensors that are read.
_METHODS = (
    *("modelopt", "compressed-tensors", "fp8", "fbgemm_fp8", "mxfp4", "bitsandbytes", "gptq", "awq"),
    *("auto-round", "intel/auto-round", "hqq", "marlin", BITNET),
)
_ALGORITHMS = (
    "NVFP4",
    "W4A16_NVFP4",
    "NVFP4_AWQ",
    "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "FP8_PB_WO",
    "fp8_pb_wo",  # as ModelOpt 0.47 writes it
    "W4A8_NVFP4_FP8",
    "MIXED_PRECISION",
)
#: Those of NVFP4 weights that are not multiplied with 4-bit activations.
_WIDE = ("W4A16_NVFP4", "W4A8_NVFP4_FP8")
_FORMATS = (
    *("nvfp4-pack-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense"),
    *("pack-quantized", "int-quantized"),
)
_FLOATS = ("F64", "F32", "F16", "BF16")
#: How the names of what quantizers keep beside a weight end: ModelOpt's and compressed-tensors', bitsandbytes', GPTQ's
#: and AWQ's, HQQ's, MLX's.
_COMPANIONS = (
    *("weight_scale", "weight_scale_2", "weight_scale_inv", "weight_global_scale", "pre_quant_scale"),
    *(".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format"),
    *(".qweight", ".qzeros", ".scales", ".g_idx", ".biases", ".W_q", ".zero"),
)
_BLOCK = (128, 128)
"""Rows and columns of a block of FP8 weights, where the configuration is silent."""


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """A checkpoint's quantization, as far as its tensors do not show it."""

    algorithms: Mapping[str, str]
    """ModelOpt's algorithm by module; that of all others under ""."""
    blocks: tuple[tuple[int, int], ...]
    """How many (rows, columns) of an FP8 weight may share a scale."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The configuration's object."""
    bits: int | None = None
    """Of whole numbers, as compressed-tensors' only group of modules says."""

    def algorithm(self, module: str) -> str | None:
        """The algorithm of the module, or of the nearest module around it that has one of its own."""
        while module:
            if module in self.algorithms:
                return self.algorithms[module]
            module = module.rpartition(".")[0]
        return self.algorithms.get("")

    def has_wide_activations(self, module: str) -> bool:
        """Whether the module's NVFP4 weight was made for activations of 8 or 16 bits."""
        return self.algorithm(module) in _WIDE


def read_quantization_config(checkpoint: Checkpoint, notes: list[str]) -> QuantizationConfig:
    """The quantization of the model in `checkpoint`; of one that is not quantized nothing, whatever a configuration
    that merging left there says, with a note.

    Raises UnsupportedError for a method, an algorithm or a format that is not read, for sparse weights, and for
    transforms of the activations, which the weights alone do not undo.
    """
    path = checkpoint.path
    key = "quantization_config" if checkpoint.config.get("quantization_config") else "compression_config"
    config = checkpoint.config.get(key) or {}
    if not isinstance(config, Mapping):
        raise CheckpointError(path, f"{key} is not an object", found=repr(config)[:80])
    quantization: dict[str, Any] = dict(config)
    if checkpoint.has("hf_quant_config.json"):
        more = checkpoint.json("hf_quant_config.json").get("quantization")
        quantization.update(more if isinstance(more, Mapping) else {})
    transforms = quantization.get("transform_config")
    if isinstance(transforms, Mapping) and transforms.get("config_groups"):
        raise UnsupportedError(
            path,
            "its activations are transformed between layers (transform_config), which GGUF cannot express",
            found=", ".join(_objects(transforms["config_groups"]))[:80],
            hint="merge into the model before it was quantized",
        )
    if quantization.get("quant_method") == BITNET:
        check_bitnet(path, quantization)
    if quantization and is_floating(checkpoint) and not is_online(quantization):
        method = quantization.get("quant_method") or quantization.get("quant_algo") or "of no method"
        notes.append(
            f"{path / 'config.json'}: {key} ({str(method)[:40]}) is passed over: all weights are floating-point numbers"
        )
        return QuantizationConfig({}, (_BLOCK,))
    _check(path, "quant_method", [config.get("quant_method")], _METHODS)
    layers = _objects(quantization.get("quantized_layers"))
    groups = _objects(quantization.get("config_groups"))
    algorithms = {module: entry.get("quant_algo") for module, entry in layers.items()}
    algorithms[""] = quantization.get("quant_algo")
    _check(path, "quant_algo", algorithms.values(), _ALGORITHMS)
    formats = [quantization.get("format"), *(group.get("format") for group in groups.values())]
    _check(path, "format", formats, _FORMATS)
    sparsity = quantization.get("sparsity_config")
    if isinstance(sparsity, Mapping):
        _check(path, "sparsity_config format", [sparsity.get("format")], ("dense",))
    known = {str(module): algorithm for module, algorithm in algorithms.items() if algorithm}
    return QuantizationConfig(
        known, tuple(dict.fromkeys(_blocks(path, quantization, groups))), quantization, _bits(groups)
    )


def is_floating(checkpoint: Checkpoint) -> bool:
    """Whether all tensors are floating-point numbers, and none is the companion of a quantized weight."""
    return bool(checkpoint.tensors) and all(
        tensor.dtype in _FLOATS and not name.endswith(_COMPANIONS)
        for name, tensor in checkpoint.tensors.items()
    )


def _blocks(
    path: Path, quantization: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]
) -> Iterable[tuple[int, int]]:
    weights = [group["weights"] for group in groups.values() if isinstance(group.get("weights"), Mapping)]
    for key, block in [
        ("weight_block_size", quantization.get("weight_block_size")),
        *(("block_structure", arguments.get("block_structure")) for arguments in weights),
    ]:
        if block is None:
            continue
        if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
            raise CheckpointError(path, f"bad {key}", found=repr(block)[:80], expected="two numbers")
        yield block[0], block[1]
    for arguments in weights:
        size = arguments.get("group_size")
        if type(size) is int and size > 0:
            yield 1, size
    yield _BLOCK


def _bits(groups: Mapping[str, Mapping[str, Any]]) -> int | None:
    weights = [group["weights"] for group in groups.values() if isinstance(group.get("weights"), Mapping)]
    found = {bits for arguments in weights if type(bits := arguments.get("num_bits")) is int}
    return found.pop() if len(found) == 1 else None


def _objects(value: Any) -> dict[str, Mapping[str, Any]]:
    """The objects in an object; what else there is says nothing to us."""
    if not isinstance(value, Mapping):
        return {}
    return {str(key): entry for key, entry in value.items() if isinstance(entry, Mapping)}


def _check(path: Path, what: str, found: Iterable[Any], known: tuple[str, ...]) -> None:
    for value in found:
        if value is not None and value not in known:
            raise UnsupportedError(
                path,
                f"an unsupported quantization: {what}",
                found=repr(value)[:80],
                expected=" or ".join(known),
                hint="merge into the model before it was quantized",
            )
