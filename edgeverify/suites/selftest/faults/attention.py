"""Faults of the attention itself: projections, scale, softcap, order of heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from litert_torch.generative.layers import scaled_dot_product_attention as sdpa

from edgeverify.suites.selftest.faults.fault import Faults
from edgeverify.suites.selftest.faults.port_changes import (
    Function,
    in_bfloat16,
    tensor,
    with_block_configs,
    with_blocks,
    with_config,
    with_function,
    with_qkv,
    with_scaled,
)
from edgeverify.suites.selftest.faults.ports import (
    ALL_BUT_GEMMA2,
    GATED,
    LLAMA,
    ONE_RESIDUAL_NORM,
)
from edgeverify_models.port import Port

Q, K = "blocks.*.attn.q", "blocks.*.attn.k"
OUT = "blocks.*.attn.out"
FAULTS = Faults("attention", where=OUT)
TRANSPOSED = {"kv_layout": "transposed"}
OUTPUT_PROJECTION = "transformer_blocks.1.atten_func.output_projection"
# Their functions are ``change(kernel, q, k, v, head_dim, mask=..., ...)`` instead of ``kernel``.
with_kernel = partial(with_function, owner=sdpa, name="scaled_dot_product_attention_with_hlfb")
with_transposed_kernel = partial(
    with_function, owner=sdpa, name="scaled_dot_product_attention_transposed"
)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    given: Mapping[str, Any],
    *,
    cap_last: bool = False,
    softmax: Function = torch.softmax,
) -> torch.Tensor:
    """Attention written out: q (B, T, N, H), k and v (B, S, K, H) → (B, T, N, H).

    Args:
        q, k, v: as the Generative API's kernels take them.
        given: their ``mask``, ``scale`` and ``softcap``.
        cap_last: cap the masked scores, which is wrong.
        softmax: another function of (scores, dim).
    """
    repeats = q.shape[2] // k.shape[2]
    keys = k.repeat_interleave(repeats, dim=2).permute(0, 2, 3, 1)
    values = v.repeat_interleave(repeats, dim=2).transpose(1, 2)
    softcap = given.get("softcap")
    scores = q.transpose(1, 2) @ keys * given["scale"]
    if softcap is not None and not cap_last:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + given["mask"]
    if softcap is not None and cap_last:
        scores = torch.tanh(scores / softcap) * softcap
    return (softmax(scores, -1) @ values).transpose(1, 2)


def with_own_kernel(port: Port, **options: Any) -> Port:
    """Attention is ``_attend`` with ``options``; the library's kernel runs for its tap of q."""

    def attended(kernel: Function, q: Any, k: Any, v: Any, size: int, **given: Any) -> Any:
        kernel(q, k, v, size, **given)
        scale = given.get("scale") or size**-0.5
        return _attend(q, k, v, {**given, "scale": scale}, **options)

    return with_kernel(port, attended)


def with_softmax(port: Port, softmax: Function) -> Port:
    """Its softmax is another function of (scores, dim)."""
    return with_own_kernel(port, softmax=softmax)


def _with_scores(port: Port, change: Callable[[dict[str, Any]], None]) -> Port:
    """The kernel's keyword arguments are changed; the scale is always among them."""

    def changed(kernel: Function, q: Any, k: Any, v: Any, size: int, **given: Any) -> Any:
        given["scale"] = given.get("scale") or size**-0.5
        change(given)
        return kernel(q, k, v, size, **given)

    return with_kernel(port, changed)


_softcap_fault = partial(FAULTS.add, ports="gemma2", kinds="attention.softcap")
_scale_fault = partial(FAULTS.add, kinds="attention.scale")


@_scale_fault("score scale off by 0.1 %", via=_with_scores)
def score_scale_off_by_a_thousandth(given: dict[str, Any]) -> None:
    """The scale of the scores is 0.1 % too large."""
    given["scale"] *= 1.001


@_scale_fault("score scale left out", via=_with_scores)
def score_scale_left_out(given: dict[str, Any]) -> None:
    """The scores are not scaled."""
    given["scale"] = 1.0


@_scale_fault(
    "score scale applied twice", via=_with_scores, source="litert-torch c0cabe1 → 44d4487"
)
def score_scale_applied_twice(given: dict[str, Any]) -> None:
    """The scale is applied to q in place and once more by the kernel."""
    given["scale"] **= 2


@_scale_fault("score scale of hidden_size / heads", ports=GATED)
def score_scale_of_hidden_over_heads(port: Port) -> Port:
    """The scale is that of hidden_size / heads, where head_dim is another number."""
    hf = port.hf_configs["tiny"]
    width = hf["hidden_size"] // hf["num_attention_heads"]
    return _with_scores(port, lambda given: given.update(scale=width**-0.5))


