"""`loragraft devices`."""

from __future__ import annotations

import json
from dataclasses import asdict

import loragraft as lg
from loragraft.cli import console
from loragraft.cli.command import command
from loragraft.cli.options import JSON
from loragraft.units import bytes_text


@command("loragraft devices", "loragraft devices --json")
@JSON
def devices(as_json: bool) -> None:
    """List what models can run on: the processor and the GPUs, their memory and what each can run.

    A type that a device does not list runs there as well: the processor dequantizes it as it goes, a GPU keeps it as
    F16.
    """
    here = lg.devices()
    if as_json:
        console.result(json.dumps(asdict(here), indent=1))
        return
    table = console.table("device", "hardware", "kind", ">memory", ">largest buffer", "weights as stored")
    for device in here.found:
        table.add_row(
            device.name,
            console.cell(device.hardware),
            device.kind,
            "" if device.memory is None else bytes_text(device.memory),
            "" if device.buffer is None else bytes_text(device.buffer),
            " ".join(device.types),
        )
    console.show(table)
    for line in here.missing:
        console.info(line)
