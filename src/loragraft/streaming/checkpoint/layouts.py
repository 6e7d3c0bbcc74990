"""The layouts of NVFP4 checkpoints: which tensors a quantized matrix becomes, and how the files describe it.

Sources: NVIDIA Model-Optimizer (modelopt/torch/export) and vllm-project/compressed-tensors (compressors/nvfp4,
quantization/quant_scheme.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np

from loragraft.errors import naming
from loragraft.formats.safetensors import SafetensorsSpec
from loragraft.formats.source import Bytes
from loragraft.formats.views import float_rows
from loragraft.quants import reference
from loragraft.quants.types import BY_NAME
from loragraft.streaming.checkpoint.contents import Contents
from loragraft.streaming.checkpoint.matrix import GROUP, Matrix, check_finite, dequantize_rows


@dataclass(frozen=True)
class Task:
    """Tensors of the file that are computed together: `compute(start, stop)` gives the bytes of these rows of each."""

    specs: tuple[SafetensorsSpec, ...]
    rows: int
    chunks: Sequence[tuple[int, int]]
    compute: Callable[[int, int], tuple[Bytes, ...]]

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs)


class Layout(ABC):
    """The tensors of a checkpoint; what is common to both formats."""

    keeps_f16: ClassVar[bool] = True
    """Whether an F16 model's embeddings stay F16; else everything in floating point becomes BF16."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.tasks: list[Task] = []
        for name, vector in contents.vectors.items():
            values = dequantize_rows(vector.rows(0, vector.n_rows), vector.type)
            check_finite(vector.name, values)
            self._add_vector(name, values.reshape(vector.shape))
        for name, matrix in contents.floats.items():
            spec = SafetensorsSpec(name, contents.dtype, matrix.shape)
            self.tasks.append(
                Task((spec,), matrix.shape[0], matrix.chunks(), partial(self._float_rows, matrix))
            )
        for matrix, scale in contents.linears.values():
            self._add_linear(matrix, scale)

    @abstractmethod
    def _add_linear(self, matrix: Matrix, scale: float | None) -> None:
        """Add a quantized matrix: carried over if `scale` is None, else quantized under it."""

    @abstractmethod
    def quantization_config(self) -> dict[str, Any]:
        """The `quantization_config` of config.json."""

    def extra_files(self) -> dict[str, Any]:
        """Further JSON files, by name."""
        return {}

    def _float_rows(self, matrix: Matrix, start: int, stop: int) -> tuple[Bytes, ...]:
        with naming(self.contents.model.path):
            return (_encode(matrix.floats(start, stop), self.contents.dtype),)

    def _code_rows(self, matrix: Matrix, scale: float | None, start: int, stop: int) -> tuple[Bytes, ...]:
        with naming(self.contents.model.path):
            return matrix.codes(start, stop, scale)

    def _add_vector(self, name: str, values: np.ndarray) -> None:
        """In the checkpoint's dtype if that keeps every value, else as F32."""
        data = _encode(values.reshape(1, -1), self.contents.dtype)
        exact = np.array_equal(float_rows(data, BY_NAME[self.contents.dtype]).reshape(-1), values.reshape(-1))
        dtype = self.contents.dtype if exact else "F32"
        self._add_small(name, dtype, values.shape, _encode(values.reshape(1, -1), dtype))

    def _add_scalar(self, name: str, value: float, shape: tuple[int, ...]) -> None:
        self._add_small(name, "F32", shape, np.array([value], "<f4").view(np.uint8))

    def _add_small(self, name: str, dtype: str, shape: tuple[int, ...], data: Bytes) -> None:
        self.tasks.append(
            Task((SafetensorsSpec(name, dtype, shape),), 1, [(0, 1)], lambda start, stop: (data,))
        )

    def _add_codes(self, matrix: Matrix, scale: float | None, name: str) -> None:
        rows, columns = matrix.shape
        specs = (
            SafetensorsSpec(f"{matrix.module}.{name}", "U8", (rows, columns // 2)),
            SafetensorsSpec(f"{matrix.module}.weight_scale", "F8_E4M3", (rows, columns // GROUP)),
        )
        self.tasks.append(Task(specs, rows, matrix.chunks(), partial(self._code_rows, matrix, scale)))


class ModelOpt(Layout):
    def _add_linear(self, matrix: Matrix, scale: float | None) -> None:
        self._add_codes(matrix, scale, "weight")
        self._add_scalar(f"{matrix.module}.weight_scale_2", matrix.scale if scale is None else scale, ())
        if self.contents.algorithm == "NVFP4" and matrix.input_scale is not None:
            self._add_scalar(f"{matrix.module}.input_scale", matrix.input_scale, ())

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

    def _add_linear(self, matrix: Matrix, scale: float | None) -> None:
        self._add_codes(matrix, scale, "weight_packed")
        self._add_scalar(
            f"{matrix.module}.weight_global_scale", 1 / (matrix.scale if scale is None else scale), (1,)
        )
        if self.contents.algorithm == "NVFP4" and matrix.input_scale is not None:
            self._add_scalar(f"{matrix.module}.input_global_scale", 1 / matrix.input_scale, (1,))

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


#: By the names that users give them.
LAYOUTS: dict[str, type[Layout]] = {"modelopt": ModelOpt, "compressed-tensors": CompressedTensors}


def _producer() -> dict[str, str]:
    return {"name": "loragraft", "version": version("loragraft")}


def _encode(values: np.ndarray, dtype: str) -> Bytes:
    return np.ascontiguousarray(reference.quantize(np.asarray(values, np.float32), BY_NAME[dtype]))
