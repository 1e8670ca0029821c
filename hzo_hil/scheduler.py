"""From rows to device batches within declared limits. Pure: it says what to send, dispatch sends it."""

from __future__ import annotations

from collections.abc import Iterator

from hzo_hil.devices.api import Capabilities
from hzo_hil.devices.errors import CapabilityError

# Where a device declares no limit: memory is the window, not the batch.
LARGEST_CALL = 8192


def rows_per_call(capabilities: Capabilities, in_ports: int, repeats: int, group: int) -> int:
    """Rows of one call, before copies for repeats; a whole number of groups (a +/- pair is never split)."""
    copies = 1 if capabilities.repeats else repeats
    limit = capabilities.max_batch or LARGEST_CALL * copies
    if capabilities.max_bytes:
        itemsize = 4 if capabilities.dtype == "float32" else 8
        limit = min(limit, capabilities.max_bytes // (in_ports * itemsize))
    rows = limit // copies // group * group
    if rows < 1:
        raise CapabilityError(
            f"device {capabilities.identity!r} takes {limit} rows of {in_ports} inputs a call, and {group} rows that"
            " belong"
            f" together with {copies} copies each do not fit. Lower repeats, or use forward differences"
        )
    return rows


def pack(total: int, rows: int) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) that cover `total` rows in calls of at most `rows`."""
    for first in range(0, total, rows):
        yield first, min(first + rows, total)


def calls(total: int, rows: int) -> int:
    """How many ranges `pack` gives."""
    return -(-total // rows)
