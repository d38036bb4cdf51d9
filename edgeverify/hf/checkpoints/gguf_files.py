"""Reads GGUF config and tensors with transformers' own reader and dequantizes them once.

transformers fills tensors that a GGUF lacks with random values, so the loading report is checked.
It also reads float32 hyperparameters as float64, so an eps of 1e-5 arrives as 9.999999747e-06.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from edgeverify.core.errors import CheckpointError
from edgeverify.core.quiet import quiet
from edgeverify.core.store.entries import cached, digest, file_digest
from edgeverify.hf.checkpoints import configs
from edgeverify.hf.checkpoints.expected import Entry, Expected, expected_tensors, resolve
from edgeverify.hf.checkpoints.load import Plan
from edgeverify.hf.checkpoints.locate import SAFETENSORS, Weights, read_json
from edgeverify.hf.config import config_differences

if TYPE_CHECKING:
    from edgeverify_models.port import Port

_NEEDED = ("gguf", "accelerate")
# Packages that decide how a GGUF's bytes become tensors and config values.
_PACKAGES = ("gguf", "transformers")
_FORMAT = "gguf-1"
# Keys about where and how the model was loaded, which are irrelevant to a copy in another place,
# and defaults of every transformers config.
_NOISE = (
    "_name_or_path",
    "_model_name_or_path",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "transformers_version",
)


@dataclass(frozen=True)
class OpenedGguf:
    """A GGUF that passed the checks: its config, a digest, a note, and how to load it.

    The digest covers the file's contents and the versions of the packages that turn them into
    tensors. ``plan`` dequantizes the file if that has not been done, and returns the arguments of
    ``load_tensors``.
    """

    hf_config: dict[str, Any]
    digest: str
    note: str
    plan: Callable[[], Plan]


def open_gguf(
    weights: Weights,
    port: Port,
    size: str | None,
    *,
    trust_remote_code: bool,
    cache_root: Path | None,
) -> OpenedGguf:
    """Reads and checks a GGUF's config; its tensors are dequantized on the first load.

    A ``config.json`` beside the file overrides the config inside, which cannot contain every key
    (e.g. Gemma 2's query_pre_attn_scalar). The note names the keys that differ.

    Raises:
        CheckpointError: the extra is not installed, or the file is damaged or of another model.
    """
    file = weights.files[0]
    _require_extra(file)
    _require_magic(file)
    contents = file_digest(file, root=cache_root)
    key = digest(_FORMAT, contents, {p: metadata.version(p) for p in _PACKAGES})
    judged: list[tuple[dict[str, Any], Expected, str]] = []

    def expect(config: dict[str, Any], where: object) -> Expected:
        return expected_tensors(configs.build_reference(config, port, where))

    def remembered(config: dict[str, Any], where: object) -> Expected:
        return configs.expected_of(config, port, where, cache_root)

    def make(target: Path) -> None:
        own = _read_config(file, trust_remote_code)
        judged.append(_judge(own, weights, port, size, expect))  # before anything is kept
        target.write_text(json.dumps(own, sort_keys=True))

    noted = cached("gguf-config", key, ".json", make, root=cache_root)
    if not judged:
        judged.append(_judge(read_json(noted), weights, port, size, remembered))
    config, expected, note = judged[0]

    def plan() -> Plan:
        whole = cached(
            "dequantized",
            key,
            ".safetensors",
            lambda target: _dequantize(file, target, trust_remote_code),
            root=cache_root,
        )
        entries = SAFETENSORS.list(whole)
        take, copies = resolve(expected, entries, file)
        return SAFETENSORS, entries, take, copies, file

    return OpenedGguf(config, key, note, plan)


def _judge(
    own: dict[str, Any],
    weights: Weights,
    port: Port,
    size: str | None,
    expect: Callable[[dict[str, Any], object], Expected],
) -> tuple[dict[str, Any], Expected, str]:
    file = weights.files[0]
    configs.require_family(own, port, file)
    config: dict[str, Any] = own
    where: object = file
    note = "GGUF, dequantized to float32"
    if (weights.directory / "config.json").is_file():
        config, where = configs.of_files(weights, port, size)
    else:
        configs.require_agreement(own, port, size, file)
    expected = expect(config, where)
    if config is not own and (differing := config_differences(config, own)):
        note += f", with config.json's {', '.join(differing)} instead of its own"
    return config, expected, note


def _read_config(file: Path, trust_remote_code: bool) -> dict[str, Any]:
    from transformers import AutoConfig

    with _reading(file):
        config = AutoConfig.from_pretrained(
            file.parent,
            gguf_file=file.name,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
        )
    stated = config.to_dict()
    return {
        key: _shortest(value)
        for key, value in sorted(stated.items())
        if value is not None and key not in _NOISE
    }


def _shortest(value: Any) -> Any:
    """Returns the number that a float32 value stands for: 9.999999747378752e-06 → 1e-05."""
    if isinstance(value, dict):
        return {key: _shortest(inner) for key, inner in value.items()}
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value


def _dequantize(file: Path, target: Path, trust_remote_code: bool) -> None:
    from transformers import AutoModelForCausalLM

    with _reading(file):
        model, report = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    expected = expected_tensors(model)
    missing = set(report["missing_keys"]) - set(expected.tied)
    names = {name: Entry(file, shape, "float32") for name, shape in expected.shapes.items()}
    for name in missing:
        names.pop(name, None)
    for name in report["unexpected_keys"]:
        names[name] = Entry(file, (), "float32")
    resolve(expected, names, file)
    if mismatched := report["mismatched_keys"]:
        raise _damaged(file, f"tensors of another shape than its config: {sorted(mismatched)}")
    state = model.state_dict()
    tensors = {name: state[name].contiguous() for name in expected.shapes}
    save_file(tensors, target)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Silences transformers' progress bars and reports its errors in one line."""
    failure: Exception | None = None
    with quiet():
        try:
            yield
        except Exception as error:  # struct, numpy and transformers errors of a damaged file
            failure = error  # raised outside, so that the bars stay silenced
    if failure is not None:
        reason = next(iter(str(failure).splitlines()), "") or type(failure).__name__
        raise _damaged(file, f"transformers cannot read it ({reason[:200]})") from failure


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        what,
        where=file,
        expected="a whole GGUF of an architecture that transformers reads",
        fix="copy or download it again, or take the original safetensors",
    )


def _require_extra(file: Path) -> None:
    if absent := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise CheckpointError(
            f"GGUF needs {' and '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} "
            "not installed",
            where=file,
            expected="the extra 'gguf'",
            fix="pip install 'edgeverify[gguf]'",
        )


def _require_magic(file: Path) -> None:
    with file.open("rb") as opened:
        magic = opened.read(4)
    if magic != b"GGUF":
        raise _damaged(file, f"starts with {magic!r}, not with b'GGUF'")
