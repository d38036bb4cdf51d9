"""The weights that a quantized file computes with, as a checkpoint of the Hugging Face model.

With these weights in place of the original ones, the reference is the model that the file should
compute. The only remaining differences are the rounding of activations and the kernels' own error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeverify.audits.file_weights import blocks_apart, fold_of
from edgeverify.audits.of_file import cap_is_folded
from edgeverify.audits.of_hf_config import NONE, declared
from edgeverify.audits.weight_map import Places, places
from edgeverify.backends.streaming import LARGE_BYTES
from edgeverify.core.errors import ArtifactError
from edgeverify.core.store.mapped import forget, scratch
from edgeverify.litert.flatbuffer import ModelFile, locate_taps
from edgeverify.litert.flatbuffer.graph import Graph, Op
from edgeverify.litert.flatbuffer.quantization import Quantized, pieces, read, values
from edgeverify.litert.flatbuffer.weights import EMBEDDING, HEAD, Weights, find_weights

DECODE = "decode"
TIED = ("tie_word_embeddings", "share_input_output_layers")  # the latter is OpenELM's
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Held:
    """A weight of a file.

    Attributes:
        parameter: name in the Generative API, e.g. ``transformer_blocks.0.ff.w1.weight``.
        quantized: how it is stored; None for float32.
        rows: returns rows of its first axis, float32, as the values that they stand for: factors
            that the converter declares are undone. The rows are read from the file each time.
        in_integers: whether the kernel computes with the stored integers, and so rounds the
            activations that it multiplies them with.
        asymmetric: whether the operator requests activations that need not be centred on zero.
    """

    parameter: str
    quantized: Quantized | None
    rows: Callable[[slice], np.ndarray]
    in_integers: bool
    asymmetric: bool = False


@dataclass(frozen=True)
class FileWeights:
    """The weights of a file.

    Attributes:
        held: parameter → weight. Float32 weights that contain one of the converter's factors are
            left out, because the factor cannot be removed without rounding.
        places: parameter → the part of the checkpoint that belongs there.
        found: signature → where its weights are.
    """

    held: Mapping[str, Held]
    places: Places
    found: Mapping[str, Weights]

    def state(self, original: Mapping[str, torch.Tensor], folder: Path | None = None) -> State:
        """Returns the checkpoint with the file's values for everything that the file has quantized.

        Args:
            original: HF names → float32 tensors; not changed.
            folder: for scratch files of large tensors; without it, they stay in memory.

        Returns:
            HF names → float32 tensors. ``lm_head.weight`` is included if the file's head is not,
            bit for bit, the embedding table that it is tied to.
        """
        state = dict(original)
        copied: set[str] = set()
        unties = self.unties(original)
        if unties:
            state[HEAD] = _room_for(original[self.places[HEAD][0].tensor], folder)
            _fill(state[HEAD], slice(None), self._rows(HEAD, original), 0)
        for name, weight in self.held.items():
            if name == HEAD and unties:
                continue
            for span in self.places.get(name, ()):
                if span.tensor not in copied:
                    state[span.tensor] = _room_for(original[span.tensor], folder)
                    if span.source is not None:
                        state[span.tensor].copy_(original[span.tensor])
                        forget(original[span.tensor])
                    copied.add(span.tensor)
                rows = slice(*span.source) if span.source else slice(None)
                first = span.target[0] if span.target else 0
                _fill(state[span.tensor], rows, weight.rows, first)
        return state

    def unties(self, original: Mapping[str, torch.Tensor]) -> bool:
        """Whether the head is the embedding table in the checkpoint, but not in the file."""
        if HEAD in original or HEAD not in self.places:
            return False
        head, table = (self._rows(name, original) for name in (HEAD, EMBEDDING))
        shape = original[self.places[HEAD][0].tensor].shape
        return any(not np.array_equal(head(rows), table(rows)) for rows in pieces(shape))

    def _rows(
        self, name: str, original: Mapping[str, torch.Tensor]
    ) -> Callable[[slice], np.ndarray]:
        """Returns the file's values, or the checkpoint's if the file's were not read."""
        if name in self.held:
            return self.held[name].rows
        return lambda rows: original[self.places[name][0].tensor][rows].numpy()

    def modules(self, name: str) -> list[str]:
        """The HF modules that a parameter's rows belong to, e.g. ``model.layers.0.mlp.up_proj``."""
        if name == HEAD:
            return ["lm_head"]
        tensors = dict.fromkeys(span.tensor for span in self.places.get(name, ()))
        return [tensor.removesuffix(".weight") for tensor in tensors]


