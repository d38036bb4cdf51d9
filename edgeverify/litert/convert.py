"""Converts a re-authored model to one float32 .tflite with all signatures of a case."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import litert_torch
import torch
from litert_torch.generative.layers import kv_cache as kv_utils
from litert_torch.generative.utilities.converter import ExportableModule
from litert_torch.generative.utilities.export_config import ExportConfig
from torch import nn
from torch.fx.experimental import proxy_tensor

from edgeverify.core.case import Case
from edgeverify.core.errors import ArtifactError
from edgeverify.core.progress import Progress
from edgeverify.core.quiet import quiet
from edgeverify.core.store import entries
from edgeverify.litert.flatbuffer import ModelFile

# A file consists of its float32 weights and a table: 0.5 MB for 12 blocks and two signatures.
TABLE_BYTES = 16 * 2**20
LAYOUTS = {
    "default": kv_utils.KV_LAYOUT_DEFAULT,
    "transposed": kv_utils.KV_LAYOUT_TRANSPOSED,
}


def convert(
    model: nn.Module,
    case: Case,
    path: Path,
    progress: Progress | None = None,
    *,
    verbose: bool = False,
) -> None:
    """Converts ``model`` to ``path``: signatures ``prefill_{n}`` and ``decode``, float32 weights.

    It uses the lightweight conversion, which yields the same operators and bit-identical logits
    (SmolLM2-135M) and needs 35 s and 5.6 GB instead of 139 s and 14.3 GB for TinyLlama 1.1B.

    Args:
        model: a re-authored model in eval mode, with ``config`` (a ``ModelConfig``).
        case: sets the prefill lengths, the cache's length and layout, whether masks are inputs and
            whether prefill returns logits.
        path: the file to write.
        progress: receives the stage.
        verbose: True lets the converter write to the terminal.

    Raises:
        ArtifactError: the disk has no room for the file, or the model cannot be converted. In the
            second case, the converter's output has been shown.
    """
    config = ExportConfig(
        output_logits_on_prefill=case.prefill_logits,
        kvcache_layout=LAYOUTS[case.kv_layout],
        mask_as_input=case.mask_as_input,
    )
    _require_room(model, case, path)
    exportable = ExportableModule(model, export_config=config).eval()
    with (progress or Progress()).stage("convert"):
        try:
            with quiet(not verbose), torch.no_grad():
                _convert(exportable, model.config, case, path)
        except MemoryError as error:
            raise _failed(case, "out of memory", "close other programs or take fewer --prefill") \
                from error  # fmt: skip
        except Exception as error:
            reason = f"{type(error).__name__}: {_first_line(error)}"
            raise _failed(
                case,
                reason,
                "run again with -v to see what the converter wrote; a forward that branches on "
                "tensor values, or whose shapes depend on them, cannot be exported",
            ) from error
    _let_go_of_weights()
    # Parsing also detects a file that was cut short.
    missing = case.signatures.keys() - ModelFile(path).signatures.keys()
    if missing:
        raise _failed(
            case, f"signatures {sorted(missing)} are missing", "report it to litert-torch"
        )


def _require_room(model: nn.Module, case: Case, path: Path) -> None:
    """Refuses a disk with too little free space.

    On a full disk the converter's writer ends the whole process ("LLVM ERROR: IO failure on
    output stream"), which nothing in Python can catch.
    """
    # A tied table is counted once, because it is stored once.
    needed = sum(p.numel() * 4 for p in model.parameters()) + TABLE_BYTES
    entries.require_room(path.parent, needed, f"for the .tflite of {case.model} {case.size}")


def _convert(exportable: nn.Module, model_config: Any, case: Case, path: Path) -> None:
    converter: Any = None
    for name, length in case.signatures.items():
        batch = case.decode_batch if name == "decode" else 1
        inputs = sample_inputs(model_config, case, length, batch)
        # Both ways to add a signature take the same arguments.
        add = litert_torch.signature if converter is None else converter.signature
        converter = add(name, exportable, sample_kwargs=inputs)
    converter.convert(lightweight_conversion=True).export(str(path))


def sample_inputs(config: object, case: Case, length: int, batch: int = 1) -> dict:
    """Makes the inputs of one signature, for tracing.

    Each signature gets new inputs: when they were shared, the export of one signature changed the
    next one's (litert-torch aae021e).
    """
    inputs: dict = {
        "tokens": torch.zeros((batch, length), dtype=torch.int32),
        "input_pos": torch.arange(length, dtype=torch.int32),
        "kv_cache": kv_utils.KVCache.from_model_config(
            case.kv_cache_len, config, batch_size=batch, kv_layout=LAYOUTS[case.kv_layout]
        ),
    }
    if case.mask_as_input:
        masks = {k: torch.zeros((1, 1, length, case.kv_cache_len)) for k in case.mask_kinds}
        inputs["mask"] = masks if len(masks) > 1 else masks[case.mask_kinds[0]]
    return inputs


def _failed(case: Case, reason: str, fix: str) -> ArtifactError:
    return ArtifactError(
        f"the conversion failed ({reason})",
        where=f"{case.model} {case.size}",
        expected=f"a .tflite with {', '.join(case.signatures)}",
        fix=fix,
    )


def _let_go_of_weights() -> None:
    """Frees what torch.export leaves in memory, which is the whole model: 4.2 GB at 1.1B.

    torch 2.13 keeps the graph nodes of the last exports in a global table, and with them the
    parameters. The exported programs contain reference cycles.
    """
    table = getattr(proxy_tensor, "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT", None)
    if table is not None:
        table.clear()
    gc.collect()


def _first_line(error: Exception) -> str:
    """Returns the reason; below it, torch.export and the converter print advice and tracebacks."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no reason given"
