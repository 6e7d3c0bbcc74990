"""Records quantized-convert.json: llama.cpp's converter of the folders of tests/quantized_folders.py.

    PYTHONPATH=llama.cpp/gguf-py:llama.cpp:tests python make_quantized_convert.py

It needs torch, and llama.cpp at 0c1e57098. By case: its tensors in F16, in order: name, shape (NumPy's order), type,
the first 16 digits of the sha256 of its bytes; or `refused`, what the converter says of it.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import conversion
import gguf

from quantized_folders import CASES, write_quantized

GOLDEN = Path(__file__).parent
sys.path.insert(0, str(GOLDEN))

from make_hf_convert import without_vocabulary  # noqa: E402


def converted(case: str) -> Any:
    with tempfile.TemporaryDirectory() as name:
        folder = write_quantized(Path(name, "m"), case)
        program = Path(conversion.__file__).parent.parent / "convert_hf_to_gguf.py"
        sys.argv = [str(program), str(folder), "--outfile", f"{name}/m.gguf", "--outtype", "f16"]
        try:
            runpy.run_path(str(program), run_name="__main__")
        except (Exception, SystemExit) as problem:
            return {"refused": f"{type(problem).__name__}: {problem}"}
        return [
            [
                tensor.name,
                [int(n) for n in reversed(tensor.shape)],
                tensor.tensor_type.name,
                hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16],
            ]
            for tensor in gguf.GGUFReader(f"{name}/m.gguf").tensors
        ]


def main() -> None:
    without_vocabulary()
    made = {case: converted(case) for case in CASES}
    text = json.dumps(made, separators=(",", ":")).replace(',"', ',\n"').replace('\n"F', '"F')
    (GOLDEN / "quantized-convert.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
