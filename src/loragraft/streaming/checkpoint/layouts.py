"""The layouts of NVFP4 checkpoints: which tensors a quantized matrix becomes, and how the files describe it.

Sources: NVIDIA Model-Optimizer (modelopt/torch/export) and vllm-project/compressed-tensors (compressors/nvfp4,
quantization/quant_scheme.py); MXFP4 as in `huggingface.mxfp4_weights`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np

from loragraft.arrays import Bytes
from loragraft.formats.safetensors import SafetensorsSpec
from loragraft.formats.source import TensorSource
from loragraft.formats.views import Computed, in_memory, values_of
from loragraft.huggingface.mxfp4_weights import unpack_mxfp4
from loragraft.quants import native
from loragraft.quants.nvfp4 import unpack_modelopt
from loragraft.quants.types import F32
from loragraft.streaming.checkpoint.contents import MXFP4, Contents
from loragraft.streaming.checkpoint.matrix import GROUP, Matrix
from loragraft.streaming.steps import Step
from loragraft.streaming.writing import Pieces


@dataclass(frozen=True)
class Task:
    """Tensors of the checkpoint that one step makes: the one of its name, or those that `pieces` says."""

    specs: tuple[SafetensorsSpec, ...]
    step: Step
    pieces: Pieces | None = None

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs)


class Layout(ABC):
    """The tensors of a checkpoint; what is common to both formats."""

    keeps_f16: ClassVar[bool] = True
    """Whether an F16 model's embeddings stay F16; else everything in floating point becomes BF16."""
    mxfp4: ClassVar[bool] = False
    """Whether it has stacks of experts in MXFP4, and all else in floating point."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.tasks: list[Task] = []
        for name, vector in contents.vectors.items():
            self._add_vector(name, vector)
        for name, matrix in contents.floats.items():
            spec = SafetensorsSpec(name, contents.dtype.name, matrix.float_shape)
            self.tasks.append(Task((spec,), matrix.as_float(contents.dtype)))
        self.group_of: dict[str, Hashable] = {}
        """Of each step that quantizes: those with the same share a scale."""
        self.carried_over = 0
        """Matrices whose codes and scales stay as they are: of groups in which no other changes."""
        for group, matrices in contents.groups.items():
            carried = all(matrix.is_nvfp4 for matrix in matrices)
            self.carried_over += len(matrices) if carried else 0
            for matrix in matrices:
                self._add_linear(matrix, matrix.copied() if carried else matrix.quantized())
                self.group_of[matrix.name] = group

    @abstractmethod
    def _add_linear(self, matrix: Matrix, step: Step) -> None:
        """Add a quantized matrix, whose blocks `step` makes."""

    @abstractmethod
    def quantization_config(self) -> dict[str, Any]:
        """The `quantization_config` of config.json."""

    def extra_files(self) -> dict[str, Any]:
        """Further JSON files, by name."""
        return {}

    def _add_vector(self, name: str, vector: TensorSource) -> None:
        """In the checkpoint's dtype if that keeps every value, else as F32."""
        values, dtype = values_of(vector), self.contents.dtype
        rows = values.reshape(1, -1)
        exact = np.array_equal(native.dequantize(native.quantize(rows, dtype), dtype), rows)
        kind = dtype if exact else F32
        spec = SafetensorsSpec(name, kind.name, self.contents.shapes.get(name, values.shape))
        self.tasks.append(Task((spec,), Step(name, in_memory(vector.name, values), kind)))

    def _add_scalar(self, name: str, value: Callable[[], float], shape: tuple[int, ...]) -> None:
        """A number that is known when it is written: scales are measured before."""

        def compute(start: int, stop: int) -> Bytes:
            return np.array([[value()]], "<f4").view(np.uint8)[start:stop]

        self.tasks.append(
            Task((SafetensorsSpec(name, "F32", shape),), Step(name, Computed(name, (1,), F32, compute), F32))
        )

    def _add_codes(self, matrix: Matrix, step: Step, name: str) -> None:
        columns = matrix.source.columns

        def split(blocks: Bytes) -> tuple[Bytes, Bytes]:
            codes, scales = unpack_modelopt(blocks, matrix.name)
            return codes[:, : columns // 2], scales[
                :, : columns // GROUP
            ]  # without what fills up the last block

        specs = (
            SafetensorsSpec(f"{matrix.module}.{name}", "U8", matrix.shaped(columns // 2)),
            SafetensorsSpec(f"{matrix.module}.weight_scale", "F8_E4M3", matrix.shaped(columns // GROUP)),
        )
        pieces = Pieces(tuple(spec.name for spec in specs), (columns // 2, columns // GROUP), split)
        self.tasks.append(Task(specs, step, pieces))


def _scale(matrix: Matrix, step: Step) -> float:
    """What the codes that `step` makes are to be multiplied by."""
    return matrix.scale if step.scales is None else float(step.scales[0])


class ModelOpt(Layout):
    def _add_linear(self, matrix: Matrix, step: Step) -> None:
        self._add_codes(matrix, step, "weight")
        self._add_scalar(f"{matrix.module}.weight_scale_2", partial(_scale, matrix, step), ())
        known = matrix.input_scale
        if self.contents.algorithm == "NVFP4" and known is not None:
            self._add_scalar(f"{matrix.module}.input_scale", partial(float, known), ())

    def quantization_config(self) -> dict[str, Any]:
        arguments = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": GROUP}
        group: dict[str, Any] = {"weights": arguments, "targets": ["Linear"]}
        if self.contents.algorithm == "NVFP4":
            group = {"input_activations": arguments, **group}
        return {
            "config_groups": {"group_0": group},
            "ignore": self.contents.unquantized_modules(),
            "quant_algo": self.contents.algorithm,
            "producer": _producer(),
            "quant_method": "modelopt",
        }

    def extra_files(self) -> dict[str, Any]:
        quantization = {
            "quant_algo": self.contents.algorithm,
            "kv_cache_quant_algo": None,
            "group_size": GROUP,
            "exclude_modules": self.contents.unquantized_modules(),
        }
        return {"hf_quant_config.json": {"producer": _producer(), "quantization": quantization}}


class CompressedTensors(Layout):
    keeps_f16 = False  # the library unpacks to BF16, and cannot multiply that with F16

    def _add_linear(self, matrix: Matrix, step: Step) -> None:
        self._add_codes(matrix, step, "weight_packed")
        self._add_scalar(f"{matrix.module}.weight_global_scale", lambda: 1 / _scale(matrix, step), (1,))
        known = matrix.input_scale
        if self.contents.algorithm == "NVFP4" and known is not None:
            self._add_scalar(f"{matrix.module}.input_global_scale", partial(float, 1 / known), (1,))

    def quantization_config(self) -> dict[str, Any]:
        arguments = {
            "num_bits": 4,
            "type": "float",
            "symmetric": True,
            "group_size": GROUP,
            "strategy": "tensor_group",
            "scale_dtype": "torch.float8_e4m3fn",
        }
        activations = {**arguments, "dynamic": "local"} if self.contents.algorithm == "NVFP4" else None
        group = {
            "targets": ["Linear"],
            "weights": {**arguments, "dynamic": False},
            "input_activations": activations,
            "output_activations": None,
            "format": "nvfp4-pack-quantized",
        }
        return {
            "config_groups": {"group_0": group},
            "format": "nvfp4-pack-quantized",
            "global_compression_ratio": None,
            "ignore": self.contents.unquantized_modules(),
            "kv_cache_scheme": None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
        }


class Mxfp4(Layout):
    """gpt-oss' own: its experts in MXFP4 (`X_blocks`, `X_scales`), all else in BF16."""

    keeps_f16 = False
    mxfp4 = True

    def __init__(self, contents: Contents) -> None:
        super().__init__(contents)
        for name, stack in contents.packed.items():
            matrix = replace(stack, transposed=False)  # the codes are [out, in]
            carried = matrix.holds(MXFP4)
            self.carried_over += carried
            self._add_linear(matrix, matrix.copied() if carried else matrix.as_float(MXFP4))
            self.group_of[name] = name

    def _add_linear(self, matrix: Matrix, step: Step) -> None:
        groups, codes = matrix.source.columns // MXFP4.block, MXFP4.block // 2
        shape = matrix.shaped(groups)
        specs = (
            SafetensorsSpec(f"{matrix.name}_blocks", "U8", (*shape, codes)),
            SafetensorsSpec(f"{matrix.name}_scales", "U8", shape),
        )
        pieces = Pieces(tuple(spec.name for spec in specs), (groups * codes, groups), unpack_mxfp4)
        self.tasks.append(Task(specs, step, pieces))

    def quantization_config(self) -> dict[str, Any]:
        return {
            "quant_method": "mxfp4",
            "modules_to_not_convert": self.contents.unquantized_modules(),
        }


#: By the names that users give them.
LAYOUTS: dict[str, type[Layout]] = {
    "modelopt": ModelOpt,
    "compressed-tensors": CompressedTensors,
    "mxfp4": Mxfp4,
}


def _producer() -> dict[str, str]:
    return {"name": "loragraft", "version": version("loragraft")}