@_scale_fault("score scale of head_dim", ports="gemma2")
def score_scale_of_head_dim(port: Port) -> Port:
    """query_pre_attn_scalar is overlooked; the scale is head_dim ** -0.5."""
    return with_config(port, query_pre_attn_scalar=port.hf_configs["tiny"]["head_dim"])


@_scale_fault("score scale off by 0.1 %", ports="gemma2")
def query_pre_attn_scalar_off(port: Port) -> Port:
    """query_pre_attn_scalar is 0.2 % too small, the scale 0.1 % too large."""
    return with_scaled(port, 1.001**-2, "query_pre_attn_scalar")


@_softcap_fault("score softcap left out", via=_with_scores, source="litert-torch dad940b → c0cabe1")
def score_softcap_left_out(given: dict[str, Any]) -> None:
    """The scores are not capped."""
    given["softcap"] = None


@_softcap_fault("score softcap 50")
def score_softcap_of_the_config_class(port: Port) -> Port:
    """The cap is 50, the default of transformers' Gemma2Config."""
    return with_config(port, attn_logit_softcapping=50.0)


@_softcap_fault("score softcap before the scale", via=_with_scores)
def score_softcap_before_the_scale(given: dict[str, Any]) -> None:
    """The cap bites at another height, as if the scale came after it.

    cap · tanh(s · scale / cap) becomes scale · cap · tanh(s / cap).
    """
    given["softcap"] = given["softcap"] / given["scale"] ** 0.5


@FAULTS.add("score softcap behind the mask", ports="gemma2")
def score_softcap_behind_the_mask(port: Port) -> Port:
    """Masked scores are capped, too: -inf becomes -cap, and the future is seen."""
    return with_own_kernel(port, cap_last=True)


@FAULTS.add(
    "score softcap added", via=_with_scores, ports=ALL_BUT_GEMMA2, kinds="attention.softcap"
)
def score_softcap_where_there_is_none(given: dict[str, Any]) -> None:
    """Scores are capped in a family that does not."""
    given["softcap"] = 2.0


@FAULTS.add("softmax in bfloat16", via=with_softmax)
def softmax_in_bfloat16(scores: torch.Tensor, dim: int) -> torch.Tensor:
    """The softmax is computed in bfloat16."""
    return torch.softmax(scores.bfloat16(), dim).float()


@FAULTS.add("KV heads repeated in the wrong order", via=with_kernel, kinds="attention.groups")
def kv_heads_repeated_in_turn(
    kernel: Function, q: Any, k: Any, v: Any, *args: Any, **given: Any
) -> Any:
    """KV heads are repeated as 0 1 0 1 (repeat) instead of 0 0 1 1.

    Head n reads group n mod K (``repeat``), not n // (N / K) (``repeat_interleave``).
    """
    repeats = q.shape[2] // k.shape[2]
    return kernel(q, k.repeat(1, 1, repeats, 1), v.repeat(1, 1, repeats, 1), *args, **given)


@FAULTS.add("heads joined in the wrong order", via=with_kernel, kinds="attention.heads")
def heads_joined_in_reverse(kernel: Function, *args: Any, **given: Any) -> Any:
    """The heads' outputs are joined in the reverse order."""
    return kernel(*args, **given).flip(2)


@FAULTS.add(
    "heads and elements exchanged",
    via=partial(with_kernel, blocks=(1,)),
    where="blocks.1.attn.out",
    kinds="attention.heads",
)
def heads_joined_element_by_element(kernel: Function, *args: Any, **given: Any) -> Any:
    """The heads' outputs are joined as (H, N) instead of (N, H), in block 1."""
    out = kernel(*args, **given)
    return out.transpose(2, 3).reshape(out.shape)


