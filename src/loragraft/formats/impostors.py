"""Files that are not what their names say: what really lies there, and how to get what was meant."""

from __future__ import annotations

from pathlib import Path

from loragraft.errors import CheckpointError, FormatError, LoragraftError

HEAD = 512
"""Bytes of a file's beginning that tell."""

_LFS = b"version https://git-lfs.github.com/spec/"
_ARCHIVES = (
    (b"\x1f\x8b", "a gzip archive", "tar -xzf"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
    (b"\xfd7zXZ", "an xz archive", "tar -xJf"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "tar --zstd -xf"),
    (b"BZh", "a bzip2 archive", "tar -xjf"),
    (b"Rar!", "a RAR archive", "unrar x"),
)


def refuse_impostor(path: Path, data: bytes, error: type[LoragraftError] = FormatError) -> None:
    """Raises `error` if a file that begins with `data` is something that people take for a model by mistake."""
    head = bytes(data[:HEAD])
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if head.startswith(_LFS):
        size = next((line[5:] for line in head.split(b"\n") if line.startswith(b"size ")), b"?")
        raise error(
            path,
            "is a pointer of Git LFS, not the file itself",
            found=f"a text that stands for {size[:20].decode('ascii', 'replace')} bytes",
            expected="the file",
            hint=f"fetch it: git -C {path.parent} lfs pull; or download the repository again with hf download",
        )
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise error(
            path,
            "is a web page, not the file itself",
            found=repr(head[:15].decode("ascii", "replace")),
            expected="the file",
            hint="download it again with hf download, or from the address with /resolve/ in place of /blob/",
        )
    if start.startswith(b'{"error"'):
        raise error(
            path,
            "is a server's answer that it failed, not the file itself",
            found=head[:80].decode("utf-8", "replace").split("\n")[0],
            expected="the file",
            hint="download it again; a gated repository needs hf auth login",
        )
    if head.startswith(b"GGUF") and error is CheckpointError:
        raise error(
            path,
            "is a GGUF file, whatever its name says",
            expected="safetensors",
            hint=f"rename it, and name the file itself: mv {path} {path.with_suffix('.gguf')}",
        )
    archive = next(((what, how) for magic, what, how in _ARCHIVES if head.startswith(magic)), None)
    if head.startswith(b"PK\x03\x04") and not is_torch_archive(head):
        archive = "a ZIP archive", "unzip"
    if archive is not None:
        raise error(
            path,
            f"is {archive[0]}",
            expected="a model's or an adapter's file or folder",
            hint=f"unpack it, and name the folder that comes out: {archive[1]} {path}",
        )


def is_torch_archive(head: bytes) -> bool:
    """Whether a ZIP archive's first entry is one that torch.save writes."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return name.endswith((b"/data.pkl", b"/.format_version", b"/byteorder", b"/version"))
