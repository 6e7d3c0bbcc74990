"""The weights of a Hugging Face folder, each with its quantization understood.

Read besides plain floats: ModelOpt (NVFP4, W4A16_NVFP4, NVFP4_AWQ, FP8 and mixtures), compressed-tensors
(nvfp4-pack-quantized, float-quantized FP8, both mixed), the FP8 of transformers (blocks, or a scale per row) and the
MXFP4 of gpt-oss. What a tensor is, its dtype and its companions say; `quantization_config` checks what they cannot
show. Formats: NVIDIA Model-Optimizer (torch/export), vllm-project/compressed-tensors, transformers
(integrations/finegrained_fp8.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loragraft.arrays import Bytes, Floats
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.checkpoint import Checkpoint, CheckpointTensor
from loragraft.formats.source import TensorSource
from loragraft.formats.views import Computed, Stored, float_rows, widened
from loragraft.huggingface import bitnet_weights as bitnet
from loragraft.huggingface.bitsandbytes_weights import COMPANIONS, eight_bit_weight, four_bit_weight
from loragraft.huggingface.hqq_weights import PARTS as HQQ_PARTS
from loragraft.huggingface.hqq_weights import hqq_weight
from loragraft.huggingface.integer_weights import AUTO_ROUND, PARTS, byte_weight, gptq_or_awq, packed_weight
from loragraft.huggingface.marlin_weights import marlin_weight
from loragraft.huggingface.mlx_weights import mlx_packing, mlx_weight
from loragraft.huggingface.mxfp4_weights import mxfp4_weight
from loragraft.huggingface.quantization_config import read_quantization_config
from loragraft.quants import e4m3
from loragraft.quants.nvfp4 import BLOCK, dequantize_nvfp4, pack_modelopt
from loragraft.quants.types import BY_NAME, F32

#: safetensors dtypes that are tensor types of GGUF too.
_FLOATS = ("F32", "F16", "BF16", "F64")
#: Ends of the names of an MXFP4 weight's tensors.
_MXFP4 = ("_blocks", "_scales")
_GROUP = 16
"""Weights per NVFP4 block scale."""

#: Companions of a weight `X.weight`: X plus these. Each must belong to a weight that is read with it.
_COMPANIONS = (
    "weight_scale",
    "weight_scale_2",
    "weight_scale_inv",
    "weight_global_scale",
    "weight_zero_point",
    "weight_g_idx",
    "weight_shape",
    "input_scale",
    "input_global_scale",
    "input_zero_point",
    "input_scale_ub",
    "activation_scale",
    "pre_quant_scale",
    "svdquant_lora_a",
    "svdquant_lora_b",
)
#: Those that say something of a weight's input only: harmless where the weight is not quantized.
_OF_INPUTS = ("input_scale", "input_global_scale", "input_scale_ub", "activation_scale")
#: Scales of keys, values and queries: ModelOpt's, compressed-tensors', and vLLM's older names.
_CACHE_SCALES = (
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".kv_scale",
    ".k_proj.output_scale",
    ".v_proj.output_scale",
)


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor as the model uses it: `source` with Hugging Face's name and row order. What is stored must be
    multiplied by `scale`; `input_scale` is the checkpoint's scale of the activations. None: there is none."""

    name: str
    source: TensorSource
    scale: float | None = None
    input_scale: float | None = None
    wide_activations: bool = False
    """Quantized for products with activations of 8 or 16 bits (W4A8_NVFP4_FP8, W4A16_NVFP4)."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape


def read_weights(
    checkpoint: Checkpoint, notes: list[str], *, dequantize: bool = False, reasons: list[str] | None = None
) -> list[Weight]:
    """Every weight of the folder, in the order in which llama.cpp's converter writes them: NVFP4 weights first, packed
    whole numbers last, each file by file and by name.

    `dequantize`: quantized weights that GGUF cannot carry become floats, and `reasons` says why. Raises CheckpointError
    for companions that do not fit, UnsupportedError for a quantization that is not understood, or that GGUF cannot
    carry.
    """
    reader = _Reader(checkpoint, notes, dequantize)
    weights = reader.read()
    if reasons is not None:
        computed = reader.dequantized | reader.floats
        reasons += [f"{reason} ({len(names)} weights)" for reason, names in computed.items()]
    return weights


class _Reader:
    def __init__(self, checkpoint: Checkpoint, notes: list[str], dequantize: bool) -> None:
        self._path, self._notes, self._dequantize = checkpoint.path, notes, dequantize
        self._mlx = checkpoint.config.get("quantization")
        self._config = read_quantization_config(checkpoint, notes)
        self._tensors = {
            name: tensor
            for file in sorted(checkpoint.files, key=lambda file: file.path.name)
            for name, tensor in sorted(file.tensors.items())
        }
        self._used: set[str] = set()
        self.dequantized: dict[str, list[str]] = {}
        """Weights that become floats, by the reason."""
        self.floats: dict[str, list[str]] = {}
        """Those that always do, by what they are."""

    def read(self) -> list[Weight]:
        if "NVFP4_AWQ" in self._config.algorithms.values():
            self._notes.append(
                f"{self._path.name} is NVFP4_AWQ: factors of the activations are folded into its norms, so adapters "
                "must have been trained on it, not on the model it was quantized from"
            )
        if self._config.settings.get("quant_method") == "awq":
            self._notes.append(
                f"{self._path.name} is AWQ: factors of the activations are folded into its norms, so adapters must "
                "have been trained on it, not on the model it was quantized from"
            )
        four_bit, others, packed = [], [], []
        for name, tensor in self._tensors.items():
            stem, _, part = name.rpartition(".")
            if self._is_mxfp4(name):
                if name.endswith(_MXFP4[0]):
                    scales = self._tensors.get(name.removesuffix(_MXFP4[0]) + _MXFP4[1])
                    four_bit.append(Weight(name, mxfp4_weight(self._path, tensor, scales)))
            elif f"{name}.absmax" in self._tensors or (
                tensor.dtype == "I8" and f"{stem}.SCB" in self._tensors
            ):
                others.append(self._bitsandbytes(stem, tensor))
            elif self._is_bitsandbytes(name):
                continue
            elif part in PARTS and f"{stem}.qweight" in self._tensors:
                if part == "qweight":
                    packed.append(self._integers(stem, tensor))
            elif part == "weight_packed" and tensor.dtype == "I32":
                packed.append(self._integers(stem, tensor))
            elif part == "weight" and tensor.dtype == "I8" and f"{stem}.weight_scale" in self._tensors:
                others.append(self._integers(stem, tensor))
            elif part == "weight" and tensor.dtype == "U8" and self._is_bitnet:
                others.append(self._bitnet(stem, tensor))
            elif part == "weight_packed" or (part == "weight" and tensor.dtype == "U8"):
                four_bit.append(self._nvfp4(stem, tensor))
            elif part == "weight" and tensor.dtype == "F8_E4M3":
                others.append(self._fp8(stem, tensor))
            elif part == "weight" and tensor.dtype == "U32" and f"{stem}.scales" in self._tensors:
                others.append(self._mlx_weight(stem, tensor))
            elif part in ("scales", "biases") and self._is_mlx(stem):
                continue
            elif part in ("B", "s") and f"{stem}.B" in self._tensors:
                if part == "B":
                    others.append(self._integers(stem, tensor))
            elif part in HQQ_PARTS and f"{stem}.W_q" in self._tensors:
                if part == "W_q":
                    others.append(self._integers(stem, tensor))
            elif part not in _COMPANIONS and not name.endswith(_CACHE_SCALES):
                others.append(self._plain(tensor))
        for obstacle, names in self.dequantized.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self._notes.append(f"{names[0]}{more}: dequantized, as {obstacle}")
        if bitnets := self.floats.get("BitNet"):
            self._notes.append(
                f"{self._path.name}: {len(bitnets)} weights have three levels (BitNet); what enters these linears is "
                "not rounded to 8 bits, as it is in training and in transformers"
            )
        self._report_cache_scales()
        for name in self._tensors:
            if name.rpartition(".")[2] in _COMPANIONS and name not in self._used:
                self._check_harmless(name)
        return four_bit + others + packed

    def _plain(self, tensor: CheckpointTensor) -> Weight:
        stem, _, part = tensor.name.rpartition(".")
        if tensor.dtype not in _FLOATS and part in PARTS:
            raise CheckpointError(
                self._path,
                f"{tensor.name} belongs to a quantized weight that is not there",
                found=tensor.dtype,
                expected=f"{stem}.qweight",
                hint="was the folder copied whole? Download it again",
            )
        if tensor.dtype not in _FLOATS:
            raise UnsupportedError(
                self._path,
                f"tensor {tensor.name!r} has a dtype that weights do not use",
                found=tensor.dtype,
                expected=" or ".join(_FLOATS),
            )
        stored = Stored(tensor.name, tensor.shape or (1,), BY_NAME[tensor.dtype], tensor)
        source = widened(stored) if tensor.dtype == "F64" else stored
        if bitnet.is_online(self._config.settings) and bitnet.is_linear(tensor.name, tensor.shape):
            self.floats.setdefault("BitNet", []).append(tensor.name)
            source = bitnet.rounded_weight(source)
        return Weight(tensor.name, source)

    @property
    def _is_bitnet(self) -> bool:
        return self._config.settings.get("quant_method") == bitnet.METHOD

    def _bitnet(self, stem: str, codes: CheckpointTensor) -> Weight:
        self.floats.setdefault("BitNet", []).append(codes.name)
        scale = self._scalar(stem, "weight_scale")
        return Weight(codes.name, bitnet.packed_weight(self._path, codes, scale, self._config.settings))

    def _is_mxfp4(self, name: str) -> bool:
        """Whether it is one of the two tensors of such a weight."""
        end = next((end for end in _MXFP4 if name.endswith(end)), None)
        blocks = None if end is None else self._tensors.get(name.removesuffix(end) + _MXFP4[0])
        return blocks is not None and blocks.dtype == "U8"

    def _is_bitsandbytes(self, name: str) -> bool:
        """Whether it is a companion of such a weight."""
        stem, _, part = name.rpartition(".")
        owner = next(
            (name.removesuffix(f".{end}") for end in COMPANIONS if name.endswith(f".weight.{end}")), None
        )
        if owner is not None:
            return owner in self._tensors
        return part in ("SCB", "weight_format") and f"{stem}.weight" in self._tensors

    def _as_floats(self) -> str:
        return (
            f"make a GGUF of it: loragraft convert {self._path} --dequantize -o model.gguf; to merge an adapter that "
            "was trained on it (QLoRA), add --base-as-trained to merge; or take the model that was quantized"
        )

    def _bitsandbytes(self, stem: str, codes: CheckpointTensor) -> Weight:
        bits = 4 if f"{codes.name}.absmax" in self._tensors else 8
        if not self._dequantize:
            raise UnsupportedError(
                self._path,
                f"quantized by bitsandbytes to {bits} bits, which GGUF has no type for",
                found=f"{codes.name} {codes.dtype} {codes.shape}",
                hint=self._as_floats(),
            )
        self.dequantized.setdefault(f"bitsandbytes quantized it to {bits} bits", []).append(codes.name)
        if bits == 8:
            scales = self._companion(stem, "SCB")
            return Weight(codes.name, eight_bit_weight(self._path, codes, scales))
        source = four_bit_weight(self._path, codes, lambda end: self._tensors.get(f"{codes.name}.{end}"))
        return Weight(codes.name, source)

    def _integers(self, stem: str, codes: CheckpointTensor) -> Weight:
        """Whole numbers with scales, of GPTQ, AWQ, HQQ or compressed-tensors."""
        settings, name = dict(self._config.settings), f"{stem}.weight"
        part = codes.name.rpartition(".")[2]

        def find(companion: str) -> CheckpointTensor | None:
            return self._companion(stem, companion)

        if part == "B":
            who, found = "GPTQ", marlin_weight(self._path, name, find)
        elif part == "W_q":
            who, found = "HQQ", hqq_weight(self._path, name, find)
        elif part == "qweight":
            found = gptq_or_awq(self._path, settings, name, find)
            method = settings.get("quant_method")
            who = "AWQ" if method == "awq" else "AutoRound" if method in AUTO_ROUND else "GPTQ"
        else:
            who = "compressed-tensors"
            read = byte_weight(self._path, name, codes, find) if part == "weight" else None
            found = read or packed_weight(self._path, name, codes, find, self._config.bits)
            for companion in _OF_INPUTS:
                find(companion)
        if not self._dequantize:
            raise UnsupportedError(
                self._path,
                f"quantized by {who} to {found.bits} bits, which GGUF has no type for",
                found=f"{codes.name} {codes.dtype} {codes.shape}",
                hint=self._as_floats(),
            )
        if found.note and found.note not in self._notes:
            self._notes.append(found.note)
        self.dequantized.setdefault(f"{who} quantized it to {found.bits} bits", []).append(name)
        return Weight(name, found.source)

    def _is_mlx(self, stem: str) -> bool:
        weight = self._tensors.get(f"{stem}.weight")
        return weight is not None and weight.dtype == "U32"

    def _mlx_weight(self, stem: str, codes: CheckpointTensor) -> Weight:
        packing = mlx_packing(self._path, self._mlx, stem)
        if not self._dequantize:
            raise UnsupportedError(
                self._path,
                f"quantized by MLX (config.json: quantization, {packing.bits} bits), which GGUF has no type for",
                found=f"{codes.name} {codes.dtype} {codes.shape}",
                hint=self._as_floats(),
            )
        scales, biases = self._companion(stem, "scales"), self._companion(stem, "biases")
        self.dequantized.setdefault(f"MLX quantized it to {packing.bits} bits", []).append(codes.name)
        return Weight(codes.name, mlx_weight(self._path, codes, scales, biases, packing))

    def _nvfp4(self, stem: str, codes: CheckpointTensor) -> Weight:
        """E2M1 codes two to a byte, E4M3 scales per 16 columns, and one float32 scale (its reciprocal in
        compressed-tensors). A matrix, or a stack of experts under that scale."""
        name = f"{stem}.weight"
        if len(codes.shape) not in (2, 3) or codes.dtype != "U8":
            raise CheckpointError(
                self._path, f"{codes.name} is not a matrix of codes", found=f"{codes.dtype} {codes.shape}"
            )
        columns = 2 * codes.shape[-1]
        shape = (*codes.shape[:-1], columns)
        scales = self._block_scales(stem, codes)
        scale = self._scale(stem, "weight_scale_2", "weight_global_scale")
        if scale is None:
            raise CheckpointError(
                self._path,
                f"{codes.name} lacks its scale",
                expected=f"{stem}.weight_scale_2 or .weight_global_scale",
            )
        input_scale = self._scale(stem, "input_scale", "input_global_scale")
        wide = self._config.has_wide_activations(stem)
        if wide:
            input_scale = None  # of FP8, if any
        elif codes.name.endswith(
            "_packed"
        ):  # compressed-tensors gives 4-bit activations a scale, others none
            wide = input_scale is None
        smoothing = self._companion(stem, "pre_quant_scale")

        halves = [_bytes(codes), scales]

        def packed(start: int, stop: int) -> Bytes:
            return pack_modelopt(halves[0].rows(start, stop), halves[1].rows(start, stop), name)

        obstacle = None
        if smoothing is not None:
            obstacle = "its input is scaled by pre_quant_scale (AWQ)"
        elif columns % BLOCK:
            obstacle = f"its {columns} columns are not a multiple of {BLOCK}"
        if obstacle is None:
            source = Computed(name, shape, BY_NAME["NVFP4"], packed, halves)
            return Weight(name, source, scale, input_scale, wide)
        if not self._dequantize:
            raise UnsupportedError(
                self._path,
                f"{name} cannot be carried over in NVFP4: {obstacle}",
                hint="`convert` or `merge` with --dequantize makes it a float weight",
            )
        self.dequantized.setdefault(obstacle, []).append(name)
        factors = None if smoothing is None else self._vector(smoothing, columns)

        def values(start: int, stop: int) -> Bytes:
            taken = [half.rows(start, stop) for half in halves]
            weights = _dequantized(*taken, scale=scale)
            return (weights if factors is None else weights * factors).view(np.uint8)

        return Weight(name, Computed(name, shape, F32, values, halves))

    def _block_scales(self, stem: str, codes: CheckpointTensor) -> TensorSource:
        """E4M3 scales uint8 [..., rows, columns/16]. ModelOpt also makes larger blocks; GGUF does not."""
        scales = self._companion(stem, "weight_scale")
        *rows, half = codes.shape
        columns = 2 * half
        shape = () if scales is None else scales.shape
        repeats = columns // (_GROUP * shape[-1]) if len(shape) == len(codes.shape) and shape[-1] else 0
        fits = repeats > 0 and (*shape[:-1], shape[-1] * repeats * _GROUP) == (*rows, columns)
        if scales is None or scales.dtype != "F8_E4M3" or not fits:
            raise UnsupportedError(
                self._path,
                f"{codes.name} is not an NVFP4 weight",
                found="no weight_scale" if scales is None else f"weight_scale {scales.dtype} {shape}",
                expected=f"F8_E4M3 {(*rows, columns // _GROUP)}",
            )
        stored = _bytes(scales)
        if repeats == 1:
            return stored

        def repeated(start: int, stop: int) -> Bytes:
            return np.repeat(stored.rows(start, stop), repeats, axis=1)

        return Computed(scales.name, (*rows, columns // _GROUP), stored.type, repeated, [stored])

    def _fp8(self, stem: str, codes: CheckpointTensor) -> Weight:
        """E4M3 weights with one scale, one per row, or one per block of rows and columns; as float32."""
        scales = self._companion(stem, "weight_scale") or self._companion(stem, "weight_scale_inv")
        for part in _OF_INPUTS:
            self._companion(stem, part)
        if len(codes.shape) != 2:
            raise CheckpointError(self._path, f"{codes.name} is not a matrix", found=codes.shape)
        if scales is None:
            raise CheckpointError(
                self._path,
                f"{codes.name} lacks its scale",
                expected=f"{stem}.weight_scale or .weight_scale_inv",
            )
        rows, columns = codes.shape
        self.floats.setdefault("FP8", []).append(codes.name)
        factors = self._values(scales)
        if factors.ndim == 4 and factors.shape[1::2] == (1, 1):  # ModelOpt's blocks: [out/128, 1, in/128, 1]
            factors = factors.reshape(factors.shape[::2])
        elif factors.ndim < 2:
            factors = factors.reshape(-1, 1)
        tall, wide = self._block(codes, factors)
        stored = _bytes(codes)

        def values(start: int, stop: int) -> Bytes:
            weights = e4m3.decode(stored.rows(start, stop))
            scales = factors[np.arange(start, stop) // tall]
            return (weights * np.repeat(scales, wide, axis=1)[:, :columns]).view(np.uint8)

        return Weight(codes.name, Computed(codes.name, (rows, columns), F32, values, [stored]))

    def _block(self, codes: CheckpointTensor, factors: Floats) -> tuple[int, int]:
        """How many rows and columns of `codes` share a scale, if `factors` are their scales."""
        rows, columns = codes.shape
        if factors.shape in ((1, 1), (rows, 1)):
            return rows // factors.shape[0], columns
        for tall, wide in self._config.blocks:
            if factors.shape == (-(-rows // tall), -(-columns // wide)):
                return tall, wide
        raise CheckpointError(
            self._path,
            f"the scales of {codes.name} do not fit its shape {codes.shape}",
            found=factors.shape,
            expected="one, one per row, or one per block of "
            + " or ".join(f"{tall} x {wide}" for tall, wide in self._config.blocks),
        )

    def _companion(self, stem: str, part: str) -> CheckpointTensor | None:
        tensor = self._tensors.get(f"{stem}.{part}")
        if tensor is not None:
            self._used.add(tensor.name)
        return tensor

    def _scale(self, stem: str, direct: str, inverse: str) -> float | None:
        """What values are multiplied by: ModelOpt stores it, compressed-tensors its reciprocal."""
        scale, reciprocal = self._scalar(stem, direct), self._scalar(stem, inverse)
        if scale is not None or reciprocal is None:
            return scale
        return float(np.float32(1) / np.float32(reciprocal))

    def _scalar(self, stem: str, part: str) -> float | None:
        tensor = self._companion(stem, part)
        if tensor is None:
            return None
        values = self._values(tensor)
        if values.size != 1 or not np.isfinite(values).all() or values.reshape(-1)[0] <= 0:
            raise CheckpointError(
                self._path,
                f"bad {tensor.name}",
                found=f"{tensor.shape} {values.reshape(-1)[:1]}",
                expected="one number > 0",
            )
        return float(values.reshape(-1)[0])

    def _vector(self, tensor: CheckpointTensor, length: int) -> Floats:
        values = self._values(tensor).reshape(-1)
        if len(values) != length or not np.isfinite(values).all():
            raise CheckpointError(self._path, f"bad {tensor.name}", found=tensor.shape, expected=(length,))
        return values

    def _values(self, tensor: CheckpointTensor) -> Floats:
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                self._path, f"{tensor.name} is not a scale", found=tensor.dtype, expected="F32"
            )
        return float_rows(tensor.data().reshape(1, -1), BY_NAME[tensor.dtype]).reshape(tensor.shape)

    def _report_cache_scales(self) -> None:
        names = [name for name in self._tensors if name.endswith(_CACHE_SCALES)]
        values = [value for name in names for value in self._values(self._tensors[name]).reshape(-1)]
        if values:
            self._notes.append(
                f"{self._path.name}: {len(names)} scales of a quantized key-value cache ({min(values):.3g} to "
                f"{max(values):.3g}) are left out: GGUF has no place for them, and the cache is kept in floating point"
            )

    def _check_harmless(self, name: str) -> None:
        """A companion that no weight was read with: harmless only if it says nothing about a weight."""
        if name.endswith("_zero_point") and not self._tensors[name].data().any():
            return  # symmetric, after all
        if name.rpartition(".")[2] not in _OF_INPUTS:
            raise CheckpointError(
                self._path,
                f"{name} does not belong to any quantized weight that loragraft can read",
                found=f"{self._tensors[name].dtype} {self._tensors[name].shape}",
            )
        self._notes.append(f"{name} is left out: its weight is not quantized")


def _bytes(tensor: CheckpointTensor) -> TensorSource:
    """The rows of a matrix of bytes."""
    return Stored(tensor.name, tensor.shape, BY_NAME["I8"], tensor)


def _dequantized(codes: Bytes, scales: Bytes, *, scale: float) -> Floats:
    """E2M1 codes uint8 [n, columns/2] and E4M3 scales uint8 [n, columns/16] -> float32 [n, columns]."""
    columns = 2 * codes.shape[1]
    padding = -columns % BLOCK
    if padding:
        codes = np.pad(codes, ((0, 0), (0, padding // 2)))
        scales = np.pad(scales, ((0, 0), (0, padding // _GROUP)))
    return np.ascontiguousarray(dequantize_nvfp4(pack_modelopt(codes, scales), scale)[:, :columns])
