"""Downloads checkpoints by hub id, with huggingface_hub and its own cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from edgeverify.core.errors import CheckpointError
from edgeverify.hf.checkpoints import configs
from edgeverify.hf.checkpoints.locate import TENSORS_FIX, read_json

if TYPE_CHECKING:
    from edgeverify_models.port import Port

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SMALL = ["config.json", "*.index.json", "tokenizer*", "special_tokens_map.json", "vocab.json"]
_SMALL += ["merges.txt", "generation_config.json", "chat_template*"]


def download(hub_id: str, port: Port) -> Path:
    """Downloads a repository's config, then its weights, into the Hub's cache.

    The config is downloaded first, on its own, so that a model of another family is refused before
    gigabytes are fetched. PyTorch files are fetched only if there are no safetensors.

    Args:
        hub_id: ``org/name``.
        port: the family that the model must belong to.

    Returns:
        The snapshot's directory.

    Raises:
        CheckpointError: it is not a hub id, or the Hub does not provide it; says what to do.
    """
    if not _HUB_ID.fullmatch(hub_id):
        raise CheckpointError(
            "there is no such file or directory",
            where=hub_id,
            expected="a path, or a hub id of the form org/name",
            fix=TENSORS_FIX,
        )
    snapshot = _fetch(hub_id, _SMALL)
    config = snapshot / "config.json"
    if not config.is_file():
        raise CheckpointError(
            "the repository has no config.json",
            where=hub_id,
            expected="a checkpoint in transformers' format",
            fix="download the file that is meant (e.g. one .gguf) and give its path",
        )
    configs.require_family(read_json(config), port, f"{hub_id}/config.json")
    snapshot = _fetch(hub_id, [*_SMALL, "*.safetensors"])
    if not any(snapshot.glob("*.safetensors")):
        snapshot = _fetch(hub_id, [*_SMALL, "pytorch_model*.bin"])
    return snapshot


def _fetch(hub_id: str, patterns: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise _failed(
            hub_id,
            "the Hub gives it only to those who accepted its licence",
            "accept it on the model's page, then run 'hf auth login'",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _failed(
            hub_id,
            "there is no such path here, and no such repository on the Hub (or it is private)",
            "check the spelling, or run 'hf auth login' for a private one",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _failed(
            hub_id,
            "there is no such path here, the Hub cannot be reached, and its cache does not have it",
            "go online (and unset HF_HUB_OFFLINE), or give the path of a local copy",
        ) from error
    except Exception as error:  # httpx, the file system, and what else a download can meet
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise _failed(
            hub_id,
            f"the download failed ({reason})",
            "try again, or give the path of a local copy",
        ) from error


def _failed(hub_id: str, what: str, fix: str) -> CheckpointError:
    return CheckpointError(what, where=hub_id, expected="a model on the Hub", fix=fix)
