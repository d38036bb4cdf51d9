"""Builds a re-authored model with random weights and runs it; needs only torch and LiteRT-Torch."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from litert_torch.generative.layers import kv_cache as kv_utils
from torch import nn

from edgeverify_models.port import HFConfig, Port, construct_empty

KV_LAYOUTS = {
    "default": kv_utils.KV_LAYOUT_DEFAULT,
    "transposed": kv_utils.KV_LAYOUT_TRANSPOSED,
}


@dataclass(frozen=True)
class Step:
    """One call: its name, its input tokens, and the logits of its last position, (V,)."""

    name: str
    tokens: tuple[int, ...]
    logits: torch.Tensor


@dataclass(frozen=True)
class Run:
    """The record of one ``define_and_run``.

    Attributes:
        parameters: number of the model's parameters; a tied head is counted once.
        kv_shapes: the shapes of each block's K and V cache.
        steps: the calls, in order.
        build_seconds: wall time of building the model and drawing its weights.
        run_seconds: wall time of all steps.
    """

    name: str
    size: str
    parameters: int
    kv_shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    steps: tuple[Step, ...]
    build_seconds: float
    run_seconds: float

    def __str__(self) -> str:
        lines = [
            f"{self.name} {self.size}: {self.parameters:,} parameters, {len(self.kv_shapes)} blocks"
            f" (built in {self.build_seconds:.1f} s, ran in {self.run_seconds:.1f} s)"
        ]
        for shapes in sorted(set(self.kv_shapes)):
            count = self.kv_shapes.count(shapes)
            lines.append(f"  KV cache of {count} blocks: K {shapes[0]}, V {shapes[1]}")
        for step in self.steps:
            top = int(step.logits.argmax())
            shown = " ".join(f"{value:+.4f}" for value in step.logits[:4].tolist())
            lines.append(
                f"  {step.name}: {len(step.tokens)} tokens -> logits ({len(step.logits)},)"
                f" {shown} ..., greedy token {top}"
            )
        return "\n".join(lines)


def build_random_model(
    port: Port, hf_config: HFConfig, *, mask_cache_size: int, seed: int = 0
) -> nn.Module:
    """Builds the re-authored model with seeded random weights, float32.

    Matrices are drawn with a scale of 1/sqrt(fan-in), biases with 0.1, and norm factors with 0.1
    around 1 or -1, so activations keep their scale. The signs prevent a tied head from echoing its
    input.

    Args:
        port: the family.
        hf_config: the Hugging Face config that the model is built from.
        mask_cache_size: length of the mask that is built inside; 0 if masks are inputs.
        seed: equal seeds give equal weights.

    Returns:
        The model in eval mode.
    """
    config = port.model_config(hf_config)
    model = construct_empty(port, config, mask_cache_size)
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.lm_head_share_weight_with_embedding:
            state[name] = state["tok_embedding.weight"]
            continue
        drawn = torch.empty(parameter.shape).normal_(generator=generator)
        if parameter.ndim > 1:
            state[name] = drawn.mul_(parameter.shape[-1] ** -0.5)
            continue
        drawn.mul_(0.1)
        if not name.endswith("bias"):
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            owner = model.get_submodule(name.rpartition(".")[0])
            drawn.add_(1).mul_(signs).sub_(1 if getattr(owner, "zero_centered_gamma", False) else 0)
        state[name] = drawn
    model.load_state_dict(state, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def define_and_run(
    port: Port,
    size: str | None = None,
    *,
    prompt_length: int = 24,
    decode_steps: int = 4,
    kv_layout: str = "default",
    seed: int = 0,
) -> Run:
    """Builds a port with random weights, prefills a random prompt and decodes greedily.

    Args:
        port: the family.
        size: one of its sizes; None takes the default size.
        prompt_length: number of prefill tokens.
        decode_steps: number of greedy steps after the prefill.
        kv_layout: ``default`` or ``transposed``.
        seed: seed of the weights and the prompt.

    Raises:
        KeyError: the size or KV layout is unknown.
    """
    size = size or port.default_size
    hf_config = port.hf_configs[size]
    layout = KV_LAYOUTS[kv_layout]
    config = port.model_config(hf_config)
    cache_rows = prompt_length + decode_steps

    started = time.perf_counter()
    model = build_random_model(port, hf_config, mask_cache_size=cache_rows, seed=seed)
    built = time.perf_counter()

    generator = torch.Generator().manual_seed(seed + 1)
    prompt = torch.randint(0, config.vocab_size, (prompt_length,), generator=generator)
    tokens = tuple(prompt.tolist())
    cache = kv_utils.KVCache.from_model_config(cache_rows, config, kv_layout=layout)
    kv_shapes = tuple(
        (tuple(entry.k_cache.shape), tuple(entry.v_cache.shape)) for entry in cache.caches
    )
    steps: list[Step] = []
    position = 0
    for name in ["prefill", *(f"decode.{index}" for index in range(decode_steps))]:
        output = model(
            torch.tensor([tokens], dtype=torch.int),
            torch.arange(position, position + len(tokens), dtype=torch.int),
            cache,
        )
        cache = output["kv_cache"]
        steps.append(Step(name, tokens, output["logits"][0, -1]))
        position += len(tokens)
        tokens = (int(steps[-1].logits.argmax()),)
    return Run(
        name=port.name,
        size=size,
        parameters=_count(model),
        kv_shapes=kv_shapes,
        steps=tuple(steps),
        build_seconds=built - started,
        run_seconds=time.perf_counter() - built,
    )


def _count(model: nn.Module) -> int:
    storages = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    return sum(storages.values())
