"""One thread in each numerical library, unless the environment says otherwise. Import it before numpy and torch."""

from __future__ import annotations

import os

for _pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_pool, "1")  # read once, when the library is loaded
