"""Gemma 2 (google/gemma-2-2b): Gemma 1 with four changes that need their own classes.

- Attention and feed-forward are also followed by norms.
- Scores are scaled by query_pre_attn_scalar ** -0.5 (the Generative API supports only
  head_dim ** -0.5) and soft-capped.
- The logits are soft-capped.
- Local layers, which see a sliding window, alternate with global ones.

So there are two masks. As inputs they are a dict with the keys ``global`` and ``local``; a
converted signature names them ``mask_global`` and ``mask_local``.

Config: https://huggingface.co/google/gemma-2-2b/blob/main/config.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from litert_torch.generative.layers import (
    attention,
    attention_utils,
    builder,
    rotary_position_embedding,
)
from litert_torch.generative.layers import kv_cache as kv_utils
from litert_torch.generative.layers import model_config as cfg
from litert_torch.generative.layers import scaled_dot_product_attention as sdpa
from litert_torch.generative.utilities.export_config import ExportConfig
from torch import nn

from edgeverify_models import gemma, hf_config
from edgeverify_models.port import HFConfig, Port

_COMMON: HFConfig = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 256000,
}
HF_CONFIGS: dict[str, HFConfig] = {
    "2b": {
        **_COMMON,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
    },
    # The window is shorter than the shortest default prefill (16). Normed inputs give scores of
    # about sqrt(head_dim / scalar) = 1.3 and more, and logits of about 1: both caps take effect.
    "tiny": {
        **_COMMON,
        "attn_logit_softcapping": 2.3,
        "final_logit_softcapping": 1.7,
        "head_dim": 40,
        "hidden_size": 96,
        "intermediate_size": 192,
        "max_position_embeddings": 304,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "query_pre_attn_scalar": 23,
        "rms_norm_eps": 4e-3,
        "rope_theta": 6100.0,
        "sliding_window": 13,
        "vocab_size": 307,
    },
}

_NORMS = {
    "pre_ff_norm": "model.layers.{}.pre_feedforward_layernorm",
    "post_ff_norm": "model.layers.{}.post_feedforward_layernorm",
}
TENSOR_NAMES = replace(gemma.TENSOR_NAMES, **_NORMS)
TENSOR_NAMES_KAGGLE = replace(gemma.TENSOR_NAMES_KAGGLE, **_NORMS)

GLOBAL = "global"
LOCAL = "local"


@dataclass
class AttentionConfig(cfg.AttentionConfig):
    """The Generative API's attention config plus the score scale, which it lacks."""

    score_scale: float | None = None


