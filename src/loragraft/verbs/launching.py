"""How other programs are started on a GGUF file: lines to copy."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Launch:
    """A line for a shell, and what runs by it."""

    program: str
    line: str


def launches(
    model: str, adapters: Sequence[tuple[str, float]] = (), *, repository: str | None = None
) -> list[Launch]:
    """Lines that serve the GGUF file `model` with GGUF `adapters` and their strengths. With `repository`, a model on
    the hub, they fetch it from there."""
    file = shlex.quote(model)
    source = f"-hf {shlex.quote(repository)} -hff {file}" if repository else f"-m {file}"
    loras = "".join(
        f" --lora {shlex.quote(path)}" if scale == 1 else f" --lora-scaled {shlex.quote(f'{path}:{scale:g}')}"
        for path, scale in adapters
    )
    found = [Launch("llama.cpp", f"llama-server {source}{loras}")]
    if not adapters:  # vLLM takes adapters as PEFT folders, and none on a GGUF
        fetched = f"hf download {shlex.quote(repository)} {file} --local-dir . && " if repository else ""
        found.append(Launch("vLLM", f"{fetched}vllm serve ./{file}"))
        if repository:
            found.append(Launch("Ollama", f"ollama run hf.co/{shlex.quote(repository)}"))
    loras = "".join(
        f" --lora {shlex.quote(path if scale == 1 else f'{path}={scale:g}')}" for path, scale in adapters
    )
    url = f"hf://{repository}/{model}" if repository else model
    found.append(Launch("loragraft", f"loragraft serve {shlex.quote(url)}{loras}"))
    return found
