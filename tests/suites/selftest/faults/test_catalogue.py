"""The catalogue holds together, without any model being run."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgeverify_models as models
from edgeverify.core import taps
from edgeverify.core.errors import UsageError
from edgeverify.suites.selftest.faults import catalogue
from edgeverify.suites.selftest.faults.catalogue import FAULTS
from edgeverify.suites.selftest.faults.fault import AREAS, REFUSED, Fault, Faults
from edgeverify_models.port import Port

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
    assert (fault.where == (REFUSED,)) == bool(fault.refusal)


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


def test_only_a_fault_of_a_port_has_kinds_of_cause() -> None:
    assert [fault.name for fault in FAULTS if fault.kinds and (fault.file or fault.harmless)] == []
    assert len([fault for fault in TRUE if fault.kinds]) > 100


def test_a_fault_is_made_of_the_function_below_its_row() -> None:
    faults = Faults("rope", where="embed")

    @faults.add("a cause", via=lambda port, change: (port, change(2)), kinds="rope.base rope.turn")
    def doubled(value: int) -> int:
        """It is
        doubled.

        A reason.
        """
        return 2 * value

    @faults.add("another", ports="gemma1 phi2", refusal="lm_head", area="head")
    def returned(port: Port) -> Port:
        """It is returned."""
        return port

    assert list(faults) == [doubled, returned]
    assert (doubled.name, doubled.area, doubled.description) == (
        "doubled",
        "rope",
        "It is doubled.",
    )
    assert (doubled.where, doubled.kinds) == (("embed",), ("rope.base", "rope.turn"))
    assert set(doubled.ports) == set(models.CATALOGUE)
    assert doubled.port is not None
    assert doubled.port("a port") == ("a port", 4)  # type: ignore[arg-type, comparison-overlap]
    assert (returned.area, returned.ports) == ("head", ("gemma1", "phi2"))
    assert returned.where == (REFUSED,)


def test_a_row_may_change_a_file(tmp_path: Path) -> None:
    faults = Faults("converter", changes="file")

    @faults.add("a cause", via=lambda source, target, change: change(source, target))
    def copied(source: Path, target: Path) -> None:
        """It is copied."""
        target.write_bytes(source.read_bytes())

    assert (copied.leg, copied.port) == ("conversion", None)
    assert copied.file is not None
    (tmp_path / "source").write_bytes(b"bytes")
    copied.file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"bytes"