class Attention(attention.CausalSelfAttention):
    """Causal self-attention with its own score scale, in both KV layouts."""

    def forward(
        self,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        input_pos: torch.Tensor,
        kv_cache: kv_utils.KVCacheEntry,
    ) -> tuple[torch.Tensor, kv_utils.KVCacheEntry]:
        """Attends to the cache after writing this step's keys and values into it.

        Args:
            x: (B, T, C), normed.
            rope: cos and sin, each (1, T, head_dim / 2).
            mask: (1, 1, T, S), added to the scores.
            input_pos: (T,) positions.
            kv_cache: this block's cache of S rows, in either layout.

        Returns:
            (B, T, C) and the new cache.
        """
        config = self.config
        batch, length, _ = x.shape
        heads, groups, dim = config.num_heads, config.num_query_groups, config.head_dim
        qkv = self.qkv_projection(x).view(batch, length, heads + 2 * groups, dim)
        q, k, v = qkv.split((heads, groups, groups), dim=2)
        q, k = rotary_position_embedding.apply_rope_inline(q, k, *rope)
        if kv_cache.kv_layout == kv_utils.KV_LAYOUT_TRANSPOSED:
            attend = self._attend_transposed
        else:
            attend = self._attend
        out, kv_cache = attend(q, k, v, mask, input_pos, kv_cache)
        return self.output_projection(out.reshape(batch, length, heads * dim)), kv_cache

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor,
        input_pos: torch.Tensor,
        kv_cache: kv_utils.KVCacheEntry,
    ) -> tuple[torch.Tensor, kv_utils.KVCacheEntry]:
        """Attends in the default layout: cache K and V (B, S, N, H). Returns (B, T, N, H)."""
        kv_cache = kv_utils.update(kv_cache, input_pos, k, v)
        if self.enable_hlfb:
            function = sdpa.scaled_dot_product_attention_with_hlfb
        else:
            function = sdpa.scaled_dot_product_attention
        out = function(
            q,
            kv_cache.k_cache,
            kv_cache.v_cache,
            self.config.head_dim,
            mask=mask,
            scale=self.config.score_scale,
            softcap=self.config.logit_softcap,
        )
        return out, kv_cache

    def _attend_transposed(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor,
        input_pos: torch.Tensor,
        kv_cache: kv_utils.KVCacheEntry,
    ) -> tuple[torch.Tensor, kv_utils.KVCacheEntry]:
        """Attends in the transposed layout. Returns (B, T, N, H).

        The cache has K (1, B*N, S, H) and V (1, B*N, H, S). The heads of a group are placed one
        after another along the query's third axis. One batched product then serves the group, and
        K and V are not repeated.
        """
        batch, length, heads, dim = q.shape
        groups = self.config.num_query_groups
        rows = heads // groups * length
        kv_cache = kv_utils.update_transposed(
            kv_cache,
            input_pos,
            k.permute(0, 2, 1, 3).reshape(1, batch * groups, length, dim),
            v.permute(0, 2, 3, 1).reshape(1, batch * groups, dim, length),
        )
        out = sdpa.scaled_dot_product_attention_transposed(
            q.permute(0, 2, 1, 3).reshape(1, batch * groups, rows, dim),
            kv_cache.k_cache,
            kv_cache.v_cache,
            self.config.head_dim,
            mask=mask,
            scale=self.config.score_scale,
            softcap=self.config.logit_softcap,
        )
        return out.reshape(batch, heads, length, dim).permute(0, 2, 1, 3), kv_cache


class Block(nn.Module):
    """Attention and feed-forward, each between two norms; the second norm's output is added to x.

    The feed-forward's norms are inside ``ff``, as the Generative API builds them.
    """

    def __init__(self, config: cfg.TransformerBlockConfig, model_config: cfg.ModelConfig) -> None:
        super().__init__()
        width = model_config.embedding_dim
        self.pre_atten_norm = builder.build_norm(width, config.pre_attention_norm_config)
        self.atten_func = Attention(width, config.attn_config, model_config.enable_hlfb)
        self.post_atten_norm = builder.build_norm(width, config.post_attention_norm_config)
        self.ff = builder.build_ff(width, config.ff_config)
        self.config = config

    def forward(
        self,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        input_pos: torch.Tensor,
        kv_cache: kv_utils.KVCacheEntry,
    ) -> tuple[torch.Tensor, kv_utils.KVCacheEntry]:
        """Runs the block on (B, T, C) and this block's cache; returns both, updated."""
        attended, kv_cache = self.atten_func(
            self.pre_atten_norm(x), rope, mask, input_pos, kv_cache
        )
        x = x + self.post_atten_norm(attended)
        return x + self.ff(x), kv_cache


