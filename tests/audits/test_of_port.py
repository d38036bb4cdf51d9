"""What a ModelConfig and a module say, field by field."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from litert_torch.generative.layers import attention_utils
from litert_torch.generative.layers import model_config as cfg
from torch import nn

import edgeverify_models as models
from edgeverify.audits.of_hf_config import declared
from edgeverify.audits.of_port import of_config, of_module
from edgeverify_models import CATALOGUE

# What a module does not show: its forward does it, or the config alone has it.
NOT_SHOWN = {"max length", "embedding scale", "final softcap", "rotary base", "rotary scaling",
             "rotary elements", "parallel residual"}  # fmt: skip


def near(value: Any) -> Any:
    return pytest.approx(value, rel=1e-15) if isinstance(value, float) else value


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_right_port_s_config_and_module_say_what_is_declared(
    name: str, loaded: Callable[[str], Any]
) -> None:
    made = loaded(name)
    said = declared(made.hf_config).values
    config, module = of_config(made.model.config), of_module(made.model)
    assert (config.where, config.unread) == ("ModelConfig", {})
    assert (module.where, module.unread) == ("module", {})
    scale = {} if name == "gemma2" else {k: v for k, v in said.items() if k.endswith("query scale")}
    assert config.values == {k: near(v) for k, v in said.items() if k not in scale}
    shown = {k: near(v) for k, v in said.items() if k.rpartition(".")[2] not in NOT_SHOWN}
    assert module.values == shown
    kinds = {key: type(value) for key, value in said.items()}
    assert all(type(value) is kinds[key] for key, value in module.values.items())


def config(**changes: Any) -> Any:
    """TinyLlama's config with other values: ``block1__…`` of the second block's parts."""
    port = models.load("tinyllama")
    made = port.model_config(port.hf_configs["tiny"])
    made.block_configs = [copy.deepcopy(made.block_config(i)) for i in range(made.num_layers)]
    for path, value in changes.items():
        owner: Any = made
        *way, last = path.split("__")
        for part in way:
            owner = owner.block_configs[1] if part == "block1" else getattr(owner, part)
        setattr(owner, last, value)
    return made


def value(field: str, **changes: Any) -> Any:
    return of_config(config(**changes)).values.get(field)


@pytest.mark.parametrize(("factor", "told"), [(None, "none"), (1.0, "none"), (1, "none"), (2, 2.0)])
def test_an_embedding_scale_of_one_is_none(factor: Any, told: Any) -> None:
    assert value("embedding scale", embedding_scale=factor) == told


@pytest.mark.parametrize(
    ("kind", "name", "gated"),
    [
        ("LINEAR", "none", "no"),
        ("SILU", "silu", "no"),
        ("GELU", "gelu", "no"),
        ("GELU_TANH", "gelu (tanh form)", "no"),
        ("GELU_QUICK", "gelu (quick form)", "no"),
        ("RELU", "relu", "no"),
        ("GE_GLU", "gelu", "yes"),
        ("SILU_GLU", "silu", "yes"),
    ],
)
def test_activations_and_gates(kind: str, name: str, gated: str) -> None:
    activation = cfg.ActivationType[kind]
    for form, told in ((cfg.FeedForwardType.SEQUENTIAL, gated), (cfg.FeedForwardType.GATED, "yes")):
        found = of_config(
            config(block1__ff_config__activation__type=activation, block1__ff_config__type=form)
        ).values
        assert (found["blocks.1.activation"], found["blocks.1.gated"]) == (name, told)


def test_an_activation_without_a_name_here_has_its_own() -> None:
    kind = type("Kind", (), {"name": "NEW"})()
    assert value("blocks.1.activation", block1__ff_config__activation__type=kind) == "NEW"


@pytest.mark.parametrize(("groups", "told"), [(None, 4), (0, 4), (2, 2), (1, 1)])
def test_without_groups_there_are_as_many_as_heads(groups: Any, told: int) -> None:
    assert value("blocks.1.key/value heads", block1__attn_config__num_query_groups=groups) == told


@pytest.mark.parametrize(
    ("kind", "size", "told"),
    [("LOCAL_SLIDING", 7, 7), ("LOCAL_SLIDING", None, "none"), ("GLOBAL", 7, "none")],
)
def test_a_window_is_that_of_a_sliding_layer(kind: str, size: Any, told: Any) -> None:
    changes = {
        "block1__attn_config__attn_type": cfg.AttentionType[kind],
        "block1__attn_config__sliding_window_size": size,
    }
    assert value("blocks.1.window", **changes) == told


@pytest.mark.parametrize("name", ["score_scale", "query_scale", "attention_scale", "scale"])
def test_a_scale_of_a_port_s_own_is_read(name: str) -> None:
    assert value("blocks.1.query scale", **{f"block1__attn_config__{name}": 1}) == 1.0
    assert value("blocks.1.query scale") is None


def test_what_a_config_leaves_to_the_port_is_unread() -> None:
    found = of_config(config(build_rope=lambda *_: None))
    assert found.unread == {"rotary scaling": "build_rope is the port's own"}
    assert "rotary scaling" not in found.values
    made = config()
    for block in made.block_configs:
        block.attn_config.rotary_percentage = None
    found = of_config(made)
    assert found.unread == {"rotary elements": "rotary_percentage is None"}
    assert "rotary elements" not in found.values


def test_rotated_elements_are_cut_and_not_rounded() -> None:
    made = config()
    made.block_configs[0].attn_config.rotary_percentage = 0.999  # of 40
    assert of_config(made).values["rotary elements"] == 39


@pytest.mark.parametrize("name", ["final_logit_softcap", "block1__attn_config__logit_softcap"])
def test_a_softcap_of_zero_is_none(name: str) -> None:
    field = "blocks.1.attention softcap" if "block" in name else "final softcap"
    for cap, told in ((None, "none"), (0.0, "none"), (3.0, 3.0)):
        assert value(field, **{name: cap}) == told


KINDS = cfg.NormalizationType


def norm(kind: Any, eps: float = 0.5, centered: bool = False) -> cfg.NormalizationConfig:
    return cfg.NormalizationConfig(type=kind, epsilon=eps, zero_centered=centered)


ROLES = ("attention norm", "attention output norm", "feed-forward norm",
         "feed-forward output norm", "query norm", "key norm")  # fmt: skip


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("own", [None, KINDS.NONE, KINDS.LAYER_NORM])
def test_a_norm_s_role_is_told_by_the_others(own: Any, parallel: bool) -> None:
    changes = {
        "block1__parallel_residual": parallel,
        "block1__pre_attention_norm_config": norm(KINDS.RMS_NORM),
        "block1__post_attention_norm_config": norm(KINDS.GROUP_NORM),
        "block1__ff_config__pre_ff_norm_config": None if own is None else norm(own),
        "block1__ff_config__post_ff_norm_config": norm(KINDS.NONE),
        "block1__attn_config__query_norm_config": norm(KINDS.LAYER_NORM, 0.25, True),
        "block1__attn_config__key_norm_config": None,
    }
    found = of_config(config(**changes)).values
    separate = own == KINDS.LAYER_NORM
    after = "none" if parallel else "GroupNorm"
    expected = dict(zip(ROLES, (
        "RMSNorm", "GroupNorm" if separate else "none", "LayerNorm" if separate else after,
        "none", "LayerNorm", "none"), strict=True))  # fmt: skip
    assert {role: found[f"blocks.1.{role}"] for role in ROLES} == expected
    for role, kind in expected.items():
        assert (f"blocks.1.{role} eps" in found) == (kind != "none")
    assert (found["blocks.1.query norm eps"], found["blocks.1.query norm factor"]) == (
        0.25, "1 + weight",
    )  # fmt: skip
    assert (found["blocks.1.attention norm eps"], found["blocks.1.attention norm factor"]) == (
        0.5, "weight",
    )  # fmt: skip
    assert found["blocks.1.parallel residual"] == ("yes" if parallel else "no")


@pytest.mark.parametrize("lost", ["absent", "no weight", "not a matrix"])
def test_a_module_without_a_table_is_unread_in_what_it_tells(
    lost: str, loaded: Callable[[str], Any]
) -> None:
    model = loaded("tinyllama").model
    del model.tok_embedding
    if lost != "absent":
        model.tok_embedding = nn.Identity()
    if lost == "not a matrix":
        model.tok_embedding.weight = nn.Parameter(torch.zeros(3))
    found = of_module(model)
    assert found.unread == {
        "vocabulary": "the model has no tok_embedding",
        "width": "the model has no tok_embedding",
        "head bias": "the model has no lm_head",
        "tied head": "the model has no lm_head",
    }
    assert not found.unread.keys() & found.values.keys()


def test_a_module_without_a_head_is_unread_in_what_it_tells(loaded: Callable[[str], Any]) -> None:
    model = loaded("tinyllama").model
    del model.lm_head
    found = of_module(model)
    reason = "the model has no lm_head"
    assert found.unread == {"head bias": reason, "tied head": reason}
    assert (found.values["vocabulary"], found.values["width"]) == (331, 96)


def test_a_head_is_tied_where_it_is_the_table(loaded: Callable[[str], Any]) -> None:
    model = loaded("smollm").model
    assert of_module(model).values["tied head"] == "yes"
    table = model.tok_embedding.weight
    for other in (table.clone(), table[:5]):
        model.lm_head.weight = nn.Parameter(other, requires_grad=False)
        assert of_module(model).values["tied head"] == "no"


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("atten_func", {"heads", "key/value heads", "head_dim", "attention norm"}),
        ("ff", {"feed-forward width", "activation", "gated", "attention norm"}),
        ("pre_atten_norm", {"attention norm"}),
    ],
)
def test_a_block_of_the_user_s_own_is_unread_in_what_it_lacks(
    part: str, fields: set[str], loaded: Callable[[str], Any]
) -> None:
    model = loaded("tinyllama").model
    delattr(model.transformer_blocks[1], part)
    found = of_module(model)
    assert found.unread.keys() == {f"blocks.1.{field}" for field in fields}
    for reason in found.unread.values():
        assert reason.startswith("not read: AttributeError: ")
        assert f"'{part}'" in reason


def test_a_block_that_says_nothing_of_it_is_sequential(loaded: Callable[[str], Any]) -> None:
    model = loaded("tinyllama").model
    del model.transformer_blocks[1].config
    found = of_module(model)
    assert found.unread == {}
    assert found.values["blocks.1.feed-forward norm"] == "RMSNorm"


def test_windows_are_those_of_the_masks_a_layer_takes(loaded: Callable[[str], Any]) -> None:
    model = loaded("gemma2").model
    found = of_module(model).values
    assert [found[f"blocks.{i}.window"] for i in range(4)] == [13, "none", 13, "none"]
    model.mask_cache = attention_utils.build_sliding_window_mask_cache(40, 7)
    found = of_module(model).values
    assert [found[f"blocks.{i}.window"] for i in range(4)] == [7] * 4
    model.mask_cache = {"local": torch.zeros(1, 1, 3, 3)}
    found_all = of_module(model)
    assert found_all.unread.keys() == {"blocks.1.window", "blocks.3.window"}
    assert found_all.unread["blocks.1.window"] == "not read: KeyError: 'global'"
    model.mask_cache = None
    found_all = of_module(model)
    assert found_all.unread == {}
    assert not [key for key in found_all.values if key.endswith("window")]


def test_a_stock_attention_scales_by_the_root_and_another_says_how(
    loaded: Callable[[str], Any],
) -> None:
    model = loaded("tinyllama").model
    attention = model.transformer_blocks[1].atten_func
    assert of_module(model).values["blocks.1.query scale"] == 40**-0.5

    class Own(type(attention)):  # type: ignore[misc]
        def forward(self, *arguments: Any, **named: Any) -> Any:
            return super().forward(*arguments, **named)

    attention.__class__ = Own
    found = of_module(model)
    why = "no score_scale or query_scale or attention_scale or scale in the attention's config"
    assert found.unread == {"blocks.1.query scale": why}
    attention.config = copy.copy(attention.config)
    attention.config.score_scale = 2
    assert of_module(model).values["blocks.1.query scale"] == 2.0


def test_heads_and_groups_are_told_by_rows(loaded: Callable[[str], Any]) -> None:
    model = loaded("tinyllama").model
    attention = model.transformer_blocks[1].atten_func
    attention.output_projection = nn.Linear(6 * 40, 96)
    attention.qkv_projection = nn.Linear(96, (6 + 2 * 3) * 40)
    found = of_module(model).values
    fields = ("heads", "key/value heads", "qkv bias", "attention output bias")
    assert [found[f"blocks.1.{field}"] for field in fields] == [6, 3, "yes", "yes"]


def test_a_gate_is_a_third_projection_or_half_of_the_first(loaded: Callable[[str], Any]) -> None:
    model = loaded("tinyllama").model
    inner = model.transformer_blocks[1].ff
    inner.w1 = nn.Linear(96, 10)
    assert of_module(model).values["blocks.1.feed-forward bias"] == "some"
    model.transformer_blocks[2].ff.w2 = nn.Linear(160, 96)
    assert of_module(model).values["blocks.2.feed-forward bias"] == "some"
    del inner.w3
    found = of_module(model).values
    assert (found["blocks.1.gated"], found["blocks.1.activation"]) == ("no", "silu")
    inner.act = lambda x: nn.functional.relu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]
    found = of_module(model).values
    assert (found["blocks.1.gated"], found["blocks.1.activation"]) == ("yes", "relu")


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_a_module_s_norms_have_the_same_roles(
    own: bool, parallel: bool, loaded: Callable[[str], Any]
) -> None:
    model = loaded("tinyllama").model
    block = model.transformer_blocks[1]
    block.post_atten_norm = nn.LayerNorm(96)
    if own:
        block.ff.pre_ff_norm = nn.RMSNorm(96, eps=0.25)
    block.config = copy.copy(block.config)
    block.config.parallel_residual = parallel
    block.atten_func.query_norm = nn.LayerNorm(40)
    found = of_module(model).values
    after = "none" if parallel else "LayerNorm"
    expected = ("RMSNorm", "LayerNorm" if own else "none", "RMSNorm" if own else after,
                "none", "LayerNorm", "none")  # fmt: skip
    assert tuple(found[f"blocks.1.{role}"] for role in ROLES) == expected
    if own:
        assert found["blocks.1.feed-forward norm eps"] == 0.25
