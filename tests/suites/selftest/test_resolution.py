"""Every hyperparameter of every port is seen, or listed with the reason why it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgeverify_models as models
from edgeverify.suites.selftest import resolution
from edgeverify.suites.selftest.resolution import (
    INERT,
    INERT_OF_PORT,
    REFUSED,
    RUN,
    SAME,
    UNSEEN,
    FieldResult,
    Prober,
    fields_of,
    load,
    measure,
)

PAGE = Path(__file__).parents[3] / "docs" / "resolution.md"


@pytest.fixture(scope="module")
def prober() -> Prober:
    return Prober("gemma2")


def test_the_measurement_on_disk_has_every_field_of_every_port() -> None:
    """A field that is added to a config is measured, or this fails."""
    measured = {(result.port, result.field) for result in load()}
    assert measured == {(port, field) for port in models.CATALOGUE for field in fields_of(port)}


def test_on_disk_each_field_has_its_present_value() -> None:
    for result in load():
        assert result.value == fields_of(result.port)[result.field], (result.port, result.field)


def test_on_disk_each_field_is_seen_or_listed_as_inert() -> None:
    assert [result for result in load() if not result.is_explained] == []


def test_nothing_is_listed_as_inert_that_is_seen() -> None:
    known = {result.field for result in load() if result.inert}
    assert set(INERT) | {field for _, field in INERT_OF_PORT} == known


def test_the_page_is_that_of_the_measurement() -> None:
    assert PAGE.read_text() == resolution.markdown(load())


def test_a_number_is_seen_at_a_thousandth_or_finer() -> None:
    """But those that only decide how many elements something has."""
    counting = {"ffn_multipliers", "qkv_multipliers", "partial_rotary_factor"}
    coarse = [
        (result.port, result.field, result.resolution)
        for result in load()
        if result.resolution is not None
        and result.resolution > 1e-3
        and result.field not in counting
    ]
    assert coarse == []


@pytest.mark.parametrize("field", ["rms_norm_eps", "query_pre_attn_scalar", "sliding_window"])
def test_a_hyperparameter_is_seen_in_the_run(prober: Prober, field: str) -> None:
    result = prober.field(field, bisect=False)
    assert result.how == RUN
    assert result.message.startswith("prefill.0/blocks.0.")


def test_a_hyperparameter_that_makes_another_shape_keeps_the_model_from_being_built(
    prober: Prober,
) -> None:
    result = prober.field("intermediate_size", bisect=False)
    assert result.how == REFUSED
    assert "ff.w" in result.message


def test_an_inert_field_says_why(prober: Prober) -> None:
    result = prober.field("initializer_range", bisect=False)
    assert (result.how, result.inert) == (SAME, INERT["initializer_range"])


def test_a_field_that_is_neither_seen_nor_listed_is_not_explained() -> None:
    assert not FieldResult("gemma2", "new", 1.0, "", UNSEEN, None, "").is_explained
    assert not FieldResult("gemma2", "new", 1.0, "", SAME, None, "").is_explained


@pytest.mark.slow
def test_every_field_of_every_port_is_seen_or_inert() -> None:
    results = list(measure(list(models.CATALOGUE), bisect=False))
    assert [result for result in results if not result.is_explained] == []