class Gemma2(nn.Module):
    """A decoder with a mask per kind of layer and soft-capped logits."""

    def __init__(self, config: cfg.ModelConfig, mask_cache_size: int = 0) -> None:
        super().__init__()
        self.config = config
        self.tok_embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.lm_head = nn.Linear(
            config.embedding_dim, config.vocab_size, bias=config.lm_head_use_bias
        )
        if config.lm_head_share_weight_with_embedding:
            self.lm_head.weight = self.tok_embedding.weight
        self.transformer_blocks = nn.ModuleList(
            Block(config.block_config(index), config) for index in range(config.num_layers)
        )
        self.final_norm = builder.build_norm(config.embedding_dim, config.final_norm_config)
        self.build_mask_cache(mask_cache_size)

    def build_mask_cache(self, mask_cache_size: int) -> None:
        """Builds both masks, (1, 1, N, N) each; with size 0 there are none: the caller passes them.

        Raises:
            ValueError: the size exceeds the model's number of positions.
        """
        if mask_cache_size > self.config.max_seq_len:
            raise ValueError(
                f"mask_cache_size={mask_cache_size} is more than the model's "
                f"max_seq_len={self.config.max_seq_len}"
            )
        self.mask_cache: dict[str, torch.Tensor] | None = None
        if mask_cache_size > 0:
            self.mask_cache = {GLOBAL: attention_utils.build_causal_mask_cache(mask_cache_size)}
            attn_configs = map(self._attn_config, range(self.config.num_layers))
            windows = {c.sliding_window_size for c in attn_configs if _kind(c) == LOCAL}
            if windows:
                self.mask_cache[LOCAL] = attention_utils.build_sliding_window_mask_cache(
                    mask_cache_size, windows.pop()
                )

    @torch.inference_mode()
    def forward(
        self,
        tokens: torch.Tensor,
        input_pos: torch.Tensor,
        kv_cache: kv_utils.KVCache,
        mask: Mapping[str, torch.Tensor] | None = None,
        export_config: ExportConfig | None = None,
    ) -> dict[str, torch.Tensor | kv_utils.KVCache]:
        """Runs one step.

        Args:
            tokens: (B, T) ids.
            input_pos: (T,) consecutive positions.
            kv_cache: S rows per block.
            mask: ``{"global": ..., "local": ...}``, each (1, 1, T, S), added to the scores; None
                takes them from the mask cache.
            export_config: with ``output_logits_on_prefill`` False, a step of more than one token
                computes no logits.

        Returns:
            ``kv_cache``, and ``logits`` (B, T, V) if they are computed.

        Raises:
            ValueError: the step, the cache and the masks do not fit each other.
        """
        length = tokens.shape[1]
        if length > self.config.max_seq_len:
            raise ValueError(
                f"{length} tokens are more than the model's max_seq_len={self.config.max_seq_len}"
            )
        if len(kv_cache.caches) != len(self.transformer_blocks):
            raise ValueError(
                f"the KV cache has {len(kv_cache.caches)} entries; expected one for each of the "
                f"{len(self.transformer_blocks)} blocks"
            )
        masks = self._cached_masks(input_pos, kv_cache) if mask is None else _given_masks(mask)
        # All layers use the same rotation, so the first block's config serves them all.
        attn_config = self._attn_config(0)
        rotated = int(attn_config.rotary_percentage * attn_config.head_dim)
        rope = self.config.build_rope(input_pos, rotated, attn_config.rotary_base)

        x = self.tok_embedding(tokens)
        if self.config.embedding_scale is not None:
            x = x * self.config.embedding_scale
        entries = []
        for index, block in enumerate(self.transformer_blocks):
            block_mask = masks[_kind(self._attn_config(index))]
            x, entry = block(x, rope, block_mask, input_pos, kv_cache.caches[index])
            entries.append(entry)
        outputs: dict[str, torch.Tensor | kv_utils.KVCache] = {
            "kv_cache": kv_utils.KVCache(tuple(entries))
        }
        if export_config is None or length == 1 or export_config.output_logits_on_prefill:
            logits = self.lm_head(self.final_norm(x))
            cap = self.config.final_logit_softcap
            outputs["logits"] = logits if cap is None else torch.tanh(logits / cap) * cap
        return outputs

    def _attn_config(self, index: int) -> cfg.AttentionConfig:
        return self.config.block_config(index).attn_config

    def _cached_masks(
        self, input_pos: torch.Tensor, kv_cache: kv_utils.KVCache
    ) -> dict[str, torch.Tensor]:
        """Returns the rows of this step's positions, cut to the cache length: (1, 1, T, S) each."""
        if self.mask_cache is None:
            raise ValueError("mask_cache_size is 0, so the masks must be given")
        rows = kv_cache.get_max_seq_len()
        built = self.mask_cache[GLOBAL].shape[-1]
        if rows > built:
            raise ValueError(
                f"the KV cache has {rows} rows and the mask cache {built}; expected a "
                "mask_cache_size of at least the KV cache's length"
            )
        return {
            kind: mask.index_select(2, input_pos)[:, :, :, :rows]
            for kind, mask in self.mask_cache.items()
        }


def _kind(config: cfg.AttentionConfig) -> str:
    return LOCAL if config.attn_type == cfg.AttentionType.LOCAL_SLIDING else GLOBAL


