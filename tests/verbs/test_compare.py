"""`compare` on the example: the figures of llama-perplexity, a verdict, and no file left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import loragraft as lg
from archs.test_hf_configs import write
from archs.test_hf_peft import write_adapter
from command_line import loragraft
from hf_configs import VOCABULARY
from loragraft.errors import LoragraftError
from loragraft.evaluate.deployment import Deployment
from loragraft.verbs.compare import Comparison, save_picture
from paths import data
from peft_golden import adapter_folder, base_folder

BASE, ADAPTER, TEXT = data("llama-kjv"), data("llama-kjv.shakespeare"), data("shakespeare-valid.txt")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    work = tmp_path_factory.mktemp("work")
    measured = lg.compare(BASE, [ADAPTER], lg.Measurement(TEXT.read_text(), context=256), work_dir=work)
    assert os.listdir(work) == []
    return measured


def rows(result: Comparison) -> dict[str, Deployment]:
    (only,) = result.types
    return {"merged": only.merged, "runtime": only.runtime, "full": result.full, "base": result.base}


def test_perplexities_are_those_of_llama_perplexity(result: Comparison) -> None:
    # llama-perplexity -c 256 of llama.cpp 0c1e57098 on these 60,000 characters
    measured = {name: row.perplexity for name, row in rows(result).items()}
    assert measured["merged"].value == pytest.approx(62.2, rel=0.01)
    assert measured["full"].value == pytest.approx(61.949, rel=1e-3)
    assert measured["full"].error == pytest.approx(1.39128, rel=1e-3)
    assert measured["runtime"].value == pytest.approx(62.2, rel=0.01)
    assert measured["base"].value > 300
    assert {(row.tokens, row.windows) for row in measured.values()} == {(11557, 91)}


def test_divergences_are_those_of_llama_perplexity(result: Comparison) -> None:
    # --kl-divergence says mean KLD 0.0093, same top p 91.6 % for merged Q4_K_M against merged F16; its activations have
    # 8 bits
    merged = rows(result)["merged"]
    assert merged.engine is not None
    assert merged.engine.mean == pytest.approx(0.0093, rel=0.05)
    assert merged.engine.same_top == pytest.approx(0.916, abs=0.006)
    assert merged.divergence is not None
    assert 0.8 * merged.engine.mean < merged.divergence.mean < merged.engine.mean
    assert result.base.divergence is not None
    assert result.base.divergence.mean > 1
    assert result.full.divergence is None
    assert merged.kept is not None
    assert merged.kept.value == 1 - merged.divergence.mean / result.base.divergence.mean
    assert (result.full.kept, result.base.kept) == (None, None)


def test_the_size_of_an_adapter_counts_at_run_time(result: Comparison) -> None:
    size = {name: row.size for name, row in rows(result).items()}
    assert size["full"] == size["base"]
    assert size["merged"] < 0.32 * size["full"]
    pairs = 28 * 8  # modules times rank
    assert size["runtime"] - size["merged"] >= 4 * pairs * 2 * 256 // 2


class Disk:
    """A progress that looks, whenever a piece of work starts, at what takes space in a folder: files, and files that
    are removed but still mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.most = 0
        self.readings: list[str] = []

    def start(self, label: str, total: int) -> None:
        files = {os.path.realpath(file) for file in self.folder.rglob("*.gguf*") if file.suffix != ".journal"}
        maps = Path("/proc/self/maps").read_text().splitlines()
        files |= {line.split(maxsplit=5)[5] for line in maps if str(self.folder) in line}
        self.most = max(self.most, len(files))
        if label.startswith("Comparing"):
            self.readings.append(f"{label} {total}")

    def advance(self, done: int) -> None: ...

    def note(self, message: str) -> None: ...


def test_several_types_one_at_a_time_on_disk(result: Comparison, tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    six = lg.Measurement(TEXT.read_text(), context=256, windows=6)
    several = lg.compare(
        BASE,
        [ADAPTER],
        six,
        types=["Q3_K_M", "q8_0", "Q4_K_M", "Q8_0"],
        keep=0.999,
        work_dir=tmp_path,
        progress=disk,
    )
    assert [one.type for one in several.types] == ["Q3_K_M", "Q8_0", "Q4_K_M"]
    assert disk.most == 3  # the F16 model, and two of the type that is being read
    assert disk.readings == [
        "Comparing the base 12",
        "Comparing Q3_K_M 30",
        "Comparing Q8_0 30",
        "Comparing Q4_K_M 30",
    ]
    assert several.smallest == "merged, Q8_0"
    assert several.verdict.startswith(
        "The smallest that keeps 99.9 % of the fine-tune: merged, Q8_0 (4.5 MB, 99.995"
    )
    kept = [one.merged.kept for one in several.types]
    assert kept[0].value < kept[2].value < 0.997 < 0.9995 < kept[1].value  # type: ignore[union-attr]
    alone = lg.compare(BASE, [ADAPTER], six, types=["Q4_K_M"])
    assert alone.types == several.types[2:]
    assert alone.base == several.base
    for name in ("kept.png", "kept.svg"):
        save_picture(several, tmp_path / name)
    drawn = (tmp_path / "kept.svg").read_text()
    assert "<svg" in drawn
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")


def command(*more: object) -> list[str]:
    args = ["compare", "--base", BASE, "--lora", ADAPTER, "--text", TEXT, "--context", "64", *more]
    return [sys.executable, "-m", "loragraft", *map(str, args)]


def test_command_line(tmp_path: Path) -> None:
    line = command("--windows", 3, "--work-dir", tmp_path)
    table = subprocess.run(line, capture_output=True, text=True, check=True)
    for part in ("merged, Q4_K_M", "Q4_K_M + adapter", "merged, F16", "base alone", "perplexity", "kept"):
        assert part in table.stdout
    measured = json.loads(loragraft(*line[3:], "--json").stdout)
    assert [one["type"] for one in measured["types"]] == ["Q4_K_M"]
    assert measured["verdict"] == table.stdout.rstrip().rpartition("\n")[2]
    assert measured["types"][0]["merged"]["perplexity"]["tokens"] == 3 * 31
    assert os.listdir(tmp_path) == []
    assert not any(line.endswith(" ") for line in table.stdout.split("\n"))


def test_several_types_on_the_command_line(tmp_path: Path) -> None:
    line = command(
        "--windows", 2, "--type", "Q2_K", "--type", "Q6_K", "--keep", "97%", "--plot", tmp_path / "kept.svg"
    )
    shown = loragraft(*line[3:])
    labels = [row.split("  ")[0].strip() for row in shown.stdout.splitlines()]
    first = labels.index("merged, Q2_K")
    assert labels[first : first + 6] == [
        "merged, Q2_K",
        "Q2_K + adapter",
        "merged, Q6_K",
        "Q6_K + adapter",
        "merged, F16",
        "base alone",
    ]
    assert labels[-1].startswith("The smallest that keeps 97 % of the fine-tune: merged, Q6_K")
    assert f"wrote {tmp_path / 'kept.svg'}" in shown.stderr
    assert "<!-- Q2_K -->" in (tmp_path / "kept.svg").read_text()


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--keep", "100%"), 2, "--keep"),
        (("--keep", "much"), 2, "--keep"),
        (("--type", "Q4_Z"), 2, "--type"),
        (("--plot", "kept.docx"), 1, "kept.docx: no such picture format"),
        (("--plot", "nowhere/kept.svg"), 1, "nowhere/kept.svg: its folder does not exist"),
    ],
)
def test_what_is_refused_before_anything_is_measured(options: tuple[str, str], code: int, says: str) -> None:
    refused = loragraft(*command(*options)[3:])
    assert refused.returncode == code
    assert says in refused.stderr