def _room_for(tensor: torch.Tensor, folder: Path | None) -> torch.Tensor:
    """Returns another tensor like it; on the disk if it is large and there is a folder."""
    size = tensor.numel() * tensor.element_size()
    if folder is None or size < LARGE_BYTES:
        return torch.empty_like(tensor)
    return torch.from_numpy(scratch(size, folder)).view(tensor.dtype).view(tensor.shape)


def _fill(
    tensor: torch.Tensor, rows: slice, held: Callable[[slice], np.ndarray], first: int
) -> None:
    """Writes rows of a weight, from ``first`` on, into rows of a tensor, piece by piece."""
    target = tensor[rows]
    for piece in pieces(target.shape):
        stop = min(piece.stop, len(target))
        target[piece] = torch.from_numpy(held(slice(first + piece.start, first + stop)))
        forget(target[piece])


def untied(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config with a separate LM head."""
    return {**hf_config, **{key: False for key in TIED if key in hf_config}} | (
        {} if hf_config.get("model_type") == "openelm" else {"tie_word_embeddings": False}
    )


def read_weights(
    path: Path, hf_config: Mapping[str, Any], config: Any, shapes: Mapping[str, tuple[int, ...]]
) -> FileWeights:
    """Reads what a file computes with.

    Args:
        path: the .tflite.
        hf_config: the HF config, which says what factors the converter has folded into weights.
        config: the re-authored ``ModelConfig``, which says how fused projections are laid out.
        shapes: of the checkpoint's tensors, by HF name.

    Raises:
        ArtifactError: a weight's bytes do not fit its shape, or an operator computes with a
            quantized constant that is not one of the known weights.
    """
    file = ModelFile(path)
    found = {name: find_weights(file, name, locate_taps(file, name)) for name in file.signatures}
    decode = found[DECODE if DECODE in found else next(reversed(found))]
    said = declared(hf_config)
    cap = said.values["final softcap"]
    held = {}
    for name, tensor in decode.tensors.items():
        quantized = read(file, decode.graph, tensor)
        folded = fold_of(name, decode, said)[0] is not None
        if quantized is None and (folded or tensor in decode.graph.producer):
            continue
        factor = cap if name.startswith("lm_head.") and cap != NONE and cap_is_folded(decode) else 1
        # A table used for look-ups may also be the head's: a look-up rounds nothing.
        users = decode.graph.consumers.get(tensor, ()) if name != EMBEDDING else ()
        kernels = [op for op in users if op.name == "FULLY_CONNECTED"]
        integers = bool(kernels) and quantized is not None
        asymmetric = any(_asymmetric(decode.graph, op) for op in kernels)
        rows = partial(_meant, file, decode.graph, tensor, factor)
        held[name] = Held(name, quantized, rows, integers, asymmetric)
        # Report here what cannot be read, not where it is first used.
        rows(slice(0, 1))
    for tensor, why in decode.unknown.items():
        if read(file, decode.graph, tensor) is not None:
            raise ArtifactError(
                f"a quantized constant is no known weight ({why})",
                where=path,
                expected="constants whose place in the model can be told from the graph",
                fix="leave that operator in float by a later rule of the recipe",
            )
    return FileWeights(held, places(shapes, config, blocks_apart(found)), found)


def _meant(file: ModelFile, graph: Graph, tensor: int, factor: float, rows: slice) -> np.ndarray:
    """Rows of a weight, float32; undoes a factor by which the converter has divided it."""
    return (values(file, graph, tensor, rows) * factor).astype(np.float32)


def _asymmetric(graph: Graph, op: Op) -> bool:
    """Reads an attribute that older converters set and that LiteRT's own kernels respect."""
    options = graph.raw.operators[op.index].builtinOptions
    return bool(getattr(options, "asymmetricQuantizeInputs", False))
