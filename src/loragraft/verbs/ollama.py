"""A Modelfile for Ollama: the model, its template, parameters and adapters; and the model itself, where Ollama runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from loragraft.errors import AdapterError, LoragraftError, OutputError, UnsupportedError
from loragraft.formats.gguf.model import model_files
from loragraft.formats.source import ModelSource
from loragraft.huggingface.contents import Kind, Role, recognise
from loragraft.inference.chat import render, template_of
from loragraft.inference.go_template import Messages, Plain, plain_template
from loragraft.inference.tokenizer import Tokenizer
from loragraft.opening import open_model
from loragraft.system.files import named_path
from loragraft.system.output import OutputFile
from loragraft.system.remote.paths import RemotePath

#: GGUF's keys of sampling defaults, and Ollama's parameters.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
}
#: Ollama's own default is 4096 tokens; more than this takes more memory than people expect.
_MAX_CONTEXT = 8192
_NAME = re.compile(r"[A-Za-z0-9][\w.\-/]{0,127}(:[\w.\-]{1,80})?")


@dataclass(frozen=True, slots=True)
class OllamaReport:
    """`created`: the model's name in Ollama, if it was made there."""

    path: Path
    text: str
    created: str | None = None
    notes: list[str] = field(default_factory=list)


def ollama(
    model: str | PathLike[str],
    adapters: Sequence[str | PathLike[str]] = (),
    *,
    output: str | PathLike[str] | None = None,
    name: str | None = None,
) -> OllamaReport:
    """Write a Modelfile for the GGUF file `model` with GGUF `adapters`, to `output` or beside the model; with `name`,
    and where the program `ollama` is installed, create the model of this name.

    Raises FormatError, AdapterError for an adapter that is no GGUF, OutputError, LoragraftError if Ollama refuses.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise LoragraftError(
            name, "Ollama takes no such name for a model", expected="such as poet or me/poet:q4"
        )
    path = named_path(model)
    found = recognise(path, Role.MODEL)
    if found.kind is not Kind.GGUF_MODEL or isinstance(path, RemotePath):
        raise UnsupportedError(
            path,
            "Ollama takes GGUF files of this machine",
            hint=f"make one: loragraft merge {path} -o model.gguf --type Q4_K_M",
        )
    if len(adapters) > 1:
        raise AdapterError(
            str(adapters[1]),
            "Ollama uses only one adapter, the last that a Modelfile names",
            found=f"{len(adapters)} adapters",
            hint="merge the others into the model, or make one of them all: loragraft combine",
        )
    files = [_adapter(named_path(adapter), path) for adapter in adapters]
    target = named_path(output, OutputError) if output is not None else path.parent / "Modelfile"
    source, notes = open_model(path), list[str]()
    if len(model_files(source)) > 1:
        raise UnsupportedError(
            path,
            "is one of several files of a model, and Ollama takes one",
            hint=f"loragraft join {path} model.gguf",
        )
    text = modelfile(
        source,
        os.path.relpath(path, target.parent),
        [os.path.relpath(f, target.parent) for f in files],
        notes,
    )
    data = text.encode()
    with OutputFile(target, len(data), inputs=[path, *files]) as file:
        file.write_at(0, data)
    created = None
    if name is not None:
        created = _create(name, target, notes)
    return OllamaReport(target, text, created, notes)


def modelfile(
    model: ModelSource, file: str, adapters: Sequence[str] = (), notes: list[str] | None = None
) -> str:
    """The Modelfile's text. `file` and `adapters` are paths beside it."""
    notes = [] if notes is None else notes
    lines = [f"FROM {_path(file)}", *(f"ADAPTER {_path(adapter)}" for adapter in adapters)]
    template = _template(model, notes)
    if template is not None:
        lines += ["", f'TEMPLATE """{template.go()}"""', ""]
        lines += [f"PARAMETER stop {_quoted(stop)}" for stop in template.stops if _can_stand(stop)]
    for key, name in _SAMPLING.items():
        value = model.metadata.get(f"general.sampling.{key}")
        if value is not None and isinstance(value.data, int | float):
            lines.append(f"PARAMETER {name} {value.data:g}")
    if model.context_length:
        lines.append(f"PARAMETER num_ctx {min(model.context_length, _MAX_CONTEXT)}")
    return "\n".join(lines) + "\n"


def _template(model: ModelSource, notes: list[str]) -> Plain | None:
    if "tokenizer.chat_template" not in model.metadata:
        notes.append(f"{model.path}: has no chat template, so Ollama passes prompts on as they are")
        return None
    jinja, tokenizer = template_of(model), Tokenizer(model.metadata, model.path)
    bos, eos = (
        "" if token is None else tokenizer.decode([token], show_special=True)
        for token in (tokenizer.bos, tokenizer.eos)
    )

    def rendered(messages: Messages, open_reply: bool) -> str:
        return render(jinja, messages, bos=bos, eos=eos, open_reply=open_reply, subject=model.path)

    found = plain_template(rendered, bos if tokenizer.add_bos else "")
    if found is None:
        notes.append(
            f"{model.path}: its chat template is more than texts around messages: the Modelfile has no TEMPLATE, and "
            "Ollama takes the one that it recognises"
        )
    return found


def _adapter(path: Path, model: Path) -> Path:
    if recognise(path, Role.ADAPTER).kind is not Kind.GGUF_ADAPTER:
        raise AdapterError(
            path,
            "is not a GGUF adapter; Ollama takes nothing else",
            hint=f"loragraft convert {path} --base {model} -o {path.name}.gguf",
        )
    return path


def _path(path: str) -> str:
    """As a Modelfile takes it: a bare name would be a model of Ollama's library."""
    path = path if path.startswith(("/", "./", "../")) else f"./{path}"
    if not path.isprintable():
        raise OutputError(path, "its name cannot stand in a Modelfile")
    return _quoted(path) if " " in path else path


def _can_stand(value: str) -> bool:
    """Whether a Modelfile can hold it: what is neither printed nor a new line is dropped from it."""
    return all(char.isprintable() or char == "\n" for char in value)


def _quoted(value: str) -> str:
    """A value as it stands in a Modelfile: quotes at both ends come off, nothing is escaped. (Ollama's parser.go)"""
    mark = '"""' if '"' in value or "\n" in value else '"'
    return f"{mark}{value}{mark}"


def _create(name: str, target: Path, notes: list[str]) -> str | None:
    if (program := shutil.which("ollama")) is None:
        notes.append(f"ollama is not installed here; where it is: ollama create {name} -f {target}")
        return None
    done = subprocess.run(
        [program, "create", name, "-f", str(target)], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise LoragraftError("ollama", f"did not create {name}: {said}", hint="is it running? ollama serve")
    return name
