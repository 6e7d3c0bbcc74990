"""A model larger than any disk here, from one bucket to another: memory, and time per weight.

    python bench/scale.py [--experts 384] [--layers 61] [--seconds 240] [--type Q4_K_M] [--workers N]

The model has the shape of the largest mixtures of experts: 1.04 T weights, 2.08 TB as F16, if nothing else is said. It
is a sparse file: its header is real, its weights are zeros, it takes no disk. A server of this script gives it out by
ranges as S3 does, and takes an upload in parts and throws it away. What is measured is the `loragraft quantize` between
them, in a process of its own: interrupted after `--seconds`, if it is not through then.

Needs the extra `hub`. Zeros quantize faster than real weights do (docs/benchmarks.md has those).
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import prod
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from loragraft.formats.gguf.values import Value
from loragraft.formats.gguf.writer import GGUFLayout, TensorSpec
from loragraft.quants.types import BY_NAME

WIDTH, EXPERT, VOCABULARY, HEADS, KV_HEADS, HEAD = 7168, 2048, 163840, 64, 8, 128
NAME, OUTPUT = "/models/model.gguf", "/models/out.gguf"


def specs(layers: int, experts: int) -> Iterator[TensorSpec]:
    f16, f32 = BY_NAME["F16"], BY_NAME["F32"]
    yield TensorSpec("token_embd.weight", (VOCABULARY, WIDTH), f16)
    yield TensorSpec("output_norm.weight", (WIDTH,), f32)
    yield TensorSpec("output.weight", (VOCABULARY, WIDTH), f16)
    layer = {
        "attn_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
        "attn_q_norm": (HEAD,),
        "attn_k_norm": (HEAD,),
        "ffn_gate_inp": (experts, WIDTH),
        "attn_q": (HEADS * HEAD, WIDTH),
        "attn_k": (KV_HEADS * HEAD, WIDTH),
        "attn_v": (KV_HEADS * HEAD, WIDTH),
        "attn_output": (WIDTH, HEADS * HEAD),
        "ffn_gate_exps": (experts, EXPERT, WIDTH),
        "ffn_up_exps": (experts, EXPERT, WIDTH),
        "ffn_down_exps": (experts, WIDTH, EXPERT),
    }
    for number in range(layers):
        for name, shape in layer.items():
            plain = len(shape) == 1 or name == "ffn_gate_inp"
            yield TensorSpec(f"blk.{number}.{name}.weight", shape, f32 if plain else f16)


def make(path: Path, layers: int, experts: int) -> int:
    """Writes the header, and leaves a hole for the rest; how many weights the model has."""
    facts = {
        "block_count": layers,
        "context_length": 8192,
        "embedding_length": WIDTH,
        "feed_forward_length": EXPERT,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "expert_count": experts,
        "expert_used_count": 8,
        "expert_feed_forward_length": EXPERT,
    }
    metadata = {"general.architecture": Value.string("qwen3moe"), "general.file_type": Value.u32(1)}
    metadata |= {f"qwen3moe.{key}": Value.u32(value) for key, value in facts.items()}
    metadata["qwen3moe.attention.layer_norm_rms_epsilon"] = Value.f32(1e-6)
    tensors = list(specs(layers, experts))
    layout = GGUFLayout.plan(metadata, tensors)
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)
    return sum(prod(tensor.shape) for tensor in tensors)


class Bucket(ThreadingHTTPServer):
    """Gives out one file, takes an upload, and counts both."""

    daemon_threads = True

    def __init__(self, source: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.source, self.size = source.open("rb"), source.stat().st_size
        self.sent = self.taken = 0
        self.state = "none"
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """As much of S3 as is needed."""

    protocol_version = "HTTP/1.1"
    server: Bucket

    def log_message(self, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        place = urlsplit(self.path).path
        if place == OUTPUT and self.command == "HEAD" and self.server.state == "complete":
            self.send_response(200)
            self.send_header("Content-Length", str(self.server.taken))
            self.send_header("ETag", '"1"')
            self.end_headers()
            return
        if place != NAME:
            self.answer(
                404 if self.command == "HEAD" or place.count("/") > 1 else 200, b"<ListBucketResult/>"
            )
            return
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(span[1]), int(span[2]) + 1) if span else (0, self.server.size)
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{self.server.size}")
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.flush()
        while start < stop:
            start += os.sendfile(self.connection.fileno(), self.server.source.fileno(), start, stop - start)
        with self.server.lock:
            self.server.sent += stop - int(span[1] if span else 0)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = "uploads" not in parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        self.server.state = "complete" if whole else "begun"
        root = "CompleteMultipartUploadResult" if whole else "InitiateMultipartUploadResult"
        self.answer(200, f"<{root}><UploadId>1</UploadId><ETag>1</ETag></{root}>".encode())

    def do_PUT(self) -> None:
        left = int(self.headers["Content-Length"])
        with self.server.lock:
            self.server.taken += left
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        self.answer(200, b"")

    def do_DELETE(self) -> None:
        self.server.state = "aborted"
        self.answer(204, b"")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def resident(pid: int) -> int:
    """Bytes of the process now."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--experts", type=int, default=384)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        weights = make(path, chosen.layers, chosen.experts)
        bucket = Bucket(path)
        disk = path.stat().st_blocks * 512
        threading.Thread(target=bucket.serve_forever, daemon=True).start()
        print(f"{weights / 1e9:.1f} B weights, {bucket.size / 1e9:.1f} GB as F16, {disk} bytes of disk")
        environment = {
            **os.environ,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{bucket.server_port}",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1",
            "TMPDIR": folder,
        }
        words = [
            "quantize",
            f"s3:/{NAME}",
            f"s3:/{OUTPUT}",
            chosen.type,
            "-t",
            str(chosen.threads),
            "-q",
        ]
        words += ["--workers", chosen.workers] if chosen.workers else []
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.monotonic()
        child = subprocess.Popen([sys.executable, "-m", "loragraft", *words], env=environment)
        sizes: list[tuple[int, int]] = []
        while child.poll() is None:
            time.sleep(0.2)
            sizes.append((bucket.sent, resident(child.pid)))
            if time.monotonic() - began > chosen.seconds and child.poll() is None:
                child.send_signal(signal.SIGINT)
                child.wait()
        seconds = time.monotonic() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        read = sizes[-1][0]
        halves = [max(size for sent, size in sizes if (sent * 2 >= read) == late) for late in (False, True)]
        print(f"status {child.returncode} after {seconds:.0f} s; the upload: {bucket.state}")
        print(f"read {read} bytes, {read / bucket.size:.4f} of the file; sent {bucket.taken} bytes")
        print(
            f"memory: {halves[0] >> 20} MiB in the first half of what was read, {halves[1] >> 20} MiB in the second"
        )
        print(f"{seconds / read * 2e9:.2f} ns a weight, {busy / read * 2e9:.2f} ns of processor time")
        print(f"on the disk: {sorted(os.listdir(folder))}")


if __name__ == "__main__":
    main()
