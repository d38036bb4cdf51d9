"""Bundles a .tflite with its tokenizer into the ``.litertlm`` that LiteRT-LM runs.

Besides the graph, an engine needs to know how the model is used: the token that every prompt begins
with, the tokens that end an answer, the chat template, the cache's length. All of it comes from the
checkpoint's own tokenizer and configs.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from edgeverify.core.errors import ArtifactError, EdgeVerifyError, UsageError
from edgeverify.litert.bundle import writer

EXTRA = "litert-lm"
NOTHING: Mapping[str, Any] = MappingProxyType({})
# LiteRT-LM 0.18 passes a message's content to its template as a list of parts. Templates of text
# models, which add the content to a string, then fail ("tried to use + operator on unsupported
# types string and sequence"). This code converts each message to the form that transformers passes.
TEXT_CONTENT = (
    "{%- set plain = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set text = namespace(whole='') -%}"
    "{%- if message['content'] is string -%}"
    "{%- set text.whole = message['content'] -%}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- set text.whole = text.whole + part['text'] -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- set plain.messages = plain.messages"
    " + [{'role': message['role'], 'content': text.whole}] -%}"
    "{%- endfor -%}"
    "{%- set messages = plain.messages -%}"
)


@dataclass(frozen=True)
class Usage:
    """Says how an engine is to use a model.

    Attributes:
        start: the token that every prompt begins with, or None.
        stops: the tokens that end an answer.
        template: the chat template (Jinja) as LiteRT-LM takes it, or None.
        rows: the rows of the KV cache.
    """

    start: int | None
    stops: tuple[int, ...]
    template: str | None
    rows: int


def require(module: str, what: str) -> None:
    """Refuses a request that needs the extra ``litert-lm`` if it is not installed.

    Args:
        module: ``litert_lm`` (the engine) or ``litert_lm_builder`` (the writer of its files).
        what: the option that needs it, e.g. ``--runtime litert_lm``.

    Raises:
        EdgeVerifyError: the module is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise EdgeVerifyError(
            f"needs the package {module.replace('_', '-')}, which is not installed",
            where=what,
            expected=f"edgeverify with its extra {EXTRA!r}",
            fix=f"pip install 'edgeverify[{EXTRA}]'",
        )


def require_layout(kv_layout: str, what: str) -> None:
    """Refuses a KV layout that LiteRT-LM does not read, before anything is converted.

    Args:
        kv_layout: the layout of the file that would be made.
        what: the option that needs it: ``--format litertlm``.

    Raises:
        UsageError: the layout is not the transposed one.
    """
    if kv_layout != "transposed":
        raise UsageError(
            f"LiteRT-LM would take the KV heads of the {kv_layout} layout for the cache's length",
            where=what,
            expected="--kv-layout transposed",
            fix="add --kv-layout transposed",
        )


def require_tokenizer(tokenizer: Any, what: str) -> None:
    """Refuses a checkpoint without a tokenizer, which a ``.litertlm`` contains.

    Raises:
        UsageError: there is no tokenizer.
    """
    if tokenizer is None:
        raise UsageError(
            "a .litertlm holds the model's tokenizer, and seeded weights have none",
            where=what,
            expected="a --checkpoint that has one",
            fix="give the checkpoint's directory",
        )


def usage_of(
    tokenizer: Any, hf_config: Mapping[str, Any], rows: int, generation: Mapping[str, Any] = NOTHING
) -> Usage:
    """Determines how a model is used, from its tokenizer and configs.

    LiteRT-LM tokenizes without special tokens and adds the start token itself: see ``puts_start``.

    Args:
        tokenizer: a transformers tokenizer.
        hf_config: the HF config.
        rows: the rows of the file's KV cache.
        generation: the checkpoint's ``generation_config.json``.
    """
    start = tokenizer.bos_token_id if puts_start(tokenizer) else None
    ends = _ids(generation.get("eos_token_id")) or _ids(hf_config.get("eos_token_id"))
    stops = ends + _ids(tokenizer.eos_token_id)
    return Usage(
        start=start,
        stops=_in_the_table(tuple(dict.fromkeys(stops)), hf_config),
        template=_engine_template(tokenizer, start),
        rows=rows,
    )


def _in_the_table(stops: tuple[int, ...], hf_config: Mapping[str, Any]) -> tuple[int, ...]:
    """Refuses a stop token that the model can never write.

    Raises:
        ArtifactError: the embedding table has no row for it.
    """
    rows = hf_config.get("vocab_size")
    beyond = [token for token in stops if rows is not None and not 0 <= token < int(rows)]
    if beyond:
        raise ArtifactError(
            f"eos_token_id names {beyond[0]}, but the embedding table has {rows} rows",
            where="the checkpoint",
            expected=f"ids below {rows}",
            fix="correct eos_token_id in generation_config.json, config.json or the tokenizer",
        )
    return stops


