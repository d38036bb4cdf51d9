"""Defines the fields of LiteRT-LM's metadata.

The source is ``runtime/proto/llm_metadata.proto`` of litert-lm-builder 0.18.1.

The sampler's parameters and the channels are left out: no check needs them.
"""

from __future__ import annotations

from edgeverify.litert.bundle.protobuf import Message

_IDS = Message({1: ("ids", [int])})
_TOKEN = Message({1: ("token_ids", _IDS), 2: ("token_str", str)})
_AFFIXES = Message({1: ("prefix", str), 2: ("suffix", str)})
_MODEL_TYPES = (
    (1, "generic_model"),
    (2, "gemma3n"),
    (3, "function_gemma"),
    (4, "gemma3"),
    (5, "qwen3"),
    (7, "qwen2p5"),
    (8, "gemma4"),
    (9, "fast_vlm"),
    (11, "lfm2"),
    (12, "minicpm5"),
    (13, "minicpmv4"),
)
LLM_METADATA = Message(
    {
        1: ("start_token", _TOKEN),
        2: ("stop_tokens", [_TOKEN]),
        3: (
            "prompt_templates",
            Message({1: ("user", _AFFIXES), 2: ("model", _AFFIXES), 3: ("system", _AFFIXES)}),
        ),
        5: ("max_num_tokens", int),
        6: ("llm_model_type", Message({number: (n, Message({})) for number, n in _MODEL_TYPES})),
        7: ("jinja_prompt_template", str),
        9: ("suppress_tokens", _IDS),
        10: ("kv_cache_init_value", int),
        11: ("supports_thinking", bool),
        12: ("supports_function_calling", bool),
        13: ("pad_token", _TOKEN),
        14: ("min_runtime_version", str),
    }
)
