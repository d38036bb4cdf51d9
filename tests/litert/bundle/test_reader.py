"""The container is read as its own builder wrote it, without the builder."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from edgeverify.core.errors import ArtifactError
from edgeverify.litert.bundle.reader import is_bundle, read_bundle

builder = pytest.importorskip("litert_lm_builder", reason="needs litert-lm-builder")
CONTENT = b"\0\0\0\0TFL3" + bytes(range(256)) * 200


def build(folder: Path, models: tuple[str, ...] = ("PREFILL_DECODE",)) -> Path:
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    meta = llm_metadata_pb2.LlmMetadata()
    meta.start_token.token_ids.ids.append(7)
    for token in (2, 300):
        meta.stop_tokens.add().token_ids.ids.append(token)
    meta.stop_tokens.add().token_str = "<end>"
    meta.max_num_tokens = 128
    meta.llm_model_type.gemma3.SetInParent()
    meta.prompt_templates.user.prefix = "<u>"
    meta.jinja_prompt_template = "{{ messages }}"
    meta.sampler_params.k = 3
    (folder / "meta.pb").write_bytes(meta.SerializeToString())
    (folder / "tokenizer.json").write_text("{}")
    made = builder.LitertLmFileBuilder()
    made.add_system_metadata(
        builder.Metadata(key="author", value="somebody", dtype=builder.DType.STRING)
    )
    made.add_llm_metadata(str(folder / "meta.pb"))
    made.add_hf_tokenizer(str(folder / "tokenizer.json"))
    for number, kind in enumerate(models):
        path = folder / f"{number}.tflite"
        path.write_bytes(CONTENT + bytes([number]))
        made.add_tflite_model(str(path), builder.TfLiteModelType[kind])
    target = folder / "x.litertlm"
    with target.open("wb") as file:
        made.build(file)
    return target


def test_sections_and_metadata_are_read(tmp_path: Path) -> None:
    bundle = read_bundle(build(tmp_path))
    assert [section.kind for section in bundle.sections] == [
        "LlmMetadataProto",
        "HF_Tokenizer_Zlib",
        "TFLiteModel",
    ]
    assert bundle.version.split(".")[0] == "1"
    assert bundle.facts["author"] == "somebody"
    assert bundle.tokenizer == "Hugging Face tokenizer.json"
    assert bundle.sections[2].items == {"model_type": "tf_lite_prefill_decode"}
    assert bundle.sections[2].size == len(CONTENT) + 1
    assert bundle.metadata() == {
        "start_token": {"token_ids": {"ids": [7]}},
        "stop_tokens": [
            {"token_ids": {"ids": [2]}},
            {"token_ids": {"ids": [300]}},
            {"token_str": "<end>"},
        ],
        "prompt_templates": {"user": {"prefix": "<u>"}},
        "field 4": 2,  # the sampler's parameters, which no check needs
        "max_num_tokens": 128,
        "llm_model_type": {"gemma3": {}},
        "jinja_prompt_template": "{{ messages }}",
    }


def test_the_model_is_unpacked(tmp_path: Path) -> None:
    target = tmp_path / "out.tflite"
    read_bundle(build(tmp_path)).unpack(target)
    assert target.read_bytes() == CONTENT + b"\0"


def test_of_several_models_the_one_that_decodes_is_taken(tmp_path: Path) -> None:
    target = tmp_path / "out.tflite"
    read_bundle(build(tmp_path, ("EMBEDDER", "PREFILL_DECODE"))).unpack(target)
    assert target.read_bytes() == CONTENT + b"\1"


def test_a_file_without_a_model_is_refused(tmp_path: Path) -> None:
    bundle = read_bundle(build(tmp_path, ()))
    with pytest.raises(ArtifactError, match="no single model that prefills and decodes; expected"):
        bundle.unpack(tmp_path / "out.tflite")


def test_other_files_are_no_bundles(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(CONTENT)
    assert not is_bundle(path)
    with pytest.raises(ArtifactError, match=r"cannot be read as a \.litertlm \(it does not begin"):
        read_bundle(path)
    with pytest.raises(ArtifactError, match=r"cannot be read \(No such file"):
        is_bundle(tmp_path / "missing")


@pytest.mark.parametrize(
    ("start", "data", "reason"),
    [
        (24, struct.pack("<Q", 2**60), "its header ends at byte 1152921504606846976 of"),
        (24, struct.pack("<Q", 3), "its header ends at byte 3 of"),
        (32, struct.pack("<I", 2**31), "its header is damaged"),
    ],
)
def test_a_damaged_header_is_refused(start: int, data: bytes, reason: str, tmp_path: Path) -> None:
    path = build(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:start] + data + whole[start + len(data) :])
    with pytest.raises(ArtifactError, match=reason):
        read_bundle(path)


def test_a_bundle_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = build(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ArtifactError, match="its section TFLiteModel is at bytes 49152 to"):
        read_bundle(path)
    path.write_bytes(whole[:20])
    with pytest.raises(ArtifactError, match="it was cut short"):
        read_bundle(path)
