"""CURVE keys as files: who a host and a device are, and whom a device lets in. Needs pyzmq; knows no sockets.

A folder holds `host.key` and `device.key` (secret, readable by their owner only from the moment they exist) and
`host.pub` and `device.pub`. The host needs host.key and device.pub, the device's server device.key and an allow-list: a
folder of .pub files, one for each host that may connect.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from hzo_hil.devices.errors import ConfigError

log = logging.getLogger("hzo_hil.keys")


@dataclass(frozen=True)
class Pair:
    """A Z85 key pair; the secret is in no repr and no message."""

    public: bytes
    secret: bytes = field(repr=False)


def make_keys(folder: Path) -> list[Path]:
    """Write a pair for the host and one for the device; returns the files. ConfigError where any is there already."""
    import zmq

    folder = Path(folder)
    files = [folder / f"{who}.{kind}" for who in ("host", "device") for kind in ("key", "pub")]
    there = [str(f) for f in files if f.exists()]
    if there:
        raise ConfigError(f"keys are never overwritten: {', '.join(there)} exist already. Choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for who in ("host", "device"):
        public, secret = zmq.curve_keypair()
        _write(folder / f"{who}.key", {"owner": who, "public": public.decode(), "secret": secret.decode()}, 0o600)
        _write(folder / f"{who}.pub", {"owner": who, "public": public.decode()}, 0o644)
    return files


def load_pair(folder: Path, who: str) -> Pair:
    """The secret and public key of "host" or "device" out of a folder."""
    file = Path(folder) / f"{who}.key"
    content = _content(file, "secret")
    if os.name == "posix" and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("%s can be read by others on this machine: chmod 600 %s", file, file)
    return Pair(_z85(file, content["public"]), _z85(file, content["secret"]))


def load_public(file: Path) -> bytes:
    return _z85(Path(file), _content(Path(file), "public")["public"])


def allowed(folder: Path) -> set[bytes]:
    """The public keys of every .pub file in a folder, except device.pub. ConfigError where there is none."""
    folder = Path(folder)
    files = sorted(f for f in folder.glob("*.pub") if f.name != "device.pub") if folder.is_dir() else []
    if not files:
        raise ConfigError(f"the allow-list {folder} holds no .pub file: copy the host's host.pub there")
    return {load_public(f) for f in files}


def _write(file: Path, content: dict[str, str], mode: int) -> None:
    # Created with its final mode, or it could be read between its creation and a chmod.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        json.dump(content, out, indent=1)
        out.write("\n")


def _content(file: Path, needed: str) -> dict[str, str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no key file {file}: make keys with `hzo-hil device keys {file.parent}`") from None
    except PermissionError:
        raise ConfigError(f"the key file {file} may not be read by this user: it belongs to another one") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is no key file: {error}") from None
    if not isinstance(content, dict) or "public" not in content or needed not in content:
        raise ConfigError(f"{file} is no key file: it lacks {needed!r}")
    return content


def _z85(file: Path, text: str) -> bytes:
    key = str(text).encode()
    if len(key) != 40:
        raise ConfigError(f"{file}: a key has 40 characters, not {len(key)}")
    return key
