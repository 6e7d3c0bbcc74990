"""Writes the grids of the IQ types as a C++ header, from the Python package's facts: one source for both.

Usage: make_iq_grids.py src/loragraft/quants/iq_grid_points.py OUTPUT.h (run by the build; standard library only).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main(source: str, target: str) -> None:
    spec = importlib.util.spec_from_file_location("iq_grid_points", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    lines = [
        f"// Made by native/quant/make_iq_grids.py from {Path(source).name}: each point's digits, the first lowest."
    ]
    for name, grid in module.GRIDS.items():
        bits = (grid.base - 1).bit_length()
        codes = [sum(digit << bits * i for i, digit in enumerate(point)) for point in grid.points()]
        lines.append(f"static const uint16_t {name}_POINTS[{len(codes)}] = {{")
        lines += ["    " + ", ".join(map(str, codes[i : i + 16])) + "," for i in range(0, len(codes), 16)]
        lines.append("};")
    Path(target).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
