"""Faults that a short conversation does not reach fail a plain check, each at its edge."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from litert_torch.generative.layers import kv_cache as kv_utils
from litert_torch.generative.layers import rotary_position_embedding as rotary
from safetensors.torch import save_file

import edgeverify_models as models
from edgeverify.core.case import Step
from edgeverify.core.results import FAIL, NOT_APPLICABLE, PASS, UNCHECKED, Report
from edgeverify.core.trace import Trace
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.legs.conversion import converted
from edgeverify.legs.edges import outcome_of, steady_positions
from edgeverify.legs.foreign.check import verify_artifact
from edgeverify.legs.run import prepare
from edgeverify.legs.selectors import Selectors
from edgeverify.suites.check import verify
from edgeverify_models.port import Port

LLAMA = models.load("tinyllama").model_class
PYTORCH = ("reference", "reauthored")


def variant(forward: Callable[..., Any]) -> Port:
    """TinyLlama with another forward."""
    kind = type("Variant", (LLAMA,), {"forward": forward})
    return replace(models.load("tinyllama"), name="variant", model_class=kind)


def embeds_an_unused_id_as_another(self: Any, tokens: Any, *args: Any, **options: Any) -> Any:
    return LLAMA.forward(self, torch.where(tokens == UNUSED, UNUSED + 1, tokens), *args, **options)


def keeps_positions_in_int8() -> Port:
    plain = models.load("tinyllama")

    def model_config(hf_config: Any) -> Any:
        made = plain.model_config(hf_config)
        made.build_rope = lambda at, n, base: rotary.build_rope(at.to(torch.int8), n, base)
        return made

    return replace(plain, name="variant", model_config=model_config)


def never_writes_the_last_row(
    self: Any, tokens: Any, input_pos: Any, kv_cache: Any, *args: Any, **options: Any
) -> Any:
    out = LLAMA.forward(self, tokens, input_pos, kv_cache, *args, **options)
    rows = kv_cache.get_max_seq_len()
    kept = (torch.arange(rows) < rows - 1)[None, :, None, None]
    entries = [
        kv_utils.KVCacheEntry(entry.k_cache * kept, entry.v_cache * kept, entry.kv_layout)
        for entry in out["kv_cache"].caches
    ]
    return {**out, "kv_cache": kv_utils.KVCache(tuple(entries))}


def starts_chunks_at_multiples_of_16(
    self: Any, tokens: Any, input_pos: Any, *args: Any, **options: Any
) -> Any:
    if tokens.shape[1] > 1:
        input_pos = input_pos - input_pos[0] % 16
    return LLAMA.forward(self, tokens, input_pos, *args, **options)


def looks_ahead_in_a_padded_first_chunk(
    self: Any, tokens: Any, input_pos: Any, kv_cache: Any, mask: Any = None, **options: Any
) -> Any:
    if tokens.shape[1] > 1:
        ahead = ((input_pos[0] == 0) & (tokens[0, -1] == 0)).int()
        seen = torch.arange(kv_cache.get_max_seq_len())[None] <= input_pos[:, None] + ahead
        mask = torch.where(seen, 0.0, float("-inf"))[None, None]
    return LLAMA.forward(self, tokens, input_pos, kv_cache, mask=mask, **options)


def gives_a_batch_the_first_row_s_keys() -> Port:
    def build(self: Any, *args: Any, **options: Any) -> None:
        LLAMA.__init__(self, *args, **options)
        for block in self.transformer_blocks:
            own = block.atten_func
            queries = own.config.num_heads * own.config.head_dim

            def shared(_: Any, __: Any, out: torch.Tensor, queries: int = queries) -> torch.Tensor:
                first = out[:1, ..., queries:].expand(len(out), -1, -1)
                return torch.cat([out[..., :queries], first], dim=-1)

            own.qkv_projection.register_forward_hook(shared)

    kind = type("Variant", (LLAMA,), {"__init__": build})
    return replace(models.load("tinyllama"), name="variant", model_class=kind)


UNUSED = 14  # not among the tokens of seed 0, and neither is the next one
FAULTS = {
    "embedding rows": (variant(embeds_an_unused_id_as_another), "1 of 331 ids"),
    "last positions": (keeps_positions_in_int8(), "prefill_16 at position 368: the rows written"),
    "last cache row": (variant(never_writes_the_last_row), "decode at position 95: the rows"),
    "odd chunk start": (
        variant(starts_chunks_at_multiples_of_16),
        "prefill_16 at position 21 changes kv.0.k, row 16",
    ),
    "padded first chunk": (
        variant(looks_ahead_in_a_padded_first_chunk),
        "prefill_16 at position 0: the rows written into kv.1.k differ",
    ),
    "rows of a batch": (gives_a_batch_the_first_row_s_keys(), "the rows written into kv.0.k"),
}


def edges(report: Report, where: str) -> dict[str, str]:
    return {c.item: c.outcome for c in report.audits["edges"].checks if c.where == where}


@pytest.mark.parametrize("edge", FAULTS)
def test_a_fault_at_an_edge_fails_a_plain_check(edge: str) -> None:
    port, reason = FAULTS[edge]
    report = verify(port, backends=PYTORCH)
    assert {leg.outcome for leg in report.legs.values()} == {PASS}, "the conversation shows it"
    failed = {c.item: c for c in report.audits["edges"].checks if c.outcome == FAIL}
    # The last positions have a last row, too.
    assert set(failed) - {"last positions"} == {edge} - {"last positions"}
    assert reason in failed[edge].reason
    (finding,) = report.findings
    assert (finding.id, finding.leg) == ("audit.edges", "authoring")
    assert report.outcome == FAIL


@pytest.mark.parametrize("port", ["gemma1", "gemma2", "phi2", "openelm", "smollm2"])
@pytest.mark.parametrize(
    "options",
    [{}, {"kv_layout": "transposed", "seed": 1}, {"prefill": (5, 40), "mask_as_input": True}],
)
def test_right_ports_pass_at_all_edges(port: str, options: dict[str, Any]) -> None:
    report = verify(port, backends=PYTORCH, **options)
    assert report.outcome == PASS, report.findings
    found = edges(report, "module")
    none = [item for item, outcome in found.items() if outcome != PASS]
    assert none == (["rows of a batch"] if "kv_layout" in options else [])
    assert ("row beside the window" in found) == (port == "gemma2")


def one_conversation_without_masks(
    self: Any, tokens: Any, input_pos: Any, kv_cache: Any, mask: Any = None, **options: Any
) -> Any:
    assert mask is None and tokens.shape[0] == 1, "takes one conversation, and no mask"  # noqa: PT018
    return LLAMA.forward(self, tokens, input_pos, kv_cache, **options)


def test_a_right_port_that_takes_neither_a_batch_nor_a_mask_passes() -> None:
    report = verify(variant(one_conversation_without_masks), backends=PYTORCH)
    assert report.outcome == PASS, report.findings
    found = {c.item: c.reason for c in report.audits["edges"].checks if c.outcome != PASS}
    assert set(found) == {"rows of a batch", "last positions", "embedding rows"}
    assert {c.outcome for c in report.audits["edges"].checks} == {PASS, NOT_APPLICABLE}
    assert all("takes one conversation, and no mask" in reason for reason in found.values())


@pytest.mark.parametrize(
    ("port", "change"), [("phi2", {"layer_norm_eps": -0.992}), ("smollm2", {"rope_theta": 0})]
)
def test_a_model_that_gives_nan_is_unchecked(
    port: str, change: dict[str, float], tmp_path: Path
) -> None:
    opened = open_checkpoint(None, models.load(port), size="tiny", seed=0)
    (tmp_path / "config.json").write_text(json.dumps({**opened.hf_config, **change}))
    save_file(opened.tensors(), tmp_path / "model.safetensors", {"format": "pt"})
    report = verify(port, checkpoint=tmp_path, backends=PYTORCH)
    assert report.legs["authoring"].outcome == UNCHECKED
    assert report.audits["edges"].outcome == UNCHECKED
    assert report.outcome == UNCHECKED


def raises_at_an_odd_start(
    self: Any, tokens: Any, input_pos: Any, *args: Any, **options: Any
) -> Any:
    if tokens.shape[1] > 1 and int(input_pos[0]) % 16:
        raise ValueError("starts must be multiples of 16")
    return LLAMA.forward(self, tokens, input_pos, *args, **options)


def test_an_edge_that_raises_is_unchecked_with_its_reason() -> None:
    report = verify(variant(raises_at_an_odd_start), backends=PYTORCH)
    (odd,) = report.audits["edges"].odd
    assert (odd.item, odd.outcome) == ("odd chunk start", UNCHECKED)
    assert "starts must be multiples of 16" in odd.reason
    assert report.outcome == UNCHECKED


def test_an_exception_of_the_reference_discards_no_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def raising(*_: object) -> None:
        raise IndexError("index out of range in self")

    monkeypatch.setattr("edgeverify.backends.reference_edges.run", raising)
    report = verify("tinyllama", backends=PYTORCH, cache=tmp_path)
    assert report.legs["authoring"].outcome == PASS
    (odd,) = report.audits["edges"].odd
    assert odd.reason == "not walked: IndexError: index out of range in self"
    assert report.outcome == UNCHECKED


def test_an_edge_without_anything_compared_is_no_pass() -> None:
    step = Step("last cache row", "decode", 1, 95, (1,))
    nothing = Trace(provenance={"changed": {}})
    outcome, reason = outcome_of("last cache row", [step], nothing, {})
    assert (outcome, reason) == (
        UNCHECKED,
        "decode at position 95: nothing of it could be compared",
    )


def longrope(limit: int) -> dict[str, Any]:
    scaling = {"rope_type": "longrope", "original_max_position_embeddings": limit}
    return {"rope_scaling": scaling, "max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({}, sys.maxsize),
        ({"max_position_embeddings": 2048}, 2048),
        (longrope(256), 256),
        ({"rope_parameters": {"full": {"rope_type": "dynamic"}}, "max_position_embeddings": 9}, 9),
        ({"rope_scaling": {"type": "linear", "original_max_position_embeddings": 5}}, sys.maxsize),
    ],
)
def test_how_far_a_rotation_is_the_same_in_every_conversation(
    config: dict[str, Any], positions: int
) -> None:
    assert steady_positions(config) == positions


def test_a_leg_that_fails_is_not_walked() -> None:
    config = models.load("tinyllama").model_config

    def wrong(hf_config: Any) -> Any:
        made = config(hf_config)
        made.block_configs.attn_config.rotary_base = 5000
        return made

    report = verify(replace(models.load("tinyllama"), model_config=wrong), backends=PYTORCH)
    assert report.legs["authoring"].outcome == FAIL
    (check,) = report.audits["edges"].checks
    assert (check.outcome, check.reason) == (UNCHECKED, "not walked: the leg authoring fails")
    assert not any(finding.id.startswith("audit.edges") for finding in report.findings)


def loses_the_last_row_in_the_file(
    self: Any, tokens: Any, input_pos: Any, kv_cache: Any, *args: Any, **options: Any
) -> Any:
    if torch.compiler.is_exporting():
        return never_writes_the_last_row(self, tokens, input_pos, kv_cache, *args, **options)
    return LLAMA.forward(self, tokens, input_pos, kv_cache, *args, **options)


@pytest.mark.slow
def test_a_fault_of_the_file_alone_is_the_conversion_s(tmp_path: Path) -> None:
    report = verify(variant(loses_the_last_row_in_the_file), cache=tmp_path)
    assert {leg.outcome for leg in report.legs.values()} == {PASS}
    assert set(edges(report, "module").values()) == {PASS}
    found = edges(report, "file")
    assert [item for item, outcome in found.items() if outcome == FAIL] == ["last cache row"]
    (finding,) = (f for f in report.findings if f.id == "audit.edges")
    assert finding.leg == "conversion"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("port", "outcome"), [(FAULTS["last positions"][0], FAIL), (models.load("tinyllama"), PASS)]
)
def test_a_file_of_others_is_walked_up_to_its_last_row(
    port: Port, outcome: str, tmp_path: Path
) -> None:
    """Positions in int8 are wrong from 128 on, and the conversation ends long before."""
    opened = open_checkpoint(None, models.load("tinyllama"), size="tiny", seed=0)
    (tmp_path / "config.json").write_text(json.dumps(dict(opened.hf_config)))
    save_file(opened.tensors(), tmp_path / "model.safetensors", {"format": "pt"})
    run, _ = prepare(port, Selectors.of(kv_cache_len=160), verbose=False, progress=None)
    report = verify_artifact(converted(run), checkpoint=tmp_path, port="tinyllama")
    assert report.legs["conversion"].outcome == PASS
    assert edges(report, "file")["last cache row"] == outcome
    assert report.outcome == outcome
