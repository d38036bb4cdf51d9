"""Numbers of a graph that name nothing are found before anything walks the graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeverify.core.errors import ArtifactError
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.litert.flatbuffer.integrity import faults
from tests.litert.flatbuffer import made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    weight = made.tensor("w", (3, 4), made.TYPES.FLOAT32, 1)
    return made.write(tmp_path / "x.tflite", "FULLY_CONNECTED", weight, bytes(48), (1, 4), (1, 3))


def op(name: str, tensors: list[int]) -> Callable[[Any], None]:
    return lambda m: setattr(m.subgraphs[0].operators[0], name, np.array(tensors, np.int32))


def tensor(name: str, value: Any) -> Callable[[Any], None]:
    return lambda m: setattr(m.subgraphs[0].tensors[1], name, value)


def again(model: Any) -> None:
    model.subgraphs[0].operators *= 2


CHANGES: dict[str, Callable[[Any], None]] = {
    "subgraph 0: op 0 takes tensor 3 of 3": op("inputs", [0, 3, -1]),
    "subgraph 0: op 0 takes tensor -2 of 3": op("inputs", [0, -2]),
    "subgraph 0: op 0 takes tensor 2, which op 0 makes": op("inputs", [2, 1]),
    "subgraph 0: op 0 makes tensor 7 of 3": op("outputs", [7]),
    "subgraph 0: op 0 and op 1 make tensor 2": again,
    "subgraph 0: tensor 1 has buffer 2 of 2": tensor("buffer", 2),
    "subgraph 0: tensor 1 has the shape [3, -4]": tensor("shape", [3, -4]),
    "subgraph 0: op 0 has operator code 1": lambda m: setattr(
        m.subgraphs[0].operators[0], "opcodeIndex", 1
    ),
    "signature 'run' is of subgraph 1 of 1": lambda m: setattr(
        m.signatureDefs[0], "subgraphIndex", 1
    ),
    "signature 'run' has tensor 9 of 3": lambda m: setattr(
        m.signatureDefs[0].outputs[0], "tensorIndex", 9
    ),
}


@pytest.mark.parametrize("fault", CHANGES)
def test_it_is_named(fault: str, path: Path) -> None:
    model = ModelFile(path).model
    assert list(faults(model)) == []
    CHANGES[fault](model)
    assert list(faults(model)) == [fault]


def test_a_file_with_one_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    graph = ModelFile(path)._table.Subgraphs(0)
    inputs = np.array([0, 1, -1], "<i4").tobytes()
    start = data.find(inputs)
    assert graph.Operators(0).InputsLength() == 3
    assert data.count(inputs) == 1
    data[start : start + 4] = (99).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(
        ArtifactError, match="graph is damaged: subgraph 0: op 0 takes tensor 99 of 3"
    ):
        _ = ModelFile(path).model
