"""Jacobians averaged over steps against Jacobians measured anew after every write: queries, and what is learned.

Digits through three matrices of a low-precision accelerator (`configs/emulator_digits.yaml`, 64-32-32-10: 7-bit inputs,
9-bit outputs, read noise 0.06), each a run of its own with tanh on the host between them, so that a cut sees one linear
stage. Rows: probe queries as a share of what measuring anew asks, first measurements and renewals (`renewed`, all
layers together) included; and the test accuracy lost, paired by seed, with the t interval of its mean (95 %).
"""

from __future__ import annotations

import _one_thread  # noqa: F401
import numpy as np
from _rows import Rows, arguments
from _runs import interval, trained

MATRIX = "{{opaque: [{{device: core, stage: {0}}}], name: matrix{0}}}"
TANH = "{host: 'torch.nn:Tanh'}"
LAYERS = f", {TANH}, ".join(MATRIX.format(k) for k in range(3))
PLAIN = (
    "devices.core.options.activation=none", "method.leaf=delta", "method.eps=null", "method.tree=null",
    f"network=[{LAYERS}]",
)  # fmt: skip
AVERAGES = (0.25, 0.125)


def run(seed: int, average: float, epochs: int) -> dict[str, float]:
    found = trained("emulator_digits.yaml", seed, [*PLAIN, f"method.average={average}", f"train.epochs={epochs}"])
    ledger = found["ledger"]
    return {
        "accuracy": found["rows"]["in_loop"]["score"],
        "queries": ledger["purposes"]["probes"]["queries"],
        "renewed": ledger["events"].get("jacobian_renewed", 0),
    }


def main() -> None:
    given = arguments(__doc__)
    seeds, epochs = (range(2), 4) if given.quick else (range(5), 20)
    rows = Rows()
    rows.environment()
    anew = [run(seed, 1.0, epochs) for seed in seeds]
    rows.row(
        "measured anew", float(np.median([r["accuracy"] for r in anew])), "accuracy",
        each=[r["accuracy"] for r in anew], probe_queries=anew[0]["queries"], epochs=epochs,
    )  # fmt: skip
    for average in AVERAGES:
        found = [run(seed, average, epochs) for seed in seeds]
        share = float(np.median([r["queries"] / a["queries"] for r, a in zip(found, anew, strict=True)]))
        renewed = [int(r["renewed"]) for r in found]
        rows.row(
            f"average {average:g}: probe queries", share, "of measuring anew", target=f"<= {1.05 * average:g}",
            renewed=renewed, queries=[int(r["queries"]) for r in found],
        )  # fmt: skip
        lost = [a["accuracy"] - r["accuracy"] for r, a in zip(found, anew, strict=True)]
        rows.row(
            f"average {average:g}: accuracy lost", float(np.mean(lost)), "accuracy", target="<= 0.01",
            interval=interval(lost), each=[r["accuracy"] for r in found],
        )  # fmt: skip
    rows.exit()


if __name__ == "__main__":
    main()
