"""What a file holds, as a person sees it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from edgeverify.report.inspection import print_inspection, size


def weight(name: str, buffer: int, dtype: str = "int4") -> dict[str, Any]:
    return {
        "name": name,
        "dtype": dtype,
        "granularity": "block" if dtype == "int4" else "",
        "block_size": 32 if dtype == "int4" else None,
        "shape": [64, 96],
        "size": 3072,
        "buffer": buffer,
    }


CACHES = [
    {"name": f"kv_cache_{which}_{block}", "dtype": "float32", "shape": [1, 40, 2, 8]}
    for block in range(4)
    for which in "kv"
]
MODEL: dict[str, Any] = {
    "bytes": 12345,
    "description": "MLIR Converted.",
    "metadata": {"min_runtime_version": "2.17.0"},
    "signatures": [
        {
            "name": "decode",
            "inputs": [{"name": "tokens", "dtype": "int32", "shape": [1, 1]}, *CACHES],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, 1, 99]}],
        }
    ],
    "llm": {
        "prefill": {"prefill_4": 4, "prefill": 11},
        "kv_layout": "default",
        "layout_from": "shapes",
        "kv_cache_len": 40,
        "blocks": 4,
        "vocabulary": 99,
        "masks": ["global", "local"],
        "prefill_logits": False,
        "decode_batch": 2,
        "others": {"verify": "is odd"},
    },
    "litert_lm": {"accepts": False, "reason": "it reads no masks"},
    "ops": {"decode": {f"OP_{n}": 20 - n for n in range(12)}},
    "weights": [
        weight("tok_embedding.weight", 1),
        *(weight(f"transformer_blocks.{b}.ff.w1.weight", 2 + b) for b in (0, 1, 3)),
        weight("transformer_blocks.2.ff.w1.weight", 9, "float32"),
        weight("lm_head.weight", 1),
    ],
    "weights_by_dtype": {"int4": {"tensors": 4, "elements": 24576, "bytes": 12288}},
}
TOLD: dict[str, Any] = {
    "schema": 1,
    "file": "a/b.tflite",
    "format": "tflite",
    "bytes": 12345,
    "container": None,
    "model": MODEL,
}
CONTAINER = {
    "version": "1.7.0",
    "facts": {"author": "[bold]me[/]"},
    "tokenizer": "SentencePiece",
    "metadata": {
        "start_token": {"token_ids": {"ids": [2]}},
        "stop_tokens": [{"token_ids": {"ids": [1, 107]}}, {"token_str": "<end>"}],
        "max_num_tokens": 128,
        "llm_model_type": {"gemma3": {}},
        "jinja_prompt_template": "x" * 500,
    },
    "sections": [
        {"kind": "TFLiteModel", "start": 16384, "bytes": 2000, "items": {"model_type": "main"}}
    ],
}


def shown(told: dict[str, Any], *, verbose: bool = False) -> list[str]:
    stream = io.StringIO()
    print_inspection(told, Console(file=stream, width=200, highlight=False), verbose=verbose)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_the_model_is_summed_up() -> None:
    assert shown(TOLD)[:12] == [
        "a/b.tflite  12.3 kB",
        "  model         4 blocks, vocabulary of 99",
        "  KV cache      40 rows, default layout, told by shapes alone",
        "  prefill       4, 11 tokens, without logits",
        "  decode        1 token of 2 conversations",
        "  masks         inputs: global, local",
        "  not run       verify is odd",
        "  LiteRT-LM     would refuse it: it reads no masks",
        "  int4          24,576 weights in 4 tensors, 12.3 kB",
        "  description   MLIR Converted.",
        "  metadata      min_runtime_version: 2.17.0",
        "",
    ]


def test_layers_that_are_alike_share_a_line() -> None:
    lines = [" ".join(line.split()) for line in shown(TOLD)]
    at = lines.index("weights")
    assert lines[at + 1 : at + 6] == [
        "parameter blocks dtype scales shape size",
        "tok_embedding.weight int4 per block of 32 64 × 96 3.1 kB",
        "ff.w1.weight 0–1, 3 int4 per block of 32 64 × 96 9.2 kB",
        "ff.w1.weight 2 float32 64 × 96 3.1 kB",
        "lm_head.weight int4 per block of 32 64 × 96 shared",
    ]
    assert "kv_cache_k_{0–3} float32 1 × 40 × 2 × 8" in lines
    assert lines[-1].startswith("decode 174 20 OP_0, 19 OP_1,")
    assert lines[-1].endswith("13 OP_7, and 4 more kinds")


def test_verbose_shows_each() -> None:
    lines = [" ".join(line.split()) for line in shown(TOLD, verbose=True)]
    assert "transformer_blocks.3.ff.w1.weight int4 per block of 32 64 × 96 3.1 kB" in lines
    assert "kv_cache_v_3 float32 1 × 40 × 2 × 8" in lines
    assert lines[-1].endswith("9 OP_11")


def test_the_container_is_shown_first() -> None:
    lines = shown({**TOLD, "container": CONTAINER})
    assert lines[:9] == [
        "a/b.tflite  12.3 kB",
        "  container     .litertlm, version 1.7.0",
        "  made          author [bold]me[/]",
        "  tokenizer     SentencePiece",
        "  start_token               2",
        "  stop_tokens               1+107, '<end>'",
        "  max_num_tokens            128",
        "  llm_model_type            gemma3",
        f"  jinja_prompt_template     '{'x' * 159}…",
    ]
    assert "TFLiteModel      16384  2.0 kB  model_type main" in lines
    assert shown({**TOLD, "container": CONTAINER, "model": None})[-1] == "  holds no .tflite"


def test_another_model_gives_its_reason() -> None:
    model = {**MODEL, "llm": {"unknown": "is no language model"}, "weights": [], "ops": {}}
    assert shown({**TOLD, "model": model})[1] == "  model         is no language model"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (541264724, "541.3 MB"),
                        (2_460_000_000, "2.5 GB")]
)  # fmt: skip
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
