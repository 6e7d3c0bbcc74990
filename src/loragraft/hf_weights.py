"""The weights of a Hugging Face folder, each with its quantization understood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loragraft.errors import UnsupportedError
from loragraft.formats.checkpoint import Checkpoint, CheckpointTensor
from loragraft.formats.source import Bytes, TensorSource
from loragraft.formats.views import Stored, widened
from loragraft.quants.types import BY_NAME

#: safetensors dtypes that are tensor types of GGUF too.
_FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor as the model uses it: `source` with Hugging Face's name and row order. What is stored must be
    multiplied by `scale`; `input_scale` is the checkpoint's scale of the activations, None where there is none."""

    name: str
    source: TensorSource
    scale: float | None = None
    input_scale: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape


def read_weights(checkpoint: Checkpoint, notes: list[str], *, dequantize: bool = False) -> list[Weight]:
    """Every tensor of the folder, in the order in which llama.cpp's converter writes them: quantized weights first,
    then file by file, by name."""
    tensors = {
        name: tensor
        for file in sorted(checkpoint.files, key=lambda file: file.path.name)
        for name, tensor in sorted(file.tensors.items())
    }
    return [plain(checkpoint, tensor) for tensor in tensors.values()]


def plain(checkpoint: Checkpoint, tensor: CheckpointTensor) -> Weight:
    """A tensor of floating-point numbers, as it is stored; F64 becomes F32."""
    if tensor.dtype not in _FLOATS:
        raise UnsupportedError(
            checkpoint.path,
            f"tensor {tensor.name!r} has a dtype that is no weight's",
            found=tensor.dtype,
            expected=" or ".join(_FLOATS),
        )
    data: Callable[[], Bytes] = tensor.data
    source: TensorSource = Stored(tensor.name, tensor.shape or (1,), BY_NAME[tensor.dtype], data)
    return Weight(tensor.name, widened(source) if tensor.dtype == "F64" else source)