def _given_masks(mask: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Refuses a single mask: for all layers, it would drop the window of the local ones."""
    if not isinstance(mask, Mapping) or set(mask) != {GLOBAL, LOCAL}:
        given = sorted(mask) if isinstance(mask, Mapping) else type(mask).__name__
        raise ValueError(f"mask is {given}; expected a dict of {GLOBAL!r} and {LOCAL!r}")
    return mask


def layer_kinds(hf: HFConfig) -> list[cfg.AttentionType]:
    """Returns one attention type per layer; without ``layer_types`` even layers slide, as in HF.

    Raises:
        ValueError: the count is not num_hidden_layers, or a kind is unknown.
    """
    known = {
        "sliding_attention": cfg.AttentionType.LOCAL_SLIDING,
        "full_attention": cfg.AttentionType.GLOBAL,
    }
    layers = hf_config.require(hf, "num_hidden_layers")
    alternate = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    names = hf_config.get(hf, "layer_types", alternate)
    if len(names) != layers or any(name not in known for name in names):
        raise hf_config.refuse("layer_types", names, f"{layers} of {sorted(known)}")
    return [known[name] for name in names]


def model_config(hf: HFConfig) -> cfg.ModelConfig:
    """Maps a ``Gemma2Config``; missing keys take that class's defaults, a null soft-cap means none.

    Raises:
        ValueError: a key is missing, or the re-authored model cannot express its value.
    """
    hf_config.check_model_type(hf, "gemma2")
    hf_config.expect(hf, "use_bidirectional_attention", False)
    heads = hf_config.heads(hf, default_kv=4, default_dim=256)
    rope = hf_config.rope(hf, heads.dim)
    attention_bias = bool(hf_config.get(hf, "attention_bias", False))
    norm = gemma.norm_config(hf)
    hidden_size = hf_config.require(hf, "hidden_size")
    kinds = layer_kinds(hf)
    window = hf.get("sliding_window", 4096)
    if cfg.AttentionType.LOCAL_SLIDING in kinds and not window:
        raise hf_config.refuse("sliding_window", window, "a length, as some layers slide")

    def block(kind: cfg.AttentionType) -> cfg.TransformerBlockConfig:
        return cfg.TransformerBlockConfig(
            attn_config=AttentionConfig(
                num_heads=heads.query,
                head_dim=heads.dim,
                num_query_groups=heads.kv,
                rotary_base=rope.base,
                rotary_percentage=rope.share,
                qkv_transpose_before_split=True,  # q, k and v are blocks, as in HF's fused weight
                qkv_fused_interleaved=False,
                qkv_use_bias=attention_bias,
                output_proj_use_bias=attention_bias,
                logit_softcap=hf.get("attn_logit_softcapping", 50.0),
                attn_type=kind,
                sliding_window_size=window if kind == cfg.AttentionType.LOCAL_SLIDING else None,
                score_scale=hf_config.get(hf, "query_pre_attn_scalar", 256) ** -0.5,
            ),
            ff_config=cfg.FeedForwardConfig(
                type=cfg.FeedForwardType.GATED,
                activation=hf_config.activation(
                    hf_config.get(hf, "hidden_activation", "gelu_pytorch_tanh"),
                    "hidden_activation",
                ),
                intermediate_size=hf_config.require(hf, "intermediate_size"),
                pre_ff_norm_config=norm,
                post_ff_norm_config=norm,
            ),
            pre_attention_norm_config=norm,
            post_attention_norm_config=norm,
        )

    return cfg.ModelConfig(
        vocab_size=hf_config.require(hf, "vocab_size"),
        num_layers=len(kinds),
        max_seq_len=hf_config.get(hf, "max_position_embeddings", 8192),
        embedding_dim=hidden_size,
        embedding_scale=hidden_size**0.5,
        block_configs=[block(kind) for kind in kinds],
        final_norm_config=norm,
        final_logit_softcap=hf.get("final_logit_softcapping", 30.0),
        lm_head_share_weight_with_embedding=bool(hf_config.get(hf, "tie_word_embeddings", True)),
    )


GEMMA2 = Port(
    name="gemma2",
    hf_configs=HF_CONFIGS,
    default_size="tiny",
    hub_ids={"2b": "google/gemma-2-2b"},
    model_config=model_config,
    model_class=Gemma2,
    tensor_names=(TENSOR_NAMES, TENSOR_NAMES_KAGGLE),
    mask_kinds=(GLOBAL, LOCAL),
)
