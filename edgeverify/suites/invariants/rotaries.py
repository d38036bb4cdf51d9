"""RoPE implementations that the contracts test: the port's own block, and Hugging Face's.

The port's RoPE is read from its block as a black box: vectors enter at the last module before RoPE
and are read at the attention kernels and where the cache is updated. So the test covers all code in
between, including a user's own class.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias
from unittest import mock

import numpy as np
import torch
from litert_torch.generative.layers import kv_cache as kv_utils
from litert_torch.generative.layers import scaled_dot_product_attention as sdpa
from litert_torch.generative.utilities.export_config import ExportConfig
from torch import nn

from edgeverify.backends.float64 import exact_frequencies, rope_type
from edgeverify.backends.reauthored import PLAIN_ATTENTION
from edgeverify.core.errors import PortError
from edgeverify.hf.config import meta_model, reference_config
from edgeverify.suites.invariants.model import (
    CannotCheckError,
    NotApplicableError,
    Rotary,
    Violation,
)

if TYPE_CHECKING:
    from edgeverify_models.port import Port

# For these kinds, the frequencies depend on the length of the conversation: no single set is right.
BY_LENGTH = ("dynamic", "longrope")
NORMS = {"q": "query_norm", "k": "key_norm"}
PROJECTION = "qkv_projection"
Place: TypeAlias = tuple[int, str]  # block, and q or k


def rotary_of(hf_config: Mapping[str, Any]) -> Rotary:
    """Reads RoPE from a Hugging Face config, through the family's own rotary module.

    Args:
        hf_config: a ``config.json`` as a dict.

    Returns:
        The facts, with frequencies computed in float64.

    Raises:
        NotApplicableError: the model has no RoPE.
        CannotCheckError: it has one per kind of layer, or one that changes with the length of the
            conversation.
    """
    module = _rotary_module(hf_config)
    config = module.config
    head_dim = getattr(config, "head_dim", None)
    frequencies = exact_frequencies(module).tolist()
    return Rotary(
        head_dim=int(head_dim or config.hidden_size // config.num_attention_heads),
        turned=2 * len(frequencies),
        frequencies=tuple(frequencies),
        scaling=float(getattr(module, "attention_scaling", 1.0)),
        max_positions=int(config.max_position_embeddings),
    )


def _rotary_module(hf_config: Mapping[str, Any]) -> Any:
    """Builds the family's rotary module, on the CPU; the model around it is never built."""
    modules = meta_model(hf_config).modules()
    found = {type(m): m for m in modules if any(n.endswith("inv_freq") for n in m._buffers)}
    if not found:
        raise NotApplicableError("the Hugging Face model has no rotary module")
    if len(found) > 1 or "inv_freq" not in next(iter(found.values()))._buffers:
        raise CannotCheckError("the Hugging Face model has a rotary for each kind of layer")
    kind = rope_type(next(iter(found.values())))
    if kind in BY_LENGTH:
        raise CannotCheckError(f"RoPE of kind {kind!r} changes with the conversation's length")
    return next(iter(found))(reference_config(hf_config))


class ReferenceRotation:
    """Hugging Face's own rotary module and the family's own apply function, in float32."""

    def __init__(self, hf_config: Mapping[str, Any]) -> None:
        self.rotary = rotary_of(hf_config)
        self._module = _rotary_module(hf_config)
        self._apply = _apply_function(type(self._module).__module__)

    @property
    def reference(self) -> ReferenceRotation:
        """Itself."""
        return self

    def heads(self, which: str, block: int) -> int:
        """Heads of ``q`` or ``k`` in a block."""
        config = self._module.config
        per_layer = getattr(config, "num_query_heads" if which == "q" else "num_kv_heads", None)
        if per_layer is not None:
            return int(per_layer[block])
        all_alike = config.num_attention_heads if which == "q" else config.num_key_value_heads
        return int(all_alike)

    def rotate(
        self, which: str, block: int, vectors: np.ndarray, positions: np.ndarray
    ) -> np.ndarray:
        """Rotates (T, N, H) float32 to positions (T,); returns (T, N, H) float32.

        Every block rotates in the same way.
        """
        x = torch.from_numpy(vectors).transpose(0, 1)[None]  # (1, N, T, H)
        cos, sin = self._module(x, torch.from_numpy(positions)[None])
        # As PhiAttention does it: only the share that cos and sin cover is passed on.
        turned, passed = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        out = torch.cat((self._apply(turned, cos, sin), passed), dim=-1)
        return out[0].transpose(0, 1).contiguous().numpy()


def _apply_function(module_name: str) -> Callable[..., torch.Tensor]:
    module = sys.modules[module_name]
    if hasattr(module, "apply_rotary_pos_emb"):
        apply = module.apply_rotary_pos_emb
        return lambda x, cos, sin: apply(x, x, cos, sin)[0]
    if hasattr(module, "rotate"):  # edgeverify.hf.openelm
        return module.rotate
    raise CannotCheckError(f"{module_name} has no function that applies RoPE")


