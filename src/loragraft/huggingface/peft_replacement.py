"""What a PEFT adapter replaces of its base as a whole: saved modules, biases, resized embeddings, rows of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from loragraft.adapters.lora import EMBEDDING, OUTPUT, TokenRows
from loragraft.adapters.peft import PeftTensors
from loragraft.adapters.peft_config import LoraSettings
from loragraft.arrays import Floats
from loragraft.errors import AdapterError
from loragraft.formats.peft import CONFIG
from loragraft.formats.safetensors import CheckpointTensor
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.formats.views import Stored, float_rows
from loragraft.huggingface.placement import place_weights
from loragraft.huggingface.tensor_names import Place
from loragraft.huggingface.weights import Weight
from loragraft.huggingface.wrappers import TextNames
from loragraft.quants.types import BY_NAME

_FLOATS = ("F32", "F16", "BF16")
#: How many rows of a frozen copy are compared with the base.
_COMPARED_ROWS = 256
_CHUNK_WEIGHTS = 1 << 20


class Replacements:
    """Places what `tensors` hold beside pairs on `base`. Raises AdapterError for what does not fit it."""

    def __init__(
        self, path: Path, base: ModelSource, names: TextNames, settings: LoraSettings, notes: list[str]
    ) -> None:
        self._path, self._base, self._names, self._settings, self._notes = path, base, names, settings, notes

    def tensors(self, found: PeftTensors) -> dict[str, TensorSource]:
        """Whole tensors, by GGUF name: those that were trained, and those of the base that are not the base's here."""
        for module in self._settings.saved:
            if any(name.rpartition(".")[0].endswith(module) for name in found.trained):
                continue
            if self._names.has_module(module):
                raise AdapterError(
                    self._path,
                    f"holds no tensor of {module}",
                    expected=f"it, as modules_to_save of {CONFIG} names it",
                    hint=f"save it again with peft; if it was not trained, take it out of modules_to_save in {CONFIG}",
                )
            self._notes.append(
                f"{self._path}: modules_to_save of {CONFIG} names {module}, which {self._base.arch} does not have: "
                "passed over, as in peft"
            )
        changed = dict(found.trained)
        changed.update(
            {name: copy for name, copy in found.frozen.items() if not self._is_the_bases(name, copy)}
        )
        for name, tensor in changed.items():
            if not self._names.places(name):
                raise AdapterError(
                    self._path,
                    f"holds {name}, but the base model has no such tensor",
                    found=f"{self._base.path.name}: {self._base.arch}, {self._names.layers} layers",
                    expected="the model that it was trained on",
                )
            if tensor.dtype not in _FLOATS or 0 in tensor.shape:
                raise AdapterError(
                    self._path,
                    f"its copy of {name} is not a floating-point tensor",
                    found=f"{tensor.dtype} {tensor.shape}",
                    hint="was it saved from a quantized model? Merge it there, with peft's merge_and_unload",
                )
        weights = [
            Weight(name, Stored(name, tensor.shape or (1,), BY_NAME[tensor.dtype], tensor))
            for name, tensor in changed.items()
        ]
        placed = place_weights(self._path, self._names, weights)
        for name, source in placed.items():
            self._check_shape(name, source.shape)
            self._check_finite(name, source)
        return placed

    def rows(self, found: Mapping[str, Floats], vocabulary: int) -> dict[str, TokenRows]:
        """Rows trained alone, by GGUF name; `vocabulary` is how many rows the embedding has with this adapter."""
        placed = {}
        for module, values in found.items():
            places = self._names.places(f"{module}.weight")
            name = places[0].name if places else None
            ids = self._settings.token_ids_of(module)
            if ids is None and self._is_tied_head(module):
                ids = next(iter(self._settings.token_ids.values()), None)
            if name not in (EMBEDDING, OUTPUT) or ids is None:
                raise AdapterError(
                    self._path,
                    f"holds rows of {module}, and it is unclear which rows of the base they replace",
                    expected=f"an embedding that trainable_token_indices of {CONFIG} names",
                )
            width = self._base.tensors[EMBEDDING].columns
            if values.shape != (len(ids), width) or max(ids, default=0) >= vocabulary:
                raise AdapterError(
                    self._path,
                    f"its rows of {module} do not fit the base",
                    found=f"{values.shape} for tokens up to {max(ids, default=0)}",
                    expected=f"{(len(ids), width)} for tokens below {vocabulary}",
                )
            factor = self._factor(places[0], module)
            placed[name] = TokenRows(np.asarray(ids, np.intp), values if factor is None else values * factor)
        for module in self._settings.token_ids:
            if not any(name.endswith(module) for name in found) and not self._is_tied_head(module):
                raise AdapterError(
                    self._path,
                    f"holds no rows of {module or 'the embedding'}",
                    expected=f"those that trainable_token_indices of {CONFIG} names",
                )
        return placed

    def bias(self, module: str, values: Floats, scale: float) -> tuple[str, Floats]:
        """What `module`'s pair adds to its bias, and the bias' GGUF name."""
        places = self._names.places(f"{module}.bias")
        if len(places) != 1 or places[0].expert is not None:
            raise AdapterError(
                self._path, f"holds a bias for {module}, which can have none", found=values.shape
            )
        if places[0].tensor.fused is not None:
            raise AdapterError(
                self._path,
                f"holds a bias for {module}, which is a part of {places[0].name}",
                found=values.shape,
            )
        order, factor = places[0].order(len(values)), self._factor(places[0], module)
        values = values if factor is None else values * factor
        return places[0].name, np.float32(scale) * (values if order is None else values[order])

    def _factor(self, place: Place, module: str) -> Floats | None:
        try:
            return place.factor
        except ValueError as problem:
            raise AdapterError(
                self._path, f"its rows of {module} do not fit ({problem})", found=place.name
            ) from None

    def _is_tied_head(self, module: str) -> bool:
        """PEFT saves rows of a tied output with the embedding's alone."""
        return OUTPUT not in self._base.tensors and module.endswith("lm_head")

    def _is_the_bases(self, name: str, copy: CheckpointTensor) -> bool:
        places = self._names.places(name)
        base = self._base.tensors.get(places[0].name) if places else None
        if base is None and places and places[0].name == OUTPUT:
            base = self._base.tensors.get(EMBEDDING)
        if base is None or copy.shape != base.shape or len(base.shape) != 2:
            return False
        if copy.dtype not in _FLOATS:
            return False
        if not base.type.is_float:
            # It cannot be told. PEFT itself saves copies of embeddings only, which training leaves alone.
            return places[0].name in (EMBEDDING, OUTPUT)
        rows = min(_COMPARED_ROWS, base.n_rows)
        ours = float_rows(base.rows(0, rows), base.type)
        stored = Weight(name, Stored(name, copy.shape, BY_NAME[copy.dtype], copy))
        placed = place_weights(self._path, self._names, [stored])[places[0].name]
        if placed.shape != base.shape:
            return False
        theirs = float_rows(placed.rows(0, rows), placed.type)
        if np.allclose(ours, theirs, rtol=2**-7, atol=2**-7 * float(np.abs(ours).max())):
            return True
        self._notes.append(f"{self._path}: its own copy of {name} replaces the base's, which differs")
        return False

    def _check_finite(self, name: str, source: TensorSource) -> None:
        step = max(1, _CHUNK_WEIGHTS // source.columns)
        for start in range(0, source.n_rows, step):
            rows = float_rows(source.rows(start, min(start + step, source.n_rows)), source.type)
            if not np.isfinite(rows).all():
                raise AdapterError(
                    self._path, f"its {name} holds NaN or infinity", hint="its training diverged"
                )

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        base = self._base.tensors.get(name)
        if base is None and name == OUTPUT:
            base = self._base.tensors.get(EMBEDDING)
        if base is None:
            raise AdapterError(
                self._path, f"holds {name}, but the base model has no such tensor", found=self._base.path.name
            )
        resizable = name in (EMBEDDING, OUTPUT) and len(shape) == 2
        if shape[1 if resizable else 0 :] != base.shape[1 if resizable else 0 :]:
            raise AdapterError(
                self._path,
                f"its {name} does not fit the base",
                found=shape,
                expected=f"{base.shape} as in {self._base.path.name}",
            )
