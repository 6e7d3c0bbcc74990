"""Runs verbs with one fault each, in forks of a process that has the shim preloaded; one request a line on stdin.

A request is [verb, call, kind, folder]; the answer says what the child did, and which call it was.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import loragraft as lg
from loragraft.formats.split import SplitLimits
from loragraft.system import interrupts

KINDS = ["none", "ENOSPC", "EIO", "EINTR", "short", "kill before", "kill after"]


def _on_text(inputs: Path) -> dict[str, Any]:
    return {"calibrate": (inputs / "text",), "calibrate_windows": 2}


def verbs(inputs: Path, folder: Path, resume: bool) -> dict[str, object]:
    options = lg.QuantizeOptions(resume=resume)
    split = lg.QuantizeOptions(resume=resume, split=SplitLimits(max_tensors=9))
    gguf, base, adapter = inputs / "model.gguf", inputs / "base", inputs / "adapter"
    out = folder / "out.gguf"
    return {
        "quantize": lambda: lg.quantize(gguf, out, "Q4_0", options=options, threads=1),
        "merge": lambda: lg.merge(base, [adapter], out, type="Q8_0", options=options, threads=1),
        "merge to parts": lambda: lg.merge(base, [adapter], out, type="Q8_0", options=split, threads=1),
        "merge calibrated": lambda: lg.merge(
            base, [adapter], out, type="Q8_0", options=replace(options, **_on_text(inputs)), threads=1
        ),
        "convert": lambda: lg.convert(base, out, type="F16", options=options, threads=1),
        "export": lambda: lg.export(gguf, folder / "hf", threads=1, resume=resume),
        "split": lambda: lg.split(gguf, folder / "part", SplitLimits(max_tensors=9)),
        "join": lambda: lg.join(inputs / "part-00001-of-00003.gguf", out),
    }


def main() -> None:
    shim = ctypes.CDLL(None)
    inputs = Path(sys.argv[1])
    lg.load(inputs / "base", [inputs / "adapter"], threads=1)  # whatever is imported on the way
    signal.alarm(3600)
    for line in sys.stdin:
        verb, call, kind, folder, resume = json.loads(line)
        read, write = os.pipe()
        log_read, log_write = os.pipe()
        child = os.fork()
        if child == 0:
            interrupts.install()
            shim.fault_arm(os.fsencode(folder), ctypes.c_long(call), KINDS.index(kind), log_write)
            try:
                verbs(inputs, Path(folder), resume)[verb]()
                said = "done"
            except lg.LoragraftError as error:
                said = f"refused: {error}"
            except BaseException:
                said = "escape: " + traceback.format_exc()
            shim.fault_arm(b"", ctypes.c_long(0), 0, -1)
            os.write(write, json.dumps([said, shim.fault_calls()]).encode())
            os._exit(0)
        os.close(write)
        os.close(log_write)
        with os.fdopen(read) as answer, os.fdopen(log_read) as log:
            text, name = answer.read(), log.read()
        _, status = os.waitpid(child, 0)
        said = (
            json.loads(text)
            if text
            else [f"killed by {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "gone", 0]
        )
        print(json.dumps([*said, name]), flush=True)


if __name__ == "__main__":
    main()
