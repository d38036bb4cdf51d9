"""The child's side: one check, in a process that stays warm for the next.

The host starts it by ``edgeverify.litert.contained``; what it imports, it imports once.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeverify.core.errors import EdgeVerifyError
from edgeverify.core.memory import peak_memory, tells_out_of_memory
from edgeverify.core.store import entries
from edgeverify.legs.selectors import Selectors

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None  # type: ignore[assignment]

ORPHAN_SECONDS = 1.0
_host = os.getppid()
_watched = threading.Event()


def check_case(
    page: Path,
    *,
    model: str,
    selectors: Mapping[str, Any],
    cache: str | None,
    memory: int,
    golden: str | None = None,
) -> dict[str, Any]:
    """Checks one case.

    Args:
        page: where the report is written as HTML.
        model: as ``edgeverify check`` takes it.
        selectors: of the case, as JSON holds them.
        cache: another cache than the default one.
        memory: bytes that this process may allocate until the next case.
        golden: a folder of goldens, or None.

    Returns:
        ``report``: its dict; or ``ended`` and ``what``, of a check that raised what it should not
        or ran out of memory. Besides ``seconds``, ``cpu_seconds``, ``peak_memory`` of the process
        so far, and ``held``: bytes that it still has allocated.

    Raises:
        EdgeVerifyError: bad input, or a full disk.
    """
    _end_with_host()
    _bound(memory)
    start, cpu = time.perf_counter(), time.process_time()
    given = {n: tuple(v) if isinstance(v, list) else v for n, v in selectors.items()}
    chosen = Selectors.of(**given, cache=Path(cache) if cache else None)
    try:
        answer = {"report": _checked(page, model, chosen, golden)}
    except EdgeVerifyError:
        raise
    except (Exception, SystemExit) as error:
        answer = _raised(error)
    return {
        **answer,
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_memory": peak_memory(),
        "held": _held(),
    }


def _checked(page: Path, model: str, chosen: Selectors, golden: str | None) -> dict[str, Any]:
    from edgeverify.report import html
    from edgeverify.report.files import write_atomically
    from edgeverify.suites.check import verify

    # See edgeverify.cli.frame.
    gc.freeze()
    held: dict[str, Any] = {} if golden is None else {"golden": Path(golden)}
    report = verify(model, **chosen.arguments(), **held)
    with entries.full_disk_told(page.parent):
        write_atomically(page, html.render(report))
    return report.to_dict()


def _raised(error: BaseException) -> dict[str, Any]:
    """What to answer for a check that raised what is no ``EdgeVerifyError``."""
    if entries.tells_full_disk(error):
        raise entries.full_disk(Path(tempfile.gettempdir())) from error
    if isinstance(error, MemoryError) or tells_out_of_memory(str(error)):
        return {"ended": "memory", "what": ""}
    frame = traceback.extract_tb(error.__traceback__)[-1]
    at = f"{Path(frame.filename).name}:{frame.lineno}"
    return {"ended": "error", "what": f"raised {type(error).__name__}: {error} ({at})"}


def _bound(memory: int) -> None:
    if resource is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        bound = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


def _held() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def _end_with_host() -> None:
    """Ends this process once its host is gone: nobody would take its answer."""
    if _watched.is_set():
        return
    _watched.set()

    def watch() -> None:
        while os.getppid() == _host:
            time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
