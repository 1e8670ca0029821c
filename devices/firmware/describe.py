"""Writes network.c and network.h: what the firmware says of itself, and the tables it computes with, from one list.

Change STAGES (and the constants below it), run `python devices/firmware/describe.py`, build again. `--json` prints
the description alone. Needs the checkout or an installed hzo_hil; the result needs neither.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
if (ROOT / "pyproject.toml").is_file() and str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from hzo_hil.devices import manifest  # noqa: E402
from hzo_hil.devices.api import BoundarySpec, Capabilities, ParameterSpec, StageSpec  # noqa: E402

STAGES = (("hidden", 4, 8, "relu"), ("output", 8, 3, "linear"))
"""Name, inputs, outputs, non-linearity: linear, relu (cut at 0) or hard_tanh (cut at -1 and 1)."""

ACTIVATION_SHIFT = 12
"""An activation is an int16 times 2**-12: -8 to 8."""
WEIGHT_SHIFT = 7
"""A weight is an int8 times 2**-7, -127 to 127: -0.99 to 0.99."""
WEIGHT_TOP = 127
BIAS_TOP = 128
"""A bias is an int16 times 2**-7, -128 to 128: -1 to 1."""
NOISE = 16
"""Peak of the pseudo-noise, in output codes; its standard deviation is this / sqrt(6)."""
MTU = 512
WINDOW = 8
MAX_REPEATS_LOG2 = 10
LONGEST_CALL_S = 2.0

FRAME_OVERHEAD = 12
KINDS = {"linear": "NET_LINEAR", "relu": "NET_RELU", "hard_tanh": "NET_HARD_TANH"}
WIDTHS = (STAGES[0][1], *(out for _, _, out, _ in STAGES))
ROWS = (MTU - FRAME_OVERHEAD) // (2 * max(WIDTHS))
SEGMENTS = [(lo, hi) for lo in range(len(STAGES)) for hi in range(lo + 1, len(STAGES) + 1)]


def capabilities() -> Capabilities:
    """What the host is told. `levels` are all values that the parameters' converters know."""
    stages = tuple(
        StageSpec(
            name,
            n_in,
            n_out,
            (_parameter("weight", (n_out, n_in), WEIGHT_TOP), _parameter("bias", (n_out,), BIAS_TOP)),
            linear=kind == "linear",
        )
        for name, n_in, n_out, kind in STAGES
    )
    return Capabilities(
        identity="firmware-" + "-".join(map(str, WIDTHS)),
        stages=stages,
        boundaries=tuple(_boundary(kind) for kind in ("linear", *(kind for *_, kind in STAGES))),
        max_batch=ROWS,
        longest_call_s=LONGEST_CALL_S,
        repeats=True,
        read_noise=NOISE / 6**0.5 / 2**ACTIVATION_SHIFT,
    )


def _parameter(name: str, shape: tuple[int, ...], top: int) -> ParameterSpec:
    levels = tuple(code / 2**WEIGHT_SHIFT for code in range(-top, top + 1))
    return ParameterSpec(name, shape, levels[0], levels[-1], levels=levels)


def _boundary(kind: str) -> BoundarySpec:
    step = 2.0**-ACTIVATION_SHIFT
    low, high = -32768 * step, 32767 * step
    out_low = 0.0 if kind == "relu" else low
    return BoundarySpec(low=low, high=high, in_step=step, out_low=out_low, out_high=high, out_step=step)


def layout() -> list[dict[str, Any]]:
    """Where the parameters lie, stage by stage: byte addresses of the weights (int8, row after row) and the biases."""
    found, address = [], 0
    for name, n_in, n_out, kind in STAGES:
        weight, bias = address, address + n_in * n_out
        found.append({"name": name, "in": n_in, "out": n_out, "kind": KINDS[kind], "weight": weight, "bias": bias})
        address = bias + 2 * n_out
    return found


def description() -> dict[str, Any]:
    """The whole manifest: capabilities and the key `wire`."""
    scale = 2.0**-WEIGHT_SHIFT
    wire = {
        "segments": [list(s) for s in SEGMENTS],
        "rows": ROWS,
        "boundaries": [{"dtype": "i2", "scale": 2.0**-ACTIVATION_SHIFT}] * len(WIDTHS),
        "parameters": [
            [
                {"address": s["weight"], "dtype": "i1", "scale": scale},
                {"address": s["bias"], "dtype": "i2", "scale": scale},
            ]
            for s in layout()
        ],
        "repeats": True,
        "features": ["park"],
    }
    return {**manifest.to_json(capabilities()), "wire": wire}


def text() -> bytes:
    """The manifest as it is sent, checked by the reader that hosts use."""
    found = json.dumps(description(), separators=(",", ":")).encode()
    if manifest.from_json(json.loads(found)) != capabilities():
        raise SystemExit("the description does not come back as it was written")
    return found


def header() -> str:
    """network.h: sizes."""
    parameter_bytes = layout()[-1]["bias"] + 2 * STAGES[-1][2]
    sizes = {
        "HZOS_MTU": MTU,
        "HZOS_WINDOW": WINDOW,
        "DEVICE_STAGES": len(STAGES),
        "DEVICE_SEGMENTS": len(SEGMENTS),
        "DEVICE_ROWS": ROWS,
        "DEVICE_WIDEST": max(WIDTHS),
        "DEVICE_MAX_REPEATS_LOG2": MAX_REPEATS_LOG2,
        "DEVICE_PARAMETER_BYTES": parameter_bytes,
        "NET_ACTIVATION_SHIFT": ACTIVATION_SHIFT,
        "NET_WEIGHT_SHIFT": WEIGHT_SHIFT,
        "NET_WEIGHT_TOP": WEIGHT_TOP,
        "NET_BIAS_TOP": BIAS_TOP,
        "NET_NOISE": NOISE,
    }
    lines = [
        "/* Made by describe.py: change it there. */",
        "#ifndef NETWORK_H",
        "#define NETWORK_H",
        *(_overridable(n, v) if n == "NET_NOISE" else f"#define {n} {v}" for n, v in sizes.items()),
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _overridable(name: str, value: int) -> str:
    """For tests: a build that overrides it contradicts its own manifest."""
    return f"#ifndef {name}\n#define {name} {value}\n#endif"


def source() -> str:
    """network.c: tables and the manifest's bytes (a string would be longer than C99 promises to take)."""
    sent = text()
    stages = [
        f"    {{{s['in']}, {s['out']}, {s['weight']}, {s['bias']}, {s['kind']}}}, /* {s['name']} */" for s in layout()
    ]
    segments = ", ".join(f"{{{lo}, {hi}}}" for lo, hi in SEGMENTS)
    rows = [", ".join(str(b) for b in sent[i : i + 24]) for i in range(0, len(sent), 24)]
    lines = [
        "/* Made by describe.py: change it there. */",
        '#include "net.h"',
        "",
        "const net_stage net_stages[DEVICE_STAGES] = {",
        *stages,
        "};",
        "",
        f"const uint8_t device_segments[DEVICE_SEGMENTS][2] = {{{segments}}};",
        "",
        f"const uint32_t device_manifest_size = {len(sent)};",
        f"const uint8_t device_manifest[{len(sent)}] = {{",
        *(f"    {row}," for row in rows),
        "};",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    if "--json" in sys.argv[1:]:
        print(json.dumps(description(), indent=1))
        return
    for name, content in (("network.h", header()), ("network.c", source())):
        (HERE / name).write_text(content, encoding="utf-8", newline="\n")
    print(f"manifest: {len(text())} bytes, {ROWS} rows a query")


if __name__ == "__main__":
    main()