@FAULTS.add(
    "query heads folded in the wrong order",
    via=with_transposed_kernel,
    where=Q,
    selectors=TRANSPOSED,
)
def heads_of_a_group_folded_in_turn(kernel: Function, query: Any, *args: Any, **given: Any) -> Any:
    """Transposed layout: a group's rows are folded as (T, G) instead of (G, T)."""
    rows = given["mask"].shape[2]
    one, groups, both, dim = query.shape
    turned = query.reshape(one, groups, both // rows, rows, dim).transpose(2, 3)
    return kernel(turned.reshape(query.shape), *args, **given)


@FAULTS.add(
    "k and v exchanged",
    via=with_qkv,
    where=K,
    kinds="weight",
    source="litert-torch 50f279c → d135da4",
)
def qkv_split_as_q_v_k(q: Any, k: Any, v: Any) -> Any:
    """The fused matrix is split in another order than it was joined."""
    return q, v, k


@FAULTS.add(
    "fused qkv read as interleaved",
    via=with_block_configs,
    ports=(*LLAMA, "gemma1", "phi2"),  # the blocks that take the API's attention as it is
    where=Q,
    kinds="qkv.order",
    source="litert-torch 50f279c → d135da4, mlx-examples #719",
)
def qkv_split_by_group(block: Any) -> None:
    """Blocks of q, k and v are split as if each group had its own."""
    block.attn_config.qkv_transpose_before_split = False


@FAULTS.add(
    "fused qkv joined as interleaved",
    via=with_qkv,
    where=Q,
    kinds="weight",
    source="mlx-examples #719",
)
def qkv_joined_by_group(q: Any, k: Any, v: Any) -> Any:
    """q, k and v are joined by groups of heads, and split as blocks.

    In two halves of their groups, one half behind the other.
    """
    parts = (part.tensor_split(2) for part in (q, k, v))
    return [half for halves in zip(*parts, strict=True) for half in halves]


@FAULTS.add("query heads in the wrong order", where=Q, kinds="weight")
def query_heads_rolled(port: Port) -> Port:
    """The rows of q belong to the next head."""
    dim = port.hf_configs["tiny"].get("head_dim", 24)
    return with_qkv(port, lambda q, k, v: (q.roll(dim, 0), k, v))


@FAULTS.add(
    "qkv bias left out",
    via=tensor("transformer_blocks.1.atten_func.qkv_projection.bias"),
    ports="phi2",
    where="blocks.1.attn.q",
    kinds="bias",
    source="litert-torch 19a168c",
)
def qkv_bias_dropped(bias: torch.Tensor) -> torch.Tensor:
    """Block 1's bias of q, k and v is zero."""
    return torch.zeros_like(bias)


@FAULTS.add("key bias left out", via=with_qkv, ports="phi2", where=K, kinds="bias")
def key_bias_dropped(q: Any, k: Any, v: Any) -> Any:
    """The bias of k is zero in every block."""
    return q, torch.zeros_like(k) if k.dim() == 1 else k, v


@FAULTS.add(
    "output projection bias left out",
    via=tensor(f"{OUTPUT_PROJECTION}.bias"),
    ports="phi2",
    where="blocks.1.attn.out",
    kinds="bias",
)
def output_projection_bias_dropped(bias: torch.Tensor) -> torch.Tensor:
    """Block 1's bias of the output projection is zero."""
    return torch.zeros_like(bias)


@FAULTS.add(
    "output projection transposed",
    via=tensor(f"{OUTPUT_PROJECTION}.weight"),
    ports="phi2",
    where="blocks.1.attn.out",
    kinds="weight",
)
def output_projection_transposed(weight: torch.Tensor) -> torch.Tensor:
    """Block 1's output projection, which is square, is loaded transposed."""
    return weight.T.contiguous()


@FAULTS.add(
    "value projection rounded to bfloat16",
    via=with_qkv,
    where="blocks.*.attn.v",
    kinds="weight",
)
def values_in_bfloat16(q: Any, k: Any, v: Any) -> Any:
    """The rows of v in the fused matrix are rounded to bfloat16."""
    return q, k, in_bfloat16(v)


@FAULTS.add(
    "sequential for parallel residual",
    via=with_block_configs,
    ports="phi2",
    where="blocks.*.ff_norm",
)
def parallel_residual_built_as_sequential(block: Any) -> None:
    """The feed-forward is fed with the attention's sum, not with the block's norm."""
    block.parallel_residual = False


@FAULTS.add(
    "parallel for sequential residual",
    via=with_block_configs,
    ports=ONE_RESIDUAL_NORM,
    where="blocks.*.ff_norm",
)
def sequential_residual_built_as_parallel(block: Any) -> None:
    """Attention and feed-forward both read the first norm."""
    block.parallel_residual = True


@FAULTS.add(
    "residual around attention left out",
    via=partial(with_blocks, blocks=(1,)),
    ports=ONE_RESIDUAL_NORM,
    where="blocks.1.ff_norm",
    kinds="residual",
)
def attention_residual_left_out(block: Any) -> None:
    """Block 1's attention output replaces the residual stream.

    What enters the block is taken from its attention's output before it is added to it.
    """
    attention, enter = block.atten_func, block.forward
    attended = attention.forward

    def forward(x: torch.Tensor, *args: Any) -> Any:
        def without_residual(*inner: Any) -> Any:
            out, cache = attended(*inner)
            return out - x, cache

        attention.forward = without_residual
        return enter(x, *args)

    block.forward = forward