def puts_start(tokenizer: Any) -> bool:
    """Checks whether the engine has to put the BOS before its input.

    With a chat template, it has to if the template takes a BOS from ``bos_token``, whose name the
    engine leaves empty. If the template contains the BOS as text (``<|im_start|>`` of SmolLM2), the
    engine would put it twice; if it contains none, transformers feeds a conversation without one.
    Without a template, it has to if transformers' tokenizer puts the BOS before every text.
    """
    start = tokenizer.bos_token_id
    if start is None:
        return False
    if chat_template(tokenizer) is None:
        return bool(tokenizer("x")["input_ids"][:1] == [start])
    return rendered(tokenizer, "x") != rendered(tokenizer, "x", bos_token="")


def chat_template(tokenizer: Any) -> str | None:
    """Returns the tokenizer's chat template; if there are several, the default one."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        return template.get("default")
    return template or None


def _engine_template(tokenizer: Any, start: int | None) -> str | None:
    """Returns the chat template, plus the variables that transformers sets and LiteRT-LM does not.

    The engine leaves the special tokens' names empty, and puts a start token before the template.
    """
    template = chat_template(tokenizer)
    if template is None:
        return None
    names = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    if start is not None:
        names["bos_token"] = ""
    named = "".join(
        f"{{%- set {k} = {json.dumps(v, ensure_ascii=False)} -%}}" for k, v in sorted(names.items())
    )
    return TEXT_CONTENT + named + template


def rendered(tokenizer: Any, message: str, **variables: str) -> str:
    """Renders a user's message with the chat template, up to the beginning of the answer.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        message: the text.
        variables: values of the template's variables.
    """
    messages = [{"role": "user", "content": message}]
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **variables
    )
    return text


def tokenizer_json(tokenizer: Any) -> str:
    """Returns the tokenizer as a ``tokenizer.json`` of the library tokenizers.

    Raises:
        ArtifactError: it is not a tokenizer of that library.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ArtifactError(
            f"{type(tokenizer).__name__} cannot be written as a tokenizer.json",
            where="the checkpoint's tokenizer",
            expected="one of the library tokenizers",
            fix="save the checkpoint's tokenizer in its fast form, as tokenizer.json",
        )
    return str(backend.to_str())


def write_litertlm(tflite: Path, tokenizer: str, usage: Usage, target: Path) -> None:
    """Writes a ``.litertlm``.

    Args:
        tflite: the model.
        tokenizer: the text of a ``tokenizer.json``.
        usage: how the model is used.
        target: the file to write.

    Raises:
        EdgeVerifyError: the extra ``litert-lm`` is not installed.
    """
    require("litert_lm_builder", "a .litertlm")
    from litert_lm_builder import DType, LitertLmFileBuilder, Metadata, TfLiteModelType

    builder = LitertLmFileBuilder()
    builder.add_system_metadata(Metadata("Authors", "edgeverify", DType.STRING))
    with TemporaryDirectory() as folder:
        facts, words = Path(folder) / "metadata.pb", Path(folder) / "tokenizer.json"
        facts.write_bytes(_metadata(usage).SerializeToString())
        words.write_text(tokenizer)
        builder.add_llm_metadata(str(facts))
        builder.add_hf_tokenizer(str(words))
        builder.add_tflite_model(str(tflite), TfLiteModelType.PREFILL_DECODE)
        with target.open("wb") as stream:
            builder.build(stream)


def _metadata(usage: Usage) -> Any:
    """Builds the ``LlmMetadata`` of runtime/proto/llm_metadata.proto."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    metadata = llm_metadata_pb2.LlmMetadata()
    if usage.start is not None:
        metadata.start_token.token_ids.ids.append(usage.start)
    for stop in usage.stops:
        metadata.stop_tokens.add().token_ids.ids.append(stop)
    if usage.template is not None:
        metadata.jinja_prompt_template = usage.template
    metadata.max_num_tokens = usage.rows
    metadata.llm_model_type.generic_model.SetInParent()
    metadata.supports_thinking = metadata.supports_function_calling = False
    return metadata


def _ids(value: int | Iterable[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (int(value),) if isinstance(value, int) else tuple(int(token) for token in value)


LITERT_LM = "litert_lm"


ASKED = f"--runtime {LITERT_LM}"


def require_engine(runtimes: Sequence[str], tokenizer: Any) -> None:
    """Refuses LiteRT-LM if it cannot run, before anything is converted.

    Raises:
        EdgeVerifyError: the extra ``litert-lm`` is not installed, or there is no tokenizer.
    """
    if LITERT_LM in runtimes:
        for module in ("litert_lm", "litert_lm_builder"):
            writer.require(module, ASKED)
        writer.require_tokenizer(tokenizer, ASKED)
