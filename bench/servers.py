"""Server processes to measure: ours and llama-server, with the same adapters."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: llama-server's two ways to keep weights; neither is the better one everywhere.
LAYOUTS = {"llama-server": [], "llama-server --no-repack": ["--no-repack"]}


@dataclass(frozen=True, slots=True)
class Server:
    """One that listens."""

    url: str
    pid: int


@contextmanager
def ours(model: Path, adapters: Sequence[Path], threads: int, *more: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "loragraft", "serve", str(model), "--port", "0", "--alias", "base"]
    command += ["--threads", str(threads), *more]
    for number, path in enumerate(adapters):
        command += ["--lora", f"a{number}={path}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"listening on (http://\S+)", line):
                break
        else:
            raise RuntimeError(f"the server did not start: {said}")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # so that its pipe never fills
        yield Server(found[1], process.pid)
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def theirs(
    server: Path, model: Path, adapters: Sequence[Path], threads: int, slots: int, layout: Sequence[str]
) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(server), "-m", str(model), "--port", str(port), "--host", "127.0.0.1", "--no-webui"]
    command += ["-t", str(threads), "-tb", str(threads), "-np", str(slots), "-c", str(512 * slots)]
    command += ["-a", "base", *layout]
    if adapters:
        command += ["--lora-init-without-apply", "--lora", ",".join(map(str, adapters))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield Server(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.kill()  # told to end, it sometimes waits for connections that are closed
        process.wait(60)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as probe:
                probe.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                if b" 200 " in probe.recv(100):
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError("llama-server did not start")


def resident(pid: int) -> int:
    """Bytes of a process that lie in memory and are its own."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.findall(r"RssAnon:\s+(\d+)", status)[0])


def disturbed(adapter: Path, base: Path, folder: Path, count: int) -> list[Path]:
    """`count` adapters as GGUF, in `folder`: the given one, B multiplied by noise of its own. Those there are kept."""
    import loragraft as lg

    made = []
    for number in range(count):
        path = folder / f"adapter{number}.gguf"
        if not path.exists():
            copy = folder / f"peft{number}"
            copy.mkdir(exist_ok=True)
            for file in adapter.iterdir():
                if file.suffix == ".safetensors":
                    _disturb(file, copy / file.name, number)
                elif file.is_file():
                    (copy / file.name).write_bytes(file.read_bytes())
            lg.convert_adapter(copy, base, path)
        made.append(path)
    return made


def _disturb(source: Path, target: Path, seed: int) -> None:
    from safetensors.numpy import load_file, save_file

    random = np.random.default_rng(seed)
    weights = load_file(source)
    for name, array in weights.items():
        if "lora_B" in name:
            weights[name] = (array * (1 + 0.2 * random.standard_normal(array.shape))).astype(array.dtype)
    save_file(weights, target)
