"""Each field of the config, mapped wrongly, is caught by its name, and nothing else is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from litert_torch.generative.layers import attention_utils
from litert_torch.generative.layers import model_config as cfg
from torch import nn

import edgeverify_models as models
from edgeverify.audits.config import audit_config, audit_mask_inputs
from edgeverify.audits.model import Readings
from edgeverify.audits.of_hf_config import declared
from edgeverify.audits.of_port import of_config, of_module
from edgeverify.core.results import (
    CONFIG,
    FAIL,
    NOT_APPLICABLE,
    PASS,
    UNCHECKED,
    AuditResult,
    Check,
)
from edgeverify_models import CATALOGUE

ROWS = 40


def audited(hf_config: Any, *found: Readings) -> AuditResult:
    return audit_config(declared(hf_config), found, rows=ROWS)


def failing(audit: AuditResult) -> list[str]:
    return [check.item for check in audit.checks if check.outcome == FAIL]


def tiny(name: str) -> tuple[Any, Any]:
    """The HF config, and a ``ModelConfig`` whose every part may be changed."""
    port = models.load(name)
    config = port.model_config(port.hf_configs["tiny"])
    blocks = [copy.deepcopy(config.block_config(i)) for i in range(config.num_layers)]
    config.block_configs = blocks
    config.final_norm_config = copy.deepcopy(config.final_norm_config)
    return port.hf_configs["tiny"], config


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_right_port_passes_every_field(name: str, loaded: Callable[[str], Any]) -> None:
    made = loaded(name)
    audit = audited(made.hf_config, of_config(made.model.config), of_module(made.model))
    assert audit.odd == ()
    assert audit.outcome == PASS
    assert {check.outcome for check in audit.checks} == {PASS, NOT_APPLICABLE}
    # Every field that was declared was held against something.
    fields = {key.rpartition(".")[2] for key in declared(made.hf_config).values}
    assert {check.item for check in audit.checks} == fields


# field → port, what is set in the whole config (or in block 1 alone, if it begins with ".")
WRONG = {
    "vocabulary": ("tinyllama", "vocab_size", 332),
    "width": ("tinyllama", "embedding_dim", 95),
    "max length": ("phi2", "max_seq_len", 273),
    "embedding scale": ("gemma1", "embedding_scale", 9.797958971132713 + 4e-15),
    "final softcap": ("gemma2", "final_logit_softcap", 1.7000000000000002),
    "tied head": ("smollm", "lm_head_share_weight_with_embedding", False),
    "head bias": ("phi2", "lm_head_use_bias", False),
    "final norm": ("phi2", "final_norm_config.type", cfg.NormalizationType.RMS_NORM),
    "final norm eps": ("openelm", "final_norm_config.epsilon", 9.000000000000001e-3),
    "final norm factor": ("gemma1", "final_norm_config.zero_centered", False),
    "rotary base": ("smollm", "block_configs[0].attn_config.rotary_base", 5300.000000000001),
    "rotary elements": ("phi2", "block_configs[0].attn_config.rotary_percentage", 0.42 / 1.01),
    "heads": ("openelm", ".attn_config.num_heads", 5),
    "key/value heads": ("openelm", ".attn_config.num_query_groups", 2),
    "head_dim": ("tinyllama", ".attn_config.head_dim", 24),
    "feed-forward width": ("openelm", ".ff_config.intermediate_size", 64),
    "activation": ("gemma1", ".ff_config.activation.type", cfg.ActivationType.GELU),
    "gated": ("tinyllama", ".ff_config.type", cfg.FeedForwardType.SEQUENTIAL),
    "qkv bias": ("phi2", ".attn_config.qkv_use_bias", False),
    "attention output bias": ("phi2", ".attn_config.output_proj_use_bias", False),
    "feed-forward bias": ("phi2", ".ff_config.use_bias", False),
    "attention softcap": ("gemma2", ".attn_config.logit_softcap", None),
    "query scale": ("gemma2", ".attn_config.score_scale", 0.2085144140570748 + 6e-17),
    "attention norm": (
        "tinyllama",
        ".pre_attention_norm_config.type",
        cfg.NormalizationType.LAYER_NORM,
    ),
    "attention norm eps": ("gemma2", ".pre_attention_norm_config.epsilon", 4.000000000000001e-3),
    "attention norm factor": ("gemma2", ".pre_attention_norm_config.zero_centered", False),
    "attention output norm eps": ("gemma2", ".post_attention_norm_config.epsilon", 1e-6),
    "feed-forward norm": (
        "tinyllama",
        ".post_attention_norm_config.type",
        cfg.NormalizationType.NONE,
    ),
    "feed-forward norm eps": ("smollm2", ".post_attention_norm_config.epsilon", 1e-5),
    "feed-forward output norm eps": ("gemma2", ".ff_config.post_ff_norm_config.epsilon", 1e-6),
    "query norm": ("openelm", ".attn_config.query_norm_config.type", cfg.NormalizationType.NONE),
    "key norm eps": ("openelm", ".attn_config.key_norm_config.epsilon", 1e-6),
}


def set_deep(owner: Any, path: str, value: Any) -> None:
    """Sets one attribute; what several parts of a config share is copied on the way."""
    *way, last = path.replace("[0]", ".0").split(".")
    for part in way:
        if part.isdigit():
            owner = owner[int(part)]
        else:
            setattr(owner, part, copy.copy(getattr(owner, part)))
            owner = getattr(owner, part)
    setattr(owner, last, value)


@pytest.mark.parametrize("field", WRONG)
def test_a_wrongly_mapped_field_is_named(field: str) -> None:
    port, path, value = WRONG[field]
    hf_config, config = tiny(port)
    if path.startswith("."):
        set_deep(config.block_configs[1], path[1:], value)
    else:
        set_deep(config, path, value)
    audit = audited(hf_config, of_config(config))
    assert failing(audit) == [field]
    (check,) = [check for check in audit.checks if check.outcome == FAIL]
    assert check.where == "ModelConfig" + (", block 1" if path.startswith(".") else "")
    assert check.expected != check.found


@pytest.mark.parametrize(("block", "window"), [(0, 14), (2, None), (3, 13)])
def test_a_wrong_window_is_named_with_its_layer(block: int, window: int | None) -> None:
    hf_config, config = tiny("gemma2")
    attention = config.block_configs[block].attn_config
    attention.sliding_window_size = window
    attention.attn_type = cfg.AttentionType.LOCAL_SLIDING if window else cfg.AttentionType.GLOBAL
    audit = audited(hf_config, of_config(config))
    (check,) = [check for check in audit.checks if check.outcome == FAIL]
    assert (check.item, check.where) == ("window", f"ModelConfig, block {block}")
    assert (check.expected, check.found) == ("none" if block == 3 else "13", str(window).lower())


def test_a_block_too_few_is_told_by_the_number_of_layers() -> None:
    hf_config, config = tiny("smollm2")
    config.num_layers = 3
    assert failing(audited(hf_config, of_config(config))) == ["layers"]


def test_parallel_instead_of_sequential_is_named() -> None:
    hf_config, config = tiny("phi2")
    for block in config.block_configs:
        block.parallel_residual = False
    assert failing(audited(hf_config, of_config(config))) == ["parallel residual"]


def test_formulas_may_differ_by_one_unit_in_the_last_place_and_no_more() -> None:
    hf_config, config = tiny("gemma2")
    right = config.block_configs[0].attn_config.score_scale
    once = float(np.nextafter(right, 1.0))
    for value, wrong in ((once, []), (float(np.nextafter(once, 1.0)), ["query scale"])):
        for block in config.block_configs:
            block.attn_config.score_scale = value
        assert failing(audited(hf_config, of_config(config))) == wrong


# field → port, and what is done to block 1 of the built module
def other_eps(block: Any) -> None:
    block.pre_atten_norm.eps = 1e-6


def other_factor(block: Any) -> None:
    block.pre_atten_norm.zero_centered_gamma = False


def other_activation(block: Any) -> None:
    block.ff.act = nn.functional.gelu


def narrow(block: Any) -> None:
    block.ff.w2 = nn.Linear(10, 96, bias=False)


def with_bias(block: Any) -> None:
    block.atten_func.output_projection = nn.Linear(160, 96, bias=True)


def fewer_heads(block: Any) -> None:
    block.atten_func.output_projection = nn.Linear(120, 96, bias=False)


def no_query_norm(block: Any) -> None:
    del block.atten_func._modules["query_norm"]
    block.atten_func.query_norm = lambda x: x  # as the Generative API builds none


def other_scale(block: Any) -> None:
    block.atten_func.config = copy.copy(block.atten_func.config)
    block.atten_func.config.score_scale = 40**-0.5


MODULE = {
    "attention norm eps": ("tinyllama", other_eps),
    "attention norm factor": ("gemma1", other_factor),
    "activation": ("gemma1", other_activation),
    "feed-forward width": ("tinyllama", narrow),
    "attention output bias": ("tinyllama", with_bias),
    "query scale": ("gemma2", other_scale),
}


@pytest.mark.parametrize("field", MODULE)
def test_a_module_that_ignores_its_config_is_named(
    field: str, loaded: Callable[[str], Any]
) -> None:
    port, change = MODULE[field]
    made = loaded(port)
    change(made.model.transformer_blocks[1])
    audit = audited(made.hf_config, of_config(made.model.config), of_module(made.model))
    wrong = [check for check in audit.checks if check.outcome == FAIL]
    assert [(check.item, check.where) for check in wrong] == [(field, "module, block 1")]


def test_heads_are_told_by_the_module_s_shapes(loaded: Callable[[str], Any]) -> None:
    made = loaded("tinyllama")
    fewer_heads(made.model.transformer_blocks[2])
    audit = audited(made.hf_config, of_config(made.model.config), of_module(made.model))
    assert "heads" in failing(audit)


def test_a_norm_that_was_left_out_is_named(loaded: Callable[[str], Any]) -> None:
    made = loaded("openelm")
    no_query_norm(made.model.transformer_blocks[1])
    audit = audited(made.hf_config, of_config(made.model.config), of_module(made.model))
    assert failing(audit) == ["query norm"]


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (attention_utils.build_sliding_window_mask_cache(ROWS, 12), "12"),
        (attention_utils.build_causal_mask_cache(ROWS), "none"),
        (
            attention_utils.build_causal_mask_cache(ROWS).roll(1, 2),
            "a pattern that is no causal window",
        ),
        (attention_utils.build_causal_mask_cache(ROWS) * 0 + 1, "values other than 0 and -inf"),
    ],
)
def test_the_masks_themselves_are_read(
    mask: torch.Tensor, found: str, loaded: Callable[[str], Any]
) -> None:
    made = loaded("gemma2")
    made.model.mask_cache["local"] = torch.nan_to_num(mask, nan=1.0, neginf=float("-inf"))
    audit = audited(made.hf_config, of_config(made.model.config), of_module(made.model))
    (check,) = [check for check in audit.checks if check.outcome == FAIL]
    assert (check.item, check.where) == ("window", "module, blocks 0, 2")
    assert (check.expected, check.found) == ("13", found)


def test_a_window_longer_than_the_masks_cannot_be_seen_and_is_no_fault(
    loaded: Callable[[str], Any],
) -> None:
    hf_config, config = tiny("gemma2")
    made = loaded("gemma2")
    wide = {**hf_config, "sliding_window": 64}
    for block in config.block_configs[::2]:
        block.attn_config.sliding_window_size = 64
    made.model.mask_cache["local"] = attention_utils.build_causal_mask_cache(ROWS)
    assert audited(wide, of_config(config), of_module(made.model)).outcome == PASS


def test_one_mask_input_for_layers_of_two_kinds_is_a_fault() -> None:
    said = declared(tiny("gemma2")[0])
    check = audit_mask_inputs(said, ("global",)).checks[0]
    assert (check.item, check.where) == ("window", "mask inputs")
    assert (check.outcome, check.expected, check.found) == (FAIL, "global, local", "global")
    assert check.reason == "one mask for all layers drops the window of the local ones"
    (check,) = audit_mask_inputs(said, ("global", "local")).checks
    assert (check.outcome, check.found, check.reason) == (PASS, "global, local", "")
    llama = audit_mask_inputs(declared(tiny("tinyllama")[0]), ("global",))
    assert llama.name == CONFIG
    assert llama.checks == (Check("window", "mask inputs", NOT_APPLICABLE, "none", "none"),)


def test_where_all_layers_have_a_window_one_mask_with_it_is_enough() -> None:
    said = Readings("config", {f"blocks.{i}.window": 4096 for i in (0, 1)})
    assert audit_mask_inputs(said, ("local",)).outcome == PASS
    assert audit_mask_inputs(said, ("global",)).outcome == FAIL


def test_what_cannot_be_read_is_unchecked_with_its_reason(loaded: Callable[[str], Any]) -> None:
    class Own(nn.Module):
        """A norm without an epsilon that anybody could find."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(96))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 5e-3) * self.weight

    made = loaded("tinyllama")
    made.model.final_norm = Own()
    audit = audited(made.hf_config, of_config(made.model.config), of_module(made.model))
    assert audit.outcome == UNCHECKED
    (check,) = audit.odd
    assert (check.item, check.where, check.reason) == ("final norm eps", "module", "Own has no eps")


