"""What a path holds, for every layout that trainers, the hub and people make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import loragraft as lg
from intake_table import shows
from loragraft.errors import AdapterError, CheckpointError, FormatError, LoragraftError
from loragraft.formats.peft import PeftFolder
from loragraft.huggingface.contents import Kind, Role, recognise, repository_name
from paths import data

MODEL, ADAPTER = data("llama-kjv"), data("llama-kjv.shakespeare")


def adapter(folder: Path) -> Path:
    """An adapter's folder, its files links."""
    folder.mkdir(parents=True)
    for file in ADAPTER.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in MODEL.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def refused(path: Path, role: Role) -> str:
    with pytest.raises(LoragraftError) as error:
        recognise(path, role)
    return str(error.value)


def test_a_file_stands_for_its_folder_in_its_role() -> None:
    assert recognise(data("gguf/llama-kjv.shakespeare-lora.gguf")).kind is Kind.GGUF_ADAPTER
    assert recognise(data("gguf/llama-kjv.merged.imatrix.gguf")).kind is Kind.GGUF_IMATRIX
    assert recognise(data("gguf/llama-kjv.merged.imatrix.dat")).kind is Kind.LEGACY_IMATRIX
    assert recognise(MODEL / "model.safetensors").kind is Kind.SAFETENSORS
    for name in ("model.safetensors", "config.json"):
        found = recognise(MODEL / name, Role.MODEL)
        assert (found.kind, found.path) == (Kind.CHECKPOINT, MODEL)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        found = recognise(ADAPTER / name, Role.ADAPTER)
        assert (found.kind, found.path) == (Kind.PEFT_ADAPTER, ADAPTER)


def test_the_wrong_role_names_the_right_command() -> None:
    message = refused(ADAPTER, Role.MODEL)
    assert "holds an adapter, not a model (PEFT adapter)" in message
    assert f"pass it with --lora: loragraft merge BASE --lora {ADAPTER}" in message
    message = refused(MODEL, Role.ADAPTER)
    assert "holds a model, not an adapter (Hugging Face checkpoint)" in message
    assert f"loragraft merge {MODEL} --lora ADAPTER" in message
    assert "is a GGUF importance matrix" in refused(data("gguf/llama-kjv.merged.imatrix.gguf"), Role.MODEL)


@shows("08", "an adapter and a whole model", "the role decides")
def test_a_model_and_an_adapter_in_one_folder(tmp_path: Path) -> None:
    """As torchtune's epochs and some merges leave them."""
    folder = model(adapter(tmp_path / "epoch_0"))
    assert recognise(folder, Role.ADAPTER).kind is Kind.PEFT_ADAPTER
    for role in (Role.MODEL, Role.ANY):
        found = recognise(folder, role)
        assert found.kind is Kind.CHECKPOINT
        assert "holds an adapter too, which is not merged" in found.notes[0]


