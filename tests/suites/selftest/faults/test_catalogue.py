"""The catalogue holds together, without any model being run."""

from __future__ import annotations

import pytest

import edgeverify_models as models
from edgeverify.core import taps
from edgeverify.core.errors import UsageError
from edgeverify.suites.selftest.faults import catalogue
from edgeverify.suites.selftest.faults.catalogue import FAULTS
from edgeverify.suites.selftest.faults.fault import AREAS, REFUSED, Fault
from edgeverify.suites.selftest.faults.kinds import TRUE_OF

TRUE = [fault for fault in FAULTS if not fault.harmless]
HARMLESS = [fault for fault in FAULTS if fault.harmless]


def test_there_are_at_least_sixty_faults_in_every_area() -> None:
    assert len(TRUE) >= 60
    assert {fault.area for fault in TRUE} == set(AREAS)
    assert len(HARMLESS) >= 20


def test_names_are_unique() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_says_what_it_is_and_what_must_be_said_of_it(fault: Fault) -> None:
    assert fault.area in AREAS
    assert fault.description.endswith(".")
    assert fault.ports
    assert set(fault.ports) <= set(models.CATALOGUE)
    assert len(set(fault.ports)) == len(fault.ports)
    assert (fault.port is None) != (fault.file is None)
    assert bool(fault.cause) != bool(fault.harmless)
    if not fault.harmless:
        assert fault.where
    assert (fault.where == (REFUSED,)) == bool(fault.told)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_it_shows_at_taps_that_its_ports_have(fault: Fault) -> None:
    for name in fault.ports:
        hf = models.load(name).hf_configs["tiny"]
        layers = hf.get("num_hidden_layers") or hf["num_transformer_layers"]
        known = {*taps.standard_taps(layers), REFUSED}
        assert set(fault.expected(layers)) <= known


def test_expected_taps_are_in_forward_order_for_every_block() -> None:
    fault = catalogue.find("norm_eps_one_percent_off")
    assert fault.expected(2) == ("blocks.0.attn_norm", "blocks.1.attn_norm", "final_norm")


def test_a_fault_is_found_by_its_name_or_the_nearest_is_told() -> None:
    assert catalogue.find("rope_interleaved").area == "rope"
    with pytest.raises(UsageError, match="did you mean 'rope_interleaved'"):
        catalogue.find("rope_interleafed")


def test_a_fault_that_none_of_the_ports_has_is_refused() -> None:
    with pytest.raises(UsageError, match=r"does not apply to tinyllama.*phi2"):
        catalogue.choose(["head_bias_dropped"], ["tinyllama"])


def test_what_a_diagnosis_may_name_is_said_of_causes_that_there_are() -> None:
    causes = {fault.cause for fault in FAULTS if fault.port is not None and not fault.harmless}
    assert {cause for true_of in TRUE_OF.values() for cause in true_of} <= causes