def test_blocks_of_the_user_s_own_are_unchecked_and_not_passed(
    loaded: Callable[[str], Any],
) -> None:
    made = loaded("tinyllama")
    del made.model.transformer_blocks[1].atten_func
    audit = audited(made.hf_config, of_config(made.model.config), of_module(made.model))
    assert {check.item for check in audit.odd} >= {"heads", "key/value heads", "head_dim"}
    assert all("block 1" in check.where for check in audit.odd)
    assert audit.outcome == UNCHECKED


def test_defaults_are_those_of_transformers_config_class() -> None:
    bare = {k: v for k, v in tiny("tinyllama")[0].items() if k not in ("rms_norm_eps", "head_dim")}
    said = declared(bare).values
    assert said["final norm eps"] == 1e-6
    assert said["blocks.0.head_dim"] == 24


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "vocab_size": 101,
}


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("mistral", "window", 4096),  # of all layers, by the config class's default
        ("qwen2", "qkv bias", "yes"),  # which its config does not mention
        ("qwen2", "attention output bias", "no"),
        ("qwen3", "query norm", "RMSNorm"),
        ("olmo2", "attention norm", "none"),
        ("olmo2", "attention output norm", "RMSNorm"),
        ("olmo2", "parallel residual", "no"),
        ("stablelm", "feed-forward norm", "LayerNorm"),
    ],
)
def test_other_families_are_read_from_transformers_own_modules(
    family: str, field: str, value: Any
) -> None:
    said = declared({**SMALL, "model_type": family})
    assert said.values[f"blocks.1.{field}"] == value


