"""Casting a weight once for all its readers changes nothing of the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgeverify.core.quiet import quiet
from edgeverify.litert.quantize import weights_cast_once
from edgeverify.litert.recipes import load_recipe


def quantized(path: str, recipe: str) -> bytes:
    from ai_edge_quantizer.quantizer import Quantizer

    with quiet(show=False):
        rules = [dict(rule) for rule in load_recipe(recipe).rules]
        return bytes(Quantizer(path, rules).quantize().quantized_model)


def registered() -> list[Any]:
    from ai_edge_quantizer import algorithm_manager as manager
    from ai_edge_quantizer.qtyping import QuantizeMode

    key = manager.AlgorithmName.FLOAT_CASTING
    return [
        manager.get_quantization_func(key, operator, QuantizeMode.MATERIALIZE)
        for operator in manager.get_supported_ops(key)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma1", "openelm", "phi2", "smollm2"])
def test_the_file_is_the_same_byte_by_byte(name: str, converted: Callable[..., Any]) -> None:
    path = str(converted(name, "default").path)
    plain = quantized(path, "fp16")
    with weights_cast_once():
        assert quantized(path, "fp16") == plain


@pytest.mark.slow
def test_a_weight_has_one_array_for_all_its_readers(
    converted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ai_edge_quantizer import qtyping

    long: list[int] = []
    compare = qtyping._compare_array_or_none

    def spy(one: Any, other: Any) -> bool:
        if one is not None and other is not None and one is not other and one.size > 64:
            long.append(one.size)
        return compare(one, other)

    monkeypatch.setattr(qtyping, "_compare_array_or_none", spy)
    path = str(converted("smollm2", "default").path)
    with weights_cast_once():
        quantized(path, "fp16")
    assert not long
    quantized(path, "fp16")
    assert long


def fail_inside(seen: list[Any]) -> None:
    with weights_cast_once():
        seen += registered()
        raise ZeroDivisionError


def test_what_was_registered_is_put_back_also_after_an_error() -> None:
    before = registered()
    inside: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        fail_inside(inside)
    assert not set(inside) & set(before)
    assert registered() == before