def _normed_between(which: str, block: int) -> CannotCheckError:
    return CannotCheckError(
        f"block {block}: {which} is normed between {PROJECTION} and RoPE by what is no module "
        f"called {NORMS[which]}"
    )


@dataclass
class _Pass:
    """The inputs of one forward pass, and what is read from it.

    Attributes:
        outputs: by block and name of a submodule, the replacement of its output, (T, ...) float32.
        called: the submodules that were called.
        rotated: q at the kernel and k at the cache, (1, T, N, H).
        block: the block that is running.
    """

    outputs: Mapping[tuple[int, str], torch.Tensor]
    called: dict[tuple[int, str], torch.Size] = field(default_factory=dict)
    rotated: dict[Place, torch.Tensor] = field(default_factory=dict)
    block: int | None = None

    def see(self, which: str, tensor: torch.Tensor) -> None:
        if self.block is not None:
            self.rotated.setdefault((self.block, which), tensor.detach().clone())


class ReauthoredRotation:
    """A port's RoPE, as its blocks compute it.

    The model runs on dummy tokens at the requested positions, with masks as inputs. The input of
    RoPE is replaced: the output of ``query_norm`` and ``key_norm`` if the block calls them,
    otherwise that of ``qkv_projection``, whose order of heads is found by probing. The cache is as
    long as the step, and attention returns zeros, so any position of the model costs the same.

    Args:
        port: the family, or a variant of it.
        hf_config: what the model is built from.
        state: HF names → float32 tensors.

    Raises:
        PortError: the model raises.
        CannotCheckError: a block does not pass the places where vectors enter and are read.
    """

    def __init__(
        self, port: Port, hf_config: Mapping[str, Any], state: Mapping[str, torch.Tensor]
    ) -> None:
        from edgeverify_models.port import build_model

        self._port = port
        self._model: Any = build_model(port, hf_config, state, mask_cache_size=0)
        self._blocks: list[nn.Module] = _blocks(self._model)
        self._parts = [_parts(block) for block in self._blocks]
        self.reference = ReferenceRotation(hf_config)
        self.rotary = self.reference.rotary
        self._slots = self._probe()
        for block, which in self._slots:
            self._require_nothing_between(which, block)

    def heads(self, which: str, block: int) -> int:
        """Heads of ``q`` or ``k`` in a block."""
        config = self._model.config.block_config(block).attn_config
        return int(config.num_heads if which == "q" else config.num_query_groups)

    def rotate(
        self, which: str, block: int, vectors: np.ndarray, positions: np.ndarray
    ) -> np.ndarray:
        """Rotates (T, N, H) float32 to positions (T,); returns (T, N, H) in the block's own dtype.

        Raises:
            Violation: that dtype is bfloat16.
            PortError: the model raises.
        """
        rotated = self._rotated(which, block, vectors, positions)
        if rotated.dtype == torch.bfloat16:  # numpy has no bfloat16
            raise Violation(f"block {block}, {which}: rotated to bfloat16; right is float32")
        return rotated.numpy()

    def _rotated(
        self, which: str, block: int, vectors: np.ndarray, positions: np.ndarray
    ) -> torch.Tensor:
        given = torch.from_numpy(vectors)
        slots = self._slots[block, which]
        if slots is None:
            name, output = NORMS[which], given
        else:
            name = PROJECTION
            output = torch.zeros(len(given), self._width(block), self.rotary.head_dim)
            output[:, slots] = given
        return self._run({(block, name): output}, positions).rotated[block, which][0]

    def _width(self, block: int) -> int:
        """The number of heads of q, k and v together: the slots of the projection's output."""
        return self.heads("q", block) + 2 * self.heads("k", block)

    def _probe(self) -> dict[Place, torch.Tensor | None]:
        """Returns each q's and k's head slots in ``qkv_projection``, or None for its norm.

        In row t of the projection, slot t is larger by a factor of 2^20, so a head is largest in
        the row of its own slot, whatever the rotation does to it. A head that keeps less than half
        of that factor's digits was normalised on the way.
        """
        blocks = range(len(self._blocks))
        rows = max(map(self._width, blocks))
        outputs = {}
        for block in blocks:
            slots = torch.ones(rows, self._width(block), self.rotary.head_dim)
            slots[range(self._width(block)), range(self._width(block))] = 2.0**20
            outputs[block, PROJECTION] = slots
        seen = self._run(outputs, np.ones(rows, np.int64))
        found: dict[Place, torch.Tensor | None] = {}
        for block in blocks:
            for which in ("q", "k"):
                self._require_passed(seen, block, which)
                if (block, NORMS[which]) in seen.called:
                    found[block, which] = None
                    continue
                sizes = seen.rotated[block, which][0].double().norm(dim=-1)
                if (sizes.amax(dim=0) < 2.0**10 * sizes.amin(dim=0)).any():
                    raise _normed_between(which, block)
                largest = sizes.argmax(dim=0)
                if len(largest.unique()) != self.heads(which, block):
                    raise CannotCheckError(
                        f"block {block}: the heads of {which} are no slices of {PROJECTION}'s "
                        f"output (seen at {largest.tolist()})"
                    )
                found[block, which] = largest
        return found

    def _require_passed(self, seen: _Pass, block: int, which: str) -> None:
        expected = self._width(block) * self.rotary.head_dim
        shape = seen.called.get((block, PROJECTION))
        if shape is None or shape[-1] != expected:
            told = "calls none" if shape is None else f"has one of {shape[-1]} elements"
            raise CannotCheckError(
                f"block {block} {told}: vectors are put in at {PROJECTION} ({expected} elements)"
            )
        if (block, which) not in seen.rotated:
            place = "the attention kernels" if which == "q" else "kv_cache.update"
            raise CannotCheckError(f"block {block}: {which} does not pass {place}")
        rotated = tuple(seen.rotated[block, which].shape[2:])
        if rotated != (self.heads(which, block), self.rotary.head_dim):
            raise CannotCheckError(
                f"block {block}: {which} has {rotated} heads and elements where it is read, by "
                f"the configs {self.heads(which, block), self.rotary.head_dim}"
            )

    def _require_nothing_between(self, which: str, block: int) -> None:
        """Checks that no norm stands between the place of entry and RoPE.

        RoPE passes a factor on; a norm would remove it. Four times the input gives four times the
        output of RoPE, but only once that of a norm.
        """
        shape = (1, self.heads(which, block), self.rotary.head_dim)
        vectors = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        once, four_times = (
            float(self._rotated(which, block, vectors * factor, np.array([1])).double().norm())
            for factor in (np.float32(1), np.float32(4))
        )
        if four_times < 2 * once:
            raise _normed_between(which, block)

    def _run(self, outputs: Mapping[tuple[int, str], torch.Tensor], positions: np.ndarray) -> _Pass:
        length = len(positions)
        mask: Any = torch.zeros(1, 1, length, length)
        if len(self._port.mask_kinds) > 1:
            mask = dict.fromkeys(self._port.mask_kinds, mask)
        seen = _Pass(outputs)
        try:
            with (
                torch.inference_mode(),
                _inserted(self._blocks, self._parts, seen),
            ):
                self._model(
                    tokens=torch.zeros(1, length, dtype=torch.int),
                    input_pos=torch.from_numpy(positions.astype(np.int32)),
                    kv_cache=kv_utils.KVCache.from_model_config(length, self._model.config),
                    mask=mask,
                    export_config=ExportConfig(mask_as_input=True),
                )
        except Exception as error:  # whatever a port's own code raises is the port's
            raise PortError(
                f"the re-authored model raised {type(error).__name__}: {error}",
                where=f"{self._port.name}, RoPE at positions {positions.tolist()}",
                expected=f"positions below {self.rotary.max_positions}, in any order, with masks "
                "as inputs",
            ) from error
        return seen


