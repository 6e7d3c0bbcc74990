"""A real server process for tests: the example model with a chat template, and adapters."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx2
import numpy as np

from paths import data

#: Requests that wait for their answer, however busy the machine is; of certificates there are none to read.
http = SimpleNamespace(
    **{name: partial(getattr(httpx2, name), timeout=120, verify=False) for name in ("get", "post")}
)

STACKS = signal.SIGUSR1
_TELLS_STACKS = f"import faulthandler\nfaulthandler.register({int(STACKS)})\n"

#: A plain template in the manner of ChatML, whose marks are this vocabulary's control tokens.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def chat_model(folder: Path) -> Path:
    """The example model with a chat template."""
    model = folder / "kjv"
    shutil.copytree(data("llama-kjv"), model)
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    return model


def scaled_adapter(folder: Path, factor: float, seed: int) -> Path:
    """Another adapter: the example's with its B multiplied and disturbed."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(data("llama-kjv.shakespeare"), folder)
    weights = load_file(folder / "adapter_model.safetensors")
    random = np.random.default_rng(seed)
    for name, array in weights.items():
        if "lora_B" in name:
            noise = random.standard_normal(array.shape).astype(array.dtype) * array.std()
            weights[name] = (array * factor + 0.3 * noise).astype(array.dtype)
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def comes(seen: Callable[[], object], looks: int = 12_000) -> bool:
    """Whether it is so, in some time: two minutes, of those in which this machine runs. A virtual machine may be
    stopped, and its clock goes on."""
    for _ in range(looks):
        if seen():
            return True
        time.sleep(0.01)
    return bool(seen())


@dataclass
class Served:
    """A server that runs: its address and process, and what it has said."""

    url: str
    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list, repr=False)

    def stacks(self) -> str:
        """Where each of its threads is now, and what it said before: why it hangs."""
        self.process.send_signal(STACKS)
        time.sleep(1)
        return "".join(self.said)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


@contextmanager
def serving(
    model: Path, *options: object, env: dict[str, str] | None = None, before: str = ""
) -> Iterator[Served]:
    """`loragraft serve` of `model` on a free port, until the block ends; `before`: Python that is run first."""
    start = _TELLS_STACKS + before + "from loragraft.__main__ import main\nmain()\n"
    command = [sys.executable, "-c", start, "serve", str(model), "--port", "0", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
    assert process.stderr is not None
    said: list[str] = []
    reading: threading.Thread | None = None
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"listening on (http://\S+)", line):
                break
        else:
            raise AssertionError("".join(said))
        # What it says later must not fill the pipe.
        reading = threading.Thread(target=said.extend, args=(process.stderr,))
        reading.start()
        yield Served(found[1], process, said)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if reading is not None:
            reading.join()
        process.stderr.close()


def refuses_to_start(model: Path, *options: Sequence[object] | object) -> str:
    """What `loragraft serve` says where it ends at once."""
    command = [sys.executable, "-m", "loragraft", "serve", str(model), "--port", "0", *map(str, options)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1, ended.stderr
    return ended.stderr