def held(
    said: dict[str, Any], *found: Readings, unread: dict[str, str] | None = None, **options: Any
) -> tuple[Check, ...]:
    """The checks of made-up readings."""
    readings = Readings("config", said, unread or {})
    return audit_config(readings, found, **options).checks


def test_each_place_is_held_by_itself_and_names_the_blocks_that_differ() -> None:
    said = {f"blocks.{i}.heads": 4 for i in range(4)}
    config = Readings("ModelConfig", dict(said))
    module = Readings("module", {**said, "blocks.1.heads": 5, "blocks.3.heads": 5})
    file = Readings("file", {**said, "blocks.2.heads": 6})
    assert held(said, config, module, file) == (
        Check("heads", "ModelConfig", PASS, "4", "4"),
        Check("heads", "module, blocks 0, 2", PASS, "4", "4"),
        Check("heads", "module, blocks 1, 3", FAIL, "4", "5"),
        Check("heads", "file, blocks 0, 1, 3", PASS, "4", "4"),
        Check("heads", "file, block 2", FAIL, "4", "6"),
    )


def test_what_one_place_cannot_show_another_may() -> None:
    said, unread = {"final norm eps": 1e-05}, Readings("module", {}, {"final norm eps": "no eps"})
    unchecked = Check("final norm eps", "module", UNCHECKED, "1e-05", "", "no eps")
    assert held(said, unread) == (unchecked,)
    # The ModelConfig is what was meant; only what was built shows it.
    config = Readings("ModelConfig", dict(said))
    assert held(said, config, unread) == (
        Check("final norm eps", "ModelConfig", PASS, "1e-05", "1e-05"),
        unchecked,
    )
    for where in ("file", "module"):
        (check,) = held(said, unread, Readings(where, {"final norm eps": 1.1e-05}))[:1]
        assert (check.outcome, check.where, check.found) == (FAIL, where, "1.1e-05")