@pytest.mark.parametrize("names", [("checkpoint-9", "checkpoint-100"), ("epoch_0", "epoch_1")])
@shows("06", "`epoch_N`", "the command that takes the last")
def test_several_are_listed_in_their_order(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        adapter(tmp_path / "run" / name)
    (tmp_path / "run" / "logs").mkdir()
    message = refused(tmp_path / "run", Role.ADAPTER)
    assert f"holds several adapters: found {names[0]}, {names[1]}, expected one" in message
    assert message.endswith(f"name it: {tmp_path / 'run' / names[1]}")
    assert recognise(tmp_path / "run" / names[0], Role.ADAPTER).path == tmp_path / "run" / names[0]


@shows("06", "the best by trainer_state.json", "named")
def test_the_best_checkpoint_is_named(tmp_path: Path) -> None:
    for number in (10, 20, 30):
        folder = adapter(tmp_path / "run" / f"checkpoint-{number}")
        state = {"best_model_checkpoint": "/somewhere/else/run/checkpoint-20"}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    message = refused(tmp_path / "run", Role.ADAPTER)
    assert "checkpoint-20 was the best" in message
    assert message.endswith(f"name it: {tmp_path / 'run' / 'checkpoint-20'}")


def test_an_adapter_at_the_top_goes_before_checkpoints(tmp_path: Path) -> None:
    """LLaMA-Factory's and transformers' output: the last state at the top, and checkpoints below."""
    folder = adapter(tmp_path / "saves")
    adapter(folder / "checkpoint-10")
    found = recognise(folder, Role.ADAPTER)
    assert (found.path, found.notes) == (folder, ())


@shows("06", "one or two levels down", "taken, with a note")
def test_one_a_level_or_two_down(tmp_path: Path) -> None:
    adapter(tmp_path / "run" / "checkpoint-10" / "default")
    found = recognise(tmp_path / "run", Role.ADAPTER)
    assert found.path == tmp_path / "run" / "checkpoint-10" / "default"
    assert found.notes == (f"{tmp_path / 'run'}: checkpoint-10/default/ in it holds the adapter: taken",)
    model(tmp_path / "base" / "hf")
    assert recognise(tmp_path / "base", Role.MODEL).path == tmp_path / "base" / "hf"


@shows("06", "revisions of the cache", "the one that `main` is; else listed")
def test_revisions_of_the_hubs_cache(tmp_path: Path) -> None:
    root = tmp_path / "models--acme--my--lora"
    for revision in ("aaa", "bbb"):
        adapter(root / "snapshots" / revision)
    message = refused(root, Role.ADAPTER)
    assert "is the hub's cache of acme/my--lora" in message
    assert "found snapshots aaa, bbb" in message
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("bbb\n")
    found = recognise(root, Role.ADAPTER)
    assert found.path == root / "snapshots" / "bbb"
    assert repository_name(found.path) == "my--lora"
    assert repository_name(tmp_path / "plain") == "plain"


@pytest.mark.parametrize(
    ("leftover", "says"),
    [
        ("global_step10/", "DeepSpeed's shards, not gathered: found global_step10"),
        ("mp_rank_00_model_states.pt", "python {path}/zero_to_fp32.py {path} {path}-gathered"),
        ("pytorch_model_fsdp_0/", "accelerate merge-weights {path} {path}-gathered"),
        ("adapters.npz", "mx.save_safetensors('{path}/adapters.safetensors'"),
        ("adapter_0.pt", "safe_serialization: True"),
        ("lit_model.pth.lora", "litgpt convert_from_litgpt"),
    ],
)
@shows(
    "shards",
    "DeepSpeed's, FSDP's, torchtune's and LitGPT's own formats",
    "named, with the command that gathers them",
)
def test_what_training_leaves(tmp_path: Path, leftover: str, says: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    if leftover.endswith("/"):
        (folder / leftover).mkdir()
    else:
        (folder / leftover).write_bytes(b"x")
    for role in Role:
        assert says.format(path=folder) in refused(folder, role)


def test_halves_of_an_adapter(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "adapter_config.json").unlink()
    assert "an adapter's weights without adapter_config.json" in refused(folder, Role.ADAPTER)
    folder = adapter(tmp_path / "b")
    (folder / "adapter_model.safetensors").unlink()
    assert "an adapter's configuration without its weights" in refused(folder, Role.ADAPTER)
    assert "save_pretrained" in refused(folder, Role.ANY)


def test_nothing_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    assert "found an empty folder" in refused(tmp_path / "empty", Role.ADAPTER)
    (tmp_path / "empty" / "notes.txt").write_text("x")
    assert "found notes.txt" in refused(tmp_path / "empty", Role.MODEL)
    assert "is not a kind of file that loragraft knows" in refused(tmp_path / "empty" / "notes.txt", Role.ANY)
    assert "no such file or folder" in refused(tmp_path / "nowhere", Role.MODEL)
    assert "found empty in" in refused(tmp_path / "nowhere", Role.MODEL)
    monkeypatch.chdir(tmp_path)
    assert "hf download org/name --local-dir name" in refused(Path("org/name"), Role.MODEL)
    for role, kind in ((Role.ANY, FormatError), (Role.MODEL, CheckpointError), (Role.ADAPTER, AdapterError)):
        with pytest.raises(kind):
            recognise(tmp_path / "empty", role)


@shows("shards", "with an index, without, one missing", "joined; refused")
def test_shards_of_an_adapter(tmp_path: Path) -> None:
    """With an index and without."""
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    folder = adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    names = sorted(tensors)
    parts = {
        "adapter_model-00001-of-00002.safetensors": names[:20],
        "adapter_model-00002-of-00002.safetensors": names[20:],
    }
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    assert PeftFolder.open(folder).tensors.keys() == tensors.keys()
    where = {name: file for file, own in parts.items() for name in own}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert PeftFolder.open(folder).tensors.keys() == tensors.keys()
    assert recognise(folder, Role.ADAPTER).kind is Kind.PEFT_ADAPTER
    lg.merge(MODEL, folder, tmp_path / "sharded.gguf")
    lg.merge(MODEL, ADAPTER, tmp_path / "whole.gguf")
    found, expected = (lg.load(tmp_path / f"{name}.gguf").logits([3, 4, 5]) for name in ("sharded", "whole"))
    np.testing.assert_array_equal(found, expected)
    (folder / "adapter_model.safetensors.index.json").unlink()
    (folder / "adapter_model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"found 1 of 2, expected also number 1"):
        PeftFolder.open(folder)


@shows("shards", "a whole file beside an index", "the whole file, as in transformers, with a note")
def test_two_sets_of_weights(tmp_path: Path) -> None:
    """transformers takes model.safetensors before an index."""
    folder = tmp_path / "m"
    shutil.copytree(MODEL, folder)
    tensors = load_file(folder / "model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    save_file({name: np.zeros_like(array) for name, array in tensors.items()}, folder / shard)
    where = dict.fromkeys(tensors, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    report = lg.convert(folder, tmp_path / "o.gguf")
    note = f"{folder}: holds two sets of weights, model.safetensors and model.safetensors.index.json: the first is read"
    assert any(each.startswith(note) for each in report.notes)
    lg.convert(MODEL, tmp_path / "e.gguf")
    found, expected = (lg.load(tmp_path / f"{name}.gguf").logits([3, 4, 5]) for name in "oe")
    np.testing.assert_array_equal(found, expected)