def _blocks(model: Any) -> list[nn.Module]:
    return list(model.transformer_blocks)


def _parts(block: nn.Module) -> list[tuple[str, nn.Module]]:
    """The submodules whose output may be the input of RoPE, with their names."""
    wanted = (PROJECTION, *NORMS.values())
    named = ((path.rsplit(".", 1)[-1], module) for path, module in block.named_modules())
    return [(name, module) for name, module in named if name in wanted]


@contextmanager
def _inserted(
    blocks: list[nn.Module], parts: list[list[tuple[str, nn.Module]]], seen: _Pass
) -> Iterator[None]:
    """Replaces the input of RoPE, and reads its output."""

    def update(cache: Any, input_pos: Any, k: torch.Tensor, v: torch.Tensor, *_: Any) -> Any:
        seen.see("k", k)
        return kv_utils.KVCacheEntry(k, v, cache.kv_layout)

    def attend(q: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        seen.see("q", q)
        return torch.zeros_like(q, dtype=torch.float32)

    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            _hook_block(block, parts[index], index, seen, stack)
        stack.enter_context(mock.patch.object(kv_utils, "update", update))
        for name in PLAIN_ATTENTION:
            stack.enter_context(mock.patch.object(sdpa, name, attend))
        yield


def _hook_block(
    block: nn.Module,
    parts: list[tuple[str, nn.Module]],
    index: int,
    seen: _Pass,
    stack: ExitStack,
) -> None:
    def enter(*_: Any) -> None:
        seen.block = index

    def leave(*_: Any) -> None:
        seen.block = None

    stack.callback(block.register_forward_pre_hook(enter).remove)
    stack.callback(block.register_forward_hook(leave).remove)
    for name, module in parts:

        def replace(_: Any, __: Any, output: torch.Tensor, name: str = name) -> Any:
            seen.called[index, name] = output.shape
            given = seen.outputs.get((index, name))
            return None if given is None else given.reshape(output.shape)

        stack.callback(module.register_forward_hook(replace).remove)
