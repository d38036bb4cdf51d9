"""Checks checkpoints whose config, tokenizer or prompt is odd, and counts how each check ends.

    python -m benchmarks.odd_checkpoints [--count 300] [--seed 0] [--only SEED]

Each is a right seeded checkpoint of a registered port in which a few values were replaced: keys of
``config.json`` and ``generation_config.json``, nodes of the tokenizer's files, the prompt. Whatever
they are, a check must end with a verdict or with an error of one line: never with status 70, which
is a fault of edgeverify, and never after more than a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import math
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify_models import CATALOGUE, load

SECONDS = 60
EXIT_INTERNAL = 70
HANG = -1
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "text", "silu", "1", "1e4", -1, 0, 1, 2, 3, 7, 64, 331, 10**9, 10**30),
    *(1.5, -0.5, 0.0, 1e-45, 1e30, math.nan, math.inf, [], [1], [None], ["a", 2], {}, {"a": 1}),
)
# Keys that a family may have or not, with values that other families have there.
ADDED: dict[str, tuple[Any, ...]] = {
    "rope_scaling": (
        {"rope_type": "linear", "factor": 2.0},
        {"type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "llama3", "factor": 8.0},
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
        {"rope_type": "nonsense"},
        {"factor": 2.0},
        "linear",
    ),
    "rope_parameters": (
        {"rope_theta": "5300"},
        {"full_attention": {"rope_theta": 1e4, "rope_type": "default"}},
        {"rope_type": "default", "rope_theta": None},
    ),
    "sliding_window": (8, 4096, "8", -3),
    "layer_types": (
        ["full_attention"],
        ["sliding_attention"] * 3,
        ["nonsense"] * 3,
        "full_attention",
    ),
    "partial_rotary_factor": (0.5, 0.0, 2.0, "half"),
    "final_logit_softcapping": (30.0, 0.0, "30"),
    "attention_bias": (True, "yes"),
    "head_dim": (0, 1, 3, 1024, "16"),
    "eos_token_id": ([2, 9], ["a"], 10**6, -5, [[2]], {}),
    "bos_token_id": (5, "<s>", 10**7, [1]),
    "pad_token_id": (331, -1, "x"),
    "quantization_config": ({}, {"quant_method": "nonsense"}, {"bits": 4}, []),
    "model_type": ("llama", "gemma2", "nonsense", "", 3, None),
    "architectures": (["X"], [], "LlamaForCausalLM", None),
    "tie_word_embeddings": (True, False, "no"),
    "auto_map": ({"AutoConfig": "x.Y"}, "x"),
    "torch_dtype": ("float8", "bfloat16", 3),
    "dtype": ("nonsense",),
    "is_encoder_decoder": (True,),
    "num_key_value_heads": (0, 3, 7, 100),
    "max_position_embeddings": (1, 10, 10**12, "2048"),
    "tokenizer_class": ("Nonsense", 3),
    "hidden_act": ("nonsense", None, "relu2"),
    "_attn_implementation": ("flash_attention_2", "nonsense"),
}
TEMPLATES = (
    "{{ messages[0]['content'] }}",
    "{% for m in messages %}{{ m.content }}{% if loop.last %}!{% endif %}{% endfor %}",
    "{{ bos_token }}{{ bos_token }}{{ messages }}",
    "{% for m in messages %}",
    "{{ raise_exception('no') }}",
    "{{ 1 / 0 }}",
    "{{ messages[7].content }}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "",
    3,
    [{"name": "default", "template": "{{ messages }}"}, {"name": "x"}],
)
WORDS = (
    *("hello", "<s>", "</s>", "<unk>", "\u0301e", "\U0001f469\u200d\U0001f680", "\u202eabc"),
    *("\x00", "\n", " ", "w3", "\ufdfa", "\ud800"),
)


@dataclass(frozen=True)
class Trial:
    """One odd checkpoint and how its check ended.

    Attributes:
        seed: draws it again.
        changes: what was replaced.
        status: the exit status, or ``HANG``.
        seconds: that the check took.
        told: the last line of the error, or "".
    """

    seed: int
    changes: tuple[str, ...]
    status: int
    seconds: float
    told: str


def odd_value(draw: random.Random, value: Any) -> Any:
    """Another value in the place of one, near it or far from it."""
    near: list[Any] = []
    if isinstance(value, bool):
        near = [not value]
    elif isinstance(value, int | float):
        near = [value + 1, value - 1, value * 2, -value, str(value), float(value)]
    elif isinstance(value, str):
        near = [value.upper(), value[:-1], f"{value} ", f"{value}\ud800"]
    elif isinstance(value, list):
        near = [value[:-1], value * 2, value[::-1]]
    return draw.choice([*near, *near, *VALUES])


def changed_config(draw: random.Random, config: dict[str, Any]) -> Iterator[str]:
    """Replaces, adds or removes one or two keys, in place."""
    for _ in range(draw.choice((1, 1, 2))):
        way = draw.random()
        if way < 0.45:
            key = draw.choice(sorted(config))
            config[key] = odd_value(draw, config[key])
        elif way < 0.9:
            key = draw.choice(sorted(ADDED))
            config[key] = draw.choice(ADDED[key])
        else:
            key = draw.choice(sorted(config))
            del config[key]
        yield f"{key}: {config.get(key, '(none)')!r}"


def changed_json(draw: random.Random, data: Any) -> str:
    """Replaces one node, at any depth, in place; returns where, and by what."""
    owner, key, path = data, None, ""
    while True:
        keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
        if not keys:
            return path
        key = draw.choice(keys)
        path += f".{key}"
        inner = owner[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.25:
            owner[key] = odd_value(draw, inner)
            return f"{path}: {owner[key]!r}"
        owner = inner


def tokenizer_of(vocabulary: int) -> dict[str, Any]:
    """A byte-level tokenizer.json with so many words; 0, 1, 2 are <unk>, <s>, </s>."""
    words = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"w{at}" for at in range(vocabulary - len(words))]
    table = {word: at for at, word in enumerate(words[:vocabulary])}
    made = Tokenizer(models.BPE(vocab=table, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    return dict(json.loads(made.to_str()))


def files_of(draw: random.Random, vocabulary: int) -> tuple[dict[str, Any], list[str]]:
    """The tokenizer's files: name → JSON value, or text; one or two are odd."""
    files: dict[str, Any] = {
        "tokenizer.json": tokenizer_of(vocabulary),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "chat_template": TEMPLATES[0],
        },
        "generation_config.json": {"eos_token_id": 2, "bos_token_id": 1, "max_length": 64},
    }
    told = []
    for _ in range(draw.choice((0, 1, 1, 2))):
        name, way = draw.choice(sorted(files)), draw.random()
        if way < 0.6 and isinstance(files[name], dict):
            told.append(f"{name}{changed_json(draw, files[name])}")
        elif way < 0.8:
            text = files[name] if isinstance(files[name], str) else json.dumps(files[name])
            files[name] = text[: draw.randrange(len(text) or 1)]
            told.append(f"{name} is cut after {len(files[name])} characters")
        else:
            template = draw.choice(TEMPLATES)
            if isinstance(template, str) and draw.random() < 0.5:
                files["chat_template.jinja"] = template
            elif isinstance(files["tokenizer_config.json"], dict):
                files["tokenizer_config.json"]["chat_template"] = template
            told.append(f"chat template: {template!r}")
    return files, told