def test_nothing_to_keep_and_an_importance_matrix(tmp_path: Path) -> None:
    matrix = data("gguf/llama-kjv.merged.imatrix.gguf")
    line = command("--windows", 2, "--type", "IQ2_XXS", "--imatrix", matrix)[3:]
    line[line.index(str(ADAPTER))] += "=0"
    table = loragraft(*line).stdout
    assert "nan" not in table
    assert "The adapter changes nothing on this text" in table
    drawn = loragraft(*line, "--plot", tmp_path / "x.svg")
    assert (drawn.returncode, "nothing to draw" in drawn.stderr) == (1, True)
    refused = loragraft(*line[:-2])
    assert refused.returncode == 1
    assert "--imatrix" in refused.stderr


def test_bad_arguments() -> None:
    with pytest.raises(LoragraftError, match="at least one adapter"):
        lg.compare(BASE, [], "x")
    with pytest.raises(LoragraftError, match="at least one type"):
        lg.compare(BASE, [ADAPTER], "x", types=[])
    with pytest.raises(LoragraftError, match="keep: not a share"):
        lg.compare(BASE, [ADAPTER], "x", keep=99)


def test_files_go_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(LoragraftError, match="too short"):
        lg.compare(BASE, [ADAPTER], "short", work_dir=tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_base_that_cannot_read_the_new_tokens(tmp_path: Path) -> None:
    base, adapter = base_folder("llama", tmp_path / "base"), adapter_folder("llama+resized", tmp_path / "new")
    with pytest.raises(LoragraftError, match="found 43 tokens, expected the 40 of base"):
        lg.compare(base, [adapter], lg.Measurement("DOGHELPFACTLINE" * 30, context=64), types=["Q8_0"])


def test_what_activations_cost_is_told_apart() -> None:
    """At 8 bits a weight most of the loss is that of the activations, against which no type helps; where activations
    are asked for, there is one figure."""
    text = lg.Measurement(TEXT.read_text(), context=64, windows=4)
    both = lg.compare(BASE, [ADAPTER], text, types=["Q8_0"], keep=0.9)
    file, engine = both.types[0].merged.divergence, both.types[0].merged.engine
    assert file is not None
    assert engine is not None
    assert engine.mean > 1.5 * file.mean
    assert "is not in the file" in both.verdict
    assert "--activations f32" in both.verdict
    for how, expected in (
        (replace(text, activations="f32"), file),
        (replace(text, activations="q8"), engine),
    ):
        alone = lg.compare(BASE, [ADAPTER], how, types=["Q8_0"], keep=0.9)
        found = alone.types[0].merged
        assert found.divergence is not None
        # The model at full precision keeps its keys and values as halves where activations are rounded.
        assert found.divergence.mean == pytest.approx(expected.mean, rel=0.02)
        assert found.engine is None
        assert "is not in the file" not in alone.verdict
    small = lg.compare(BASE, [ADAPTER], text, types=["Q3_K_M"], keep=0.9)
    assert "is not in the file" not in small.verdict


@pytest.mark.parametrize("case", ["gemma3n", "gemma4-experts", "phimoe"])
def test_models_with_more_than_attention_and_one_network(tmp_path: Path, case: str) -> None:
    """Small random ones with an adapter on every linear: a folder, both deployments in Q8_0."""
    text = "".join(map(chr, np.random.default_rng(0).integers(0x21, 0x21 + VOCABULARY, 80)))
    base, adapter = write(tmp_path / "m", case), write_adapter(tmp_path / "a", case)
    (found,) = lg.compare(base, [adapter], lg.Measurement(text, context=32), types=["Q8_0"]).types
    for row in (found.merged, found.runtime):
        assert row.kept is not None
        assert 0.9 < row.kept.value < 1
