"""Every command works where sockets are denied: nothing is fetched, and nothing is told to anybody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hostile_models as hostile

#: The hook sees every use of Python's sockets and name lookups, by whatever library.
_DENIED = """
import sys
def deny(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.client.", "ftplib.", "smtplib.")):
        raise RuntimeError(f"the network is used: {event} {arguments}")
sys.addaudithook(deny)
from loragraft.cli import app
for words in sys.argv[1].split("\\n"):
    try:
        app(words.split("\\t"), prog_name="loragraft")
    except SystemExit as end:
        if end.code:
            sys.exit(f"{words}: {end.code}")
print("all done")
"""


def test_no_command_uses_the_network(tmp_path: Path) -> None:
    base, adapter = hostile.checkpoint(tmp_path, hostile.checkpoint_jsons())
    (base / "README.md").write_text("---\nbase_model: org/name\nlicense: mit\n---\n")
    gguf, text = hostile.gguf(tmp_path / "model.gguf", hostile.model()), tmp_path / "text"
    text.write_text(hostile.TEXT * 10)
    commands = [
        ["convert", base, "-o", tmp_path / "converted.gguf"],
        ["convert", adapter, "--base", base, "-o", tmp_path / "adapter.gguf"],
        ["merge", base, "--lora", adapter, "-o", tmp_path / "merged.gguf", "--type", "Q8_0"],
        ["quantize", gguf, tmp_path / "quantized.gguf", "Q4_K_M"],
        ["export", gguf, "-o", tmp_path / "exported"],
        ["imatrix", gguf, "-f", text, "-o", tmp_path / "matrix.gguf", "--context", "16"],
        ["perplexity", base, "--lora", adapter, "-f", text, "--context", "16"],
        ["check", gguf],
        ["run", gguf, "--chat", "-p", "hi", "-n", "2"],
        ["tokenize", base, "-p", "hi"],
        ["inspect", base],
        ["split", gguf, tmp_path / "part", "--split-max-tensors", "9"],
        ["join", tmp_path / "part-00001-of-00003.gguf", tmp_path / "joined.gguf"],
    ]
    words = "\n".join("\t".join(map(str, command)) for command in commands)
    done = subprocess.run([sys.executable, "-c", _DENIED, words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all done\n")


def test_the_hook_sees_sockets() -> None:
    code = (
        _DENIED.partition("from loragraft")[0] + "import socket; socket.create_connection(('localhost', 9))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "the network is used: socket." in done.stderr