def test_what_nothing_shows_is_unchecked_unless_there_is_nothing_to_show() -> None:
    module = Readings("module", {"width": 64})
    assert held({"width": 64, "final softcap": 30.0, "window": "none"}, module) == (
        Check("width", "module", PASS, "64", "64"),
        Check("final softcap", "", UNCHECKED, reason="nothing that was built shows it"),
    )


def test_what_the_config_does_not_tell_is_unchecked_with_its_reason() -> None:
    module = Readings("module", {"activation": "gelu"})
    assert held({}, module, unread={"activation": "set in code"}) == (
        Check("activation", "module", UNCHECKED, "", "gelu", "set in code"),
    )


@pytest.mark.parametrize("where", ["module", "file"])
@pytest.mark.parametrize(
    ("window", "rows", "found", "outcome", "expected"),
    [
        (13, 14, 13, PASS, "13"),
        (13, 14, "none", FAIL, "13"),
        (13, 13, "none", NOT_APPLICABLE, "none"),
        (13, None, "none", FAIL, "13"),
        ("none", 14, "none", NOT_APPLICABLE, "none"),
        ("none", 14, 13, FAIL, "none"),
    ],
)
def test_a_window_is_held_as_far_as_the_masks_rows_can_show_it(
    where: str, window: Any, rows: int | None, found: Any, outcome: str, expected: str
) -> None:
    (check,) = held({"window": window}, Readings(where, {"window": found}), rows=rows)
    assert check == Check("window", where, outcome, expected, str(found))


