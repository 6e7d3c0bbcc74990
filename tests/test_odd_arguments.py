"""Values that mean nothing, given to the library: one tree of exceptions, and never a wrong answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hostile_models as hostile
import loragraft as lg


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> lg.Model:
    return lg.load(hostile.gguf(tmp_path_factory.mktemp("model") / "model.gguf", hostile.model()), threads=1)


TEXTS = {
    "half a pair": ("a\ud800", "text: holds half of a surrogate pair"),
    "bytes": (b"abc", "text: not a string: found bytes"),
    "nothing": (None, "text: not a string: found NoneType"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_what_is_no_text(model: lg.Model, case: str) -> None:
    text, says = TEXTS[case]
    for use in (model.tokenize, model.perplexity, lambda text: lg.imatrix(model.path, text)):
        with pytest.raises(lg.LoragraftError, match=says):
            use(text)  # type: ignore[arg-type]


NO_IDS = [
    *([[1], [1, 2]], [-(2**63)], [-(2**31) - 1], [2**31], [2**64], [2**70], [-1]),
    *(["a"], [1.5], [None], 5, None, [object()]),
]


@pytest.mark.parametrize("ids", NO_IDS)
def test_what_is_no_list_of_tokens(model: lg.Model, ids: Any) -> None:
    for use in (model.logits, model.detokenize, lambda ids: list(model.generate(ids, max_tokens=1))):
        with pytest.raises(lg.LoragraftError):
            use(ids)


PATHS = {
    "nul": ("a\0b", "a.x00b: is not a file name"),
    "half a pair": ("a\ud800b", "is not a file name"),
    "long": ("x" * 300, "File name too long"),
    "longer": ("x/" * 3000, "File name too long"),
    "empty": ("", "path: is empty"),
    "number": (5, "path: is not a file name: found 5"),
    "nothing": (None, "path: is not a file name"),
    "bytes": (b"model.gguf", "path: is not a file name"),
}


@pytest.mark.parametrize("case", PATHS)
def test_what_is_no_path(model: lg.Model, case: str) -> None:
    path, says = PATHS[case]
    uses: list[Callable[[Any], object]] = [
        *(lg.load, lg.inspect, lambda path: lg.load(model.path, [path]), lambda path: lg.join(path, "out")),
        *(lambda path: lg.quantize(path, "out", "Q8_0"), lambda path: lg.export(model.path, path)),
    ]
    for use in uses:
        with pytest.raises(lg.LoragraftError, match=says):
            use(path)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "x" * 300])
def test_what_no_file_can_be_called(model: lg.Model, tmp_path: Path, name: str) -> None:
    matrix = lg.QuantizeOptions(imatrix=name)
    for use in (
        lambda: lg.quantize(model.path, tmp_path / name, "Q8_0"),
        lambda: lg.split(model.path, tmp_path / name),
        lambda: lg.quantize(model.path, tmp_path / "out", "Q8_0", options=matrix),
    ):
        with pytest.raises(lg.LoragraftError):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("threads", "4"),
            ("threads", 1.5),
            ("threads", True),
            ("context", -1),
            ("context", 0),
            ("context", "x"),
        ),
        *(("adapters", None), ("adapters", 5), ("adapters", [5]), ("backend", "x"), ("activations", None)),
    ],
)
def test_what_does_not_load(model: lg.Model, name: str, value: Any) -> None:
    with pytest.raises(lg.LoragraftError):
        lg.load(model.path, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_tokens", -1), ("max_tokens", "x"), ("temperature", "x"), ("temperature", float("nan"))),
        *(("top_k", 1.5), ("top_k", -1), ("top_p", None), ("min_p", "0"), ("seed", "x"), ("seed", -1)),
    ],
)
def test_what_does_not_sample(model: lg.Model, name: str, value: Any) -> None:
    with pytest.raises(lg.LoragraftError, match=name):
        model.generate("the", **{name: value})


@pytest.mark.parametrize(
    "options",
    [
        *({"override_kv": {"a": "\ud800"}}, {"override_kv": {5: "x"}}, {"override_kv": {"a": [1]}}),
        *({"tensor_types": [5]}, {"tensor_types": [("\ud800.", "q8_0")]}, {"prune_layers": ["x"]}),
        *({"max_memory": -5}, {"max_memory": "x"}),
    ],
)
def test_what_is_no_option(model: lg.Model, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(lg.LoragraftError):
        lg.quantize(model.path, tmp_path / "out", "Q8_0", options=lg.QuantizeOptions(**options))
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers(model: lg.Model) -> None:
    ids = np.array([1, 2], np.uint64)
    wanted = model.logits([1, 2], first=np.int64(1))  # type: ignore[arg-type]
    assert (model.logits(ids)[1] == wanted).all()
    assert list(model.generate(ids, max_tokens=np.int32(1), temperature=np.float32(0)))  # type: ignore[arg-type]


def test_a_shard_of_a_name_that_is_too_long(tmp_path: Path) -> None:
    base, _ = hostile.checkpoint(tmp_path, hostile.checkpoint_jsons())
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "' + "x" * 300 + '"}}')
    (base / "other.safetensors").touch()
    with pytest.raises(lg.LoragraftError, match="File name too long"):
        lg.convert(base, tmp_path / "out.gguf")


@pytest.mark.parametrize("pair", [("a", 1, 2), ("a",), ()])
def test_adapters_in_tuples_of_another_length(model: lg.Model, pair: Any) -> None:
    with pytest.raises(lg.AdapterError, match="hold a tuple of another length"):
        lg.load(model.path, [pair])
