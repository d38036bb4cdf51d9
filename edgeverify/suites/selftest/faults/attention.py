"""Faults of the attention itself: projections, scale, softcap, order of heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from litert_torch.generative.layers import scaled_dot_product_attention as sdpa

from edgeverify.suites.selftest.faults.changes import (
    Function,
    State,
    in_bfloat16,
    with_block_configs,
    with_blocks,
    with_config,
    with_function,
    with_scaled,
    with_state,
)
from edgeverify.suites.selftest.faults.fault import Fault
from edgeverify.suites.selftest.faults.ports import ALL, GATED, LLAMA, ONE_RESIDUAL_NORM
from edgeverify_models.port import Port

KERNEL = "scaled_dot_product_attention_with_hlfb"
TRANSPOSED_KERNEL = "scaled_dot_product_attention_transposed"
OUT = ("blocks.*.attn.out",)
UNCAPPED = tuple(name for name in ALL if name != "gemma2")
TRANSPOSED = {"kv_layout": "transposed"}


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float | None,
    *,
    cap_last: bool = False,
    softmax: Function = torch.softmax,
) -> torch.Tensor:
    """Attention written out: q (B, T, N, H), k and v (B, S, K, H) → (B, T, N, H).

    Args:
        q, k, v, mask: as the Generative API's kernels take them.
        scale, softcap: of the scores.
        cap_last: cap the masked scores, which is wrong.
        softmax: another function of (scores, dim).
    """
    repeats = q.shape[2] // k.shape[2]
    keys = k.repeat_interleave(repeats, dim=2).permute(0, 2, 3, 1)
    values = v.repeat_interleave(repeats, dim=2).transpose(1, 2)
    scores = q.transpose(1, 2) @ keys * scale
    if softcap is not None and not cap_last:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    if softcap is not None and cap_last:
        scores = torch.tanh(scores / softcap) * softcap
    return (softmax(scores, -1) @ values).transpose(1, 2)


def own_kernel(**options: Any) -> Callable[[Port], Port]:
    """Attention by ``attend`` with ``options``; q is seen at the entry of the library's kernel."""

    def make(kernel: Function) -> Function:
        def attended(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, size: int, **given: Any
        ) -> torch.Tensor:
            kernel(q, k, v, size, **given)
            scale = given.get("scale") or size**-0.5
            return attend(q, k, v, given["mask"], scale, given.get("softcap"), **options)

        return attended

    return lambda port: with_function(port, sdpa, KERNEL, make)


def _kernel(
    change: Callable[[dict[str, Any], int], None], blocks: tuple[int, ...] | None = None
) -> Callable[[Port], Port]:
    """The kernel's keyword arguments are changed; ``change`` is told head_dim, too."""

    def make(kernel: Function) -> Function:
        def changed(q: Any, k: Any, v: Any, size: int, **given: Any) -> Any:
            given["scale"] = given.get("scale") or size**-0.5
            change(given, size)
            return kernel(q, k, v, size, **given)

        return changed

    return lambda port: with_function(port, sdpa, KERNEL, make, blocks)


def _scaled(factor: float) -> Callable[[dict[str, Any], int], None]:
    def change(given: dict[str, Any], size: int) -> None:
        given["scale"] *= factor

    return change


def _no_scale(given: dict[str, Any], size: int) -> None:
    given["scale"] = 1.0


def _scale_twice(given: dict[str, Any], size: int) -> None:
    given["scale"] **= 2


def _no_cap(given: dict[str, Any], size: int) -> None:
    given["softcap"] = None


def _cap_added(given: dict[str, Any], size: int) -> None:
    given["softcap"] = 2.0


def _scale_of_hidden(port: Port) -> Port:
    hf = port.hf_configs["tiny"]
    width = hf["hidden_size"] // hf["num_attention_heads"]

    def change(given: dict[str, Any], size: int) -> None:
        given["scale"] = width**-0.5

    return _kernel(change)(port)


def _cap_before_the_scale(given: dict[str, Any], size: int) -> None:
    """cap · tanh(s · scale / cap) becomes scale · cap · tanh(s / cap)."""
    given["softcap"] = given["softcap"] / given["scale"] ** 0.5


