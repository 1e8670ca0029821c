"""The peer's end of `_peers.Peer`: runs in the peer's environment, needs nothing but Python.

The first line of JSON says what to prepare, and is answered with facts such as versions; each later one how many
`times` to call it, answered with the seconds of each call.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(prepare: Callable[..., tuple[Callable[[], Any], dict[str, Any]]]) -> None:
    """`prepare(**setting)` gives the call to time, and facts about it."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the peer prints must not be taken for an answer

    def answer(found: dict[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    call, facts = prepare(**json.loads(sys.stdin.readline()))
    answer(facts)
    for line in sys.stdin:
        seconds = []
        for _ in range(json.loads(line)["times"]):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        answer({"seconds": seconds})
