"""Tasks that do to a child what damaged files do."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any

from edgeverify.core.errors import CheckpointError


def echo(file: Path, **arguments: Any) -> Any:
    return {"file": str(file), **arguments}


def pid(file: Path) -> int:
    del file
    return os.getpid()


def modules(file: Path) -> list[str]:
    del file
    return sorted(sys.modules)


def segfault(file: Path) -> None:
    del file
    print("native code says something", flush=True)
    ctypes.string_at(0)


def abort(file: Path) -> None:
    del file
    os.abort()


def hang(file: Path) -> None:
    del file
    time.sleep(600)


def leave(file: Path) -> None:
    del file
    os._exit(7)


def exit_politely(file: Path) -> None:
    del file
    sys.exit(8)


def devour(file: Path) -> int:
    del file
    return len(bytearray(2**31))


def overflow(file: Path) -> None:
    overflow(file)


def raise_known(file: Path) -> None:
    raise CheckpointError("is of wood", where=file.name, expected="iron", fix="forge it")


def raise_unknown(file: Path) -> None:
    raise KeyError("spoon")


def chatter(file: Path) -> str:
    os.write(1, b"{} this is no answer\n")
    print("nor is this", flush=True)
    return file.name