def _groups_in_turn(kernel: Function) -> Function:
    """Head n reads group n mod K (``repeat``), not n // (N / K) (``repeat_interleave``)."""

    def changed(q: Any, k: Any, v: Any, *args: Any, **given: Any) -> Any:
        repeats = q.shape[2] // k.shape[2]
        return kernel(q, k.repeat(1, 1, repeats, 1), v.repeat(1, 1, repeats, 1), *args, **given)

    return changed


def _heads_reversed(kernel: Function) -> Function:
    return lambda *args, **given: kernel(*args, **given).flip(2)


def _heads_and_elements_exchanged(kernel: Function) -> Function:
    def changed(*args: Any, **given: Any) -> Any:
        out = kernel(*args, **given)
        return out.transpose(2, 3).reshape(out.shape)

    return changed


def _softmax_in_bfloat16(scores: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.softmax(scores.bfloat16(), dim).float()


def _rows_of_a_group_in_turn(kernel: Function) -> Function:
    """Transposed layout: the rows (G, T) of a group are read as (T, G)."""

    def changed(query: Any, *args: Any, **given: Any) -> Any:
        rows = given["mask"].shape[2]
        one, groups, both, dim = query.shape
        turned = query.reshape(one, groups, both // rows, rows, dim).transpose(2, 3)
        return kernel(turned.reshape(query.shape), *args, **given)

    return changed


def split_qkv(port: Port, index: int, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Q, K and V of a fused matrix, (rows, C), or bias, (rows,), as they lie in blocks."""
    attention = port.model_config(port.hf_configs["tiny"]).block_config(index).attn_config
    dim, groups = attention.head_dim, attention.num_query_groups
    return weight.split((attention.num_heads * dim, groups * dim, groups * dim))


def with_qkv(port: Port, change: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]) -> Port:
    """Every fused qkv tensor becomes the concatenation of ``change(q, k, v)``."""

    def change_all(state: State) -> None:
        for name in [n for n in state if ".qkv_projection." in n]:
            parts = split_qkv(port, int(name.split(".")[1]), state[name])
            state[name] = torch.cat(tuple(change(*parts)))

    return with_state(port, change_all)


def _zeroed(*suffixes: str) -> Callable[[Port], Port]:
    def change(state: State) -> None:
        for suffix in suffixes:
            name = f"transformer_blocks.1.{suffix}"
            state[name] = torch.zeros_like(state[name])

    return lambda port: with_state(port, change)


def _transposed(port: Port) -> Port:
    def change(state: State) -> None:
        name = "transformer_blocks.1.atten_func.output_projection.weight"
        state[name] = state[name].T.contiguous()

    return with_state(port, change)


def _split_without_transposing(block: Any) -> None:
    block.attn_config.qkv_transpose_before_split = False


def _by_group(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    """q, k and v in two halves of their groups, one half behind the other."""
    parts = (part.tensor_split(2) for part in (q, k, v))
    return [half for halves in zip(*parts, strict=True) for half in halves]


def _one_after_another(block: Any) -> None:
    block.parallel_residual = False


def _side_by_side(block: Any) -> None:
    block.parallel_residual = True


def _no_residual(port: Port) -> Port:
    """What enters block 1 is taken from its attention's output before it is added to it."""

    def change(block: Any) -> None:
        attention, enter = block.atten_func, block.forward
        attended = attention.forward

        def forward(x: torch.Tensor, *args: Any) -> Any:
            def without_residual(*inner: Any) -> Any:
                out, cache = attended(*inner)
                return out - x, cache

            attention.forward = without_residual
            return enter(x, *args)

        block.forward = forward

    return with_blocks(port, change, (1,))


FAULTS = (
    Fault(
        name="score_scale_off_by_a_thousandth",
        area="attention",
        description="The scale of the scores is 0.1 % too large.",
        cause="score scale off by 0.1 %",
        ports=ALL,
        where=OUT,
        port=_kernel(_scaled(1.001)),
    ),
    Fault(
        name="score_scale_left_out",
        area="attention",
        description="The scores are not scaled.",
        cause="score scale left out",
        ports=ALL,
        where=OUT,
        port=_kernel(_no_scale),
    ),
    Fault(
        name="score_scale_applied_twice",
        area="attention",
        description="The scale is applied to q in place and once more by the kernel.",
        cause="score scale applied twice",
        ports=ALL,
        where=OUT,
        port=_kernel(_scale_twice),
        source="litert-torch c0cabe1 → 44d4487",
    ),
    Fault(
        name="score_scale_of_hidden_over_heads",
        area="attention",
        description="The scale is that of hidden_size / heads, where head_dim is another number.",
        cause="score scale of hidden_size / heads",
        ports=GATED,
        where=OUT,
        port=_scale_of_hidden,
    ),
    Fault(
        name="score_scale_of_head_dim",
        area="attention",
        description="query_pre_attn_scalar is overlooked; the scale is head_dim ** -0.5.",
        cause="score scale of head_dim",
        ports=("gemma2",),
        where=OUT,
        port=lambda port: with_config(
            port, query_pre_attn_scalar=port.hf_configs["tiny"]["head_dim"]
        ),
    ),
    Fault(
        name="query_pre_attn_scalar_off",
        area="attention",
        description="query_pre_attn_scalar is 0.2 % too small, the scale 0.1 % too large.",
        cause="score scale off by 0.1 %",
        ports=("gemma2",),
        where=OUT,
        port=lambda port: with_scaled(port, 1.001**-2, "query_pre_attn_scalar"),
    ),
    Fault(
        name="score_softcap_left_out",
        area="attention",
        description="The scores are not capped.",
        cause="score softcap left out",
        ports=("gemma2",),
        where=OUT,
        port=_kernel(_no_cap),
        source="litert-torch dad940b → c0cabe1",
    ),
    Fault(
        name="score_softcap_of_the_config_class",
        area="attention",
        description="The cap is 50, the default of transformers' Gemma2Config.",
        cause="score softcap 50",
        ports=("gemma2",),
        where=OUT,
        port=lambda port: with_config(port, attn_logit_softcapping=50.0),
    ),
    Fault(
        name="score_softcap_before_the_scale",
        area="attention",
        description="The cap bites at another height, as if the scale came after it.",
        cause="score softcap before the scale",
        ports=("gemma2",),
        where=OUT,
        port=_kernel(_cap_before_the_scale),
    ),
    Fault(
        name="score_softcap_behind_the_mask",
        area="attention",
        description="Masked scores are capped, too: -inf becomes -cap, and the future is seen.",
        cause="score softcap behind the mask",
        ports=("gemma2",),
        where=OUT,
        port=own_kernel(cap_last=True),
    ),
    Fault(
        name="score_softcap_where_there_is_none",
        area="attention",
        description="Scores are capped in a family that does not.",
        cause="score softcap added",
        ports=UNCAPPED,
        where=OUT,
        port=_kernel(_cap_added),
    ),
    Fault(
        name="softmax_in_bfloat16",
        area="attention",
        description="The softmax is computed in bfloat16.",
        cause="softmax in bfloat16",
        ports=ALL,
        where=OUT,
        port=own_kernel(softmax=_softmax_in_bfloat16),
    ),
    Fault(
        name="kv_heads_repeated_in_turn",
        area="attention",
        description="KV heads are repeated as 0 1 0 1 (repeat) instead of 0 0 1 1.",
        cause="KV heads repeated in the wrong order",
        ports=ALL,
        where=OUT,
        port=lambda port: with_function(port, sdpa, KERNEL, _groups_in_turn),
    ),
    Fault(
        name="heads_joined_in_reverse",
        area="attention",
        description="The heads' outputs are joined in the reverse order.",
        cause="heads joined in the wrong order",
        ports=ALL,
        where=OUT,
        port=lambda port: with_function(port, sdpa, KERNEL, _heads_reversed),
    ),
    Fault(
        name="heads_joined_element_by_element",
        area="attention",
        description="The heads' outputs are joined as (H, N) instead of (N, H), in block 1.",
        cause="heads and elements exchanged",
        ports=ALL,
        where=("blocks.1.attn.out",),
        port=lambda port: with_function(port, sdpa, KERNEL, _heads_and_elements_exchanged, (1,)),
    ),
    Fault(
        name="heads_of_a_group_folded_in_turn",
        area="attention",
        description="Transposed layout: a group's rows are folded as (T, G) instead of (G, T).",
        cause="query heads folded in the wrong order",
        ports=ALL,
        where=("blocks.*.attn.q",),
        port=lambda port: with_function(port, sdpa, TRANSPOSED_KERNEL, _rows_of_a_group_in_turn),
        selectors=TRANSPOSED,
    ),
    Fault(
        name="qkv_split_as_q_v_k",
        area="attention",
        description="The fused matrix is split in another order than it was joined.",
        cause="k and v exchanged",
        ports=ALL,
        where=("blocks.*.attn.k",),
        port=lambda port: with_qkv(port, lambda q, k, v: (q, v, k)),
        source="litert-torch 50f279c → d135da4",
    ),
    Fault(
        name="qkv_split_by_group",
        area="attention",
        description="Blocks of q, k and v are split as if each group had its own.",
        cause="fused qkv read as interleaved",
        ports=(*LLAMA, "gemma1", "phi2"),  # the blocks that take the API's attention as it is
        where=("blocks.*.attn.q",),
        port=lambda port: with_block_configs(port, _split_without_transposing),
        source="litert-torch 50f279c → d135da4, mlx-examples #719",
    ),
    Fault(
        name="qkv_joined_by_group",
        area="attention",
        description="q, k and v are joined by groups of heads, and split as blocks.",
        cause="fused qkv joined as interleaved",
        ports=ALL,
        where=("blocks.*.attn.q",),
        port=lambda port: with_qkv(port, _by_group),
        source="mlx-examples #719",
    ),
    Fault(
        name="query_heads_rolled",
        area="attention",
        description="The rows of q belong to the next head.",
        cause="query heads in the wrong order",
        ports=ALL,
        where=("blocks.*.attn.q",),
        port=lambda port: with_qkv(
            port, lambda q, k, v: (q.roll(port.hf_configs["tiny"].get("head_dim", 24), 0), k, v)
        ),
    ),
    Fault(
        name="qkv_bias_dropped",
        area="attention",
        description="Block 1's bias of q, k and v is zero.",
        cause="qkv bias left out",
        ports=("phi2",),
        where=("blocks.1.attn.q",),
        port=_zeroed("atten_func.qkv_projection.bias"),
        source="litert-torch 19a168c",
    ),
    Fault(
        name="key_bias_dropped",
        area="attention",
        description="The bias of k is zero in every block.",
        cause="key bias left out",
        ports=("phi2",),
        where=("blocks.*.attn.k",),
        port=lambda port: with_qkv(
            port, lambda q, k, v: (q, torch.zeros_like(k) if k.dim() == 1 else k, v)
        ),
    ),
    Fault(
        name="output_projection_bias_dropped",
        area="attention",
        description="Block 1's bias of the output projection is zero.",
        cause="output projection bias left out",
        ports=("phi2",),
        where=("blocks.1.attn.out",),
        port=_zeroed("atten_func.output_projection.bias"),
    ),
    Fault(
        name="output_projection_transposed",
        area="attention",
        description="Block 1's output projection, which is square, is loaded transposed.",
        cause="output projection transposed",
        ports=("phi2",),
        where=("blocks.1.attn.out",),
        port=_transposed,
    ),
    Fault(
        name="values_in_bfloat16",
        area="attention",
        description="The rows of v in the fused matrix are rounded to bfloat16.",
        cause="value projection rounded to bfloat16",
        ports=ALL,
        where=("blocks.*.attn.v",),
        port=lambda port: with_qkv(port, lambda q, k, v: (q, k, in_bfloat16(v))),
    ),
    Fault(
        name="parallel_residual_built_as_sequential",
        area="attention",
        description="The feed-forward is fed with the attention's sum, not with the block's norm.",
        cause="sequential for parallel residual",
        ports=("phi2",),
        where=("blocks.*.ff_norm",),
        port=lambda port: with_block_configs(port, _one_after_another),
    ),
    Fault(
        name="sequential_residual_built_as_parallel",
        area="attention",
        description="Attention and feed-forward both read the first norm.",
        cause="parallel for sequential residual",
        ports=ONE_RESIDUAL_NORM,
        where=("blocks.*.ff_norm",),
        port=lambda port: with_block_configs(port, _side_by_side),
    ),
    Fault(
        name="attention_residual_left_out",
        area="attention",
        description="Block 1's attention output replaces the residual stream.",
        cause="residual around attention left out",
        ports=ONE_RESIDUAL_NORM,
        where=("blocks.1.ff_norm",),
        port=_no_residual,
    ),
)