def test_the_modelconfig_is_held_against_the_window_itself() -> None:
    (check,) = held({"window": 64}, Readings("ModelConfig", {"window": "none"}), rows=40)
    assert (check.outcome, check.expected) == (FAIL, "64")


@pytest.mark.parametrize(
    ("field", "where", "ulps", "outcome"),
    [
        ("query scale", "file", 1, PASS),
        ("query scale", "file", 2, FAIL),
        ("embedding scale", "file", -1, PASS),
        ("rotary base", "file", 0, PASS),
        ("rotary base", "file", 1, FAIL),
    ],
)
def test_a_file_is_held_in_float32(field: str, where: str, ulps: int, outcome: str) -> None:
    said = 40**-0.5  # which float32 does not hold
    found = np.float32(said)
    for _ in range(abs(ulps)):
        found = np.nextafter(found, np.float32(np.sign(ulps)))
    (check,) = held({field: said}, Readings(where, {field: found}))
    assert (check.outcome, check.found) == (outcome, repr(float(found)))
    (check,) = held({field: said}, Readings("module", {field: float(found)}))
    assert check.outcome == FAIL  # a module holds it in full


def test_an_integer_is_held_exactly_in_a_file_too() -> None:
    said, found = 2**24 + 1, 2**24  # one float32
    (check,) = held({"vocabulary": said}, Readings("file", {"vocabulary": found}))
    assert (check.outcome, check.expected, check.found) == (FAIL, str(said), str(found))


def test_what_neither_side_tells_has_no_values() -> None:
    unread = {"activation": "set in code"}
    assert held({}, Readings("module"), unread=unread) == ()
    assert held({}, Readings("module", {}, {"activation": "Own"}), unread=unread) == (
        Check("activation", "module", UNCHECKED, "", "", "Own"),
    )
    assert audit_config(Readings("config"), []).name == CONFIG
