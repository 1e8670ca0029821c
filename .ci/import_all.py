"""Import every module of hzo_hil found from the working folder, with the POSIX-only modules gone.

The libraries are loaded first: what they do on this system is their affair, on Windows they do it otherwise.
"""

import importlib
import os
import pkgutil
import sys

LIBRARIES = ["torch", "numpy", "scipy", "pydantic", "yaml", "click", "tqdm", "zmq", "serial", "cobs"]
LIBRARIES += ["matplotlib.pyplot", "torch.utils.tensorboard"]
MISSING_ON_WINDOWS = ["fcntl", "pty", "termios"]


def main() -> None:
    sys.path.insert(0, os.getcwd())
    for name in LIBRARIES:
        importlib.import_module(name)
    for name in MISSING_ON_WINDOWS:
        sys.modules[name] = None  # type: ignore[assignment]
    package = importlib.import_module("hzo_hil")
    names = [module.name for module in pkgutil.walk_packages(package.__path__, "hzo_hil.", onerror=fail)]
    for name in names:
        importlib.import_module(name)
    print(f"{len(names)} modules of {os.path.dirname(package.__file__ or '')} imported")
    if "hzo_hil.devices.api" not in names:
        sys.exit("hzo_hil.devices was not among them: the mapped folders are missing from this package")


def fail(name: str) -> None:
    raise ImportError(f"{name} does not import without {', '.join(MISSING_ON_WINDOWS)}")


if __name__ == "__main__":
    main()
