"""A folder that only one process at a time may write to.

The operating system keeps the lock, so it goes with its process however that ends; nothing is left to clean up by hand.
Reading needs none.
"""

from __future__ import annotations

from pathlib import Path

from hzo_hil.runfiles import RunFolderError, explained

LOCK = ".lock"


class Hold:
    """Held from here until `release`. `doing` is what happens there, as the error puts it: "running the study"."""

    def __init__(self, folder: Path, doing: str) -> None:
        """Raises RunFolderError where another process holds the folder, or it cannot be written to."""
        from filelock import FileLock, Timeout

        self._lock = FileLock(folder / LOCK, thread_local=False)
        with explained(folder, "lock it against other processes"):
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise RunFolderError(
                    f"another process is {doing} in {folder}: wait for it, stop it, or choose another folder"
                ) from None

    def release(self) -> None:
        self._lock.release()