def prompt_of(draw: random.Random) -> str:
    """A prompt of odd words, up to some thousand."""
    count = draw.choice((0, 1, 3, 10, 2000))
    return draw.choice(("", " ")).join(draw.choice(WORDS) for _ in range(count)).replace("\x00", "")


def put(seed: int, folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """Writes an odd checkpoint.

    Returns:
        The arguments of its check, and what was replaced.
    """
    draw = random.Random(seed)
    model = draw.choice(sorted(CATALOGUE))
    opened = open_checkpoint(None, load(model), size="tiny", seed=seed)
    config = copy.deepcopy(dict(opened.hf_config))
    changes = [model]
    arguments = ["check", model, "--checkpoint", str(folder), "--backend", "reauthored"]
    arguments += ["--prefill", "8", "--decode-steps", "2"]
    about = draw.choice(("config", "config", "tokenizer", "both"))
    if about != "tokenizer":
        changes += changed_config(draw, config)
    if about != "config":
        files, told = files_of(draw, int(opened.hf_config["vocab_size"]))
        changes += told
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text, encoding="utf-8", errors="replace")
        if draw.random() < 0.7:
            prompt = prompt_of(draw)
            changes.append(f"prompt of {len(prompt)} characters")
            arguments += ["--prompt", prompt]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.contiguous() for name, tensor in opened.tensors().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return arguments, tuple(change[:120] for change in changes)


class _TooLongError(BaseException):
    """The check takes too long. No ``Exception``, so that nothing takes it for a refusal."""


def ended(run: Callable[[], int]) -> tuple[int, str]:
    """Runs a command in this process; its status and the last line of its error."""

    def stop(*_: Any) -> None:
        raise _TooLongError

    told = io.StringIO()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
            status = run()
    except _TooLongError:
        status = HANG
    except SystemExit as error:  # argparse
        status = int(error.code or 0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    lines = [line for line in told.getvalue().splitlines() if line.startswith("edgeverify: error")]
    return status, lines[-1] if lines else ""


def trial(seed: int) -> Trial:
    """Writes the odd checkpoint of a seed, checks it with an empty cache, and removes it."""
    (installed,) = entry_points(group="console_scripts", name="edgeverify")
    command = installed.load()
    with tempfile.TemporaryDirectory(prefix="edgeverify-") as made:
        folder = Path(made) / "checkpoint"
        folder.mkdir()
        arguments, changes = put(seed, folder)
        start = time.perf_counter()
        status, told = ended(lambda: command([*arguments, "--cache", str(Path(made) / "cache")]))
        took = time.perf_counter() - start
    return Trial(seed, changes, status, round(took, 2), told)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the trials, prints those that neither pass nor are refused, and how many ended how."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=300, help="checkpoints (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("-v", action="store_true", help="print every trial")
    options = parser.parse_args(argv)
    found = []
    for seed in range(options.seed, options.seed + options.count):
        found.append(trial(seed))
        if options.v or found[-1].status not in (0, 2):
            print(*found[-1].changes, f"--> {found[-1].status} {found[-1].told}", sep="\n  ")
    ends = Counter(one.status for one in found)
    slowest = max(found, key=lambda one: one.seconds)
    print(f"{len(found)} odd checkpoints, by exit status: {dict(sorted(ends.items()))}")
    print(f"slowest: {slowest.seconds} s, seed {slowest.seed}")
    return int(any(status in ends for status in (EXIT_INTERNAL, HANG)))


if __name__ == "__main__":
    raise SystemExit(main())
