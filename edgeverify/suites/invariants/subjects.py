"""Makes the subjects of a run: the reference, the re-authored model and its files, as sessions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgeverify.backends import reference
from edgeverify.backends.sessions import Session
from edgeverify.backends.sessions.reauthored import ReauthoredSession
from edgeverify.backends.sessions.reference import ReferenceSession
from edgeverify.backends.sessions.tflite import TfliteSession
from edgeverify.core.case import Case
from edgeverify.core.compare import thresholds
from edgeverify.core.store import entries
from edgeverify.hf.config import reference_config
from edgeverify.hf.forward import forward_of
from edgeverify.legs.baselines import REFERENCE_SOURCES
from edgeverify.legs.conversion import converted
from edgeverify.legs.run import Run
from edgeverify.suites.invariants import strategies
from edgeverify.suites.invariants.agreement import Agreement
from edgeverify.suites.invariants.floors import cached_floor, floor_per_position
from edgeverify.suites.invariants.model import (
    ROTATION,
    CannotCheckError,
    Facts,
    Invariant,
    NotApplicableError,
    Rotary,
)
from edgeverify.suites.invariants.rope_floor import Rotation
from edgeverify.suites.invariants.rotaries import ReauthoredRotation, ReferenceRotation, rotary_of
from edgeverify.suites.invariants.subject import Subject

REFERENCE, REAUTHORED, TFLITE = "reference", "reauthored", "tflite"


@dataclass
class Workshop:
    """The models and files of one run, each made on first use.

    Attributes:
        run: the run.
        num_threads: for the interpreters.
        decode_batch: of the files that are made for the invariants of a batch; 1 for none.
    """

    run: Run
    num_threads: int = 1
    decode_batch: int = 1
    _made: dict[Any, Any] = field(default_factory=dict)

    def asked(self, invariant: Invariant, implementation: str) -> Any:
        """Returns what an invariant is tested on: a rotation, or the subject with its sessions.

        Raises:
            NotApplicableError: the model has no RoPE, or the port's cannot be reached.
        """
        if invariant.of != ROTATION:
            return self.subject(implementation)
        return self._once((ROTATION, implementation), lambda: self._rotation(implementation))

    def _rotation(self, implementation: str) -> Rotation:
        config = self.run.hf_config
        if implementation == REFERENCE:
            return ReferenceRotation(config)
        return ReauthoredRotation(self.run.port, config, self.run.state())

    def subject(self, implementation: str) -> Subject:
        """The subject called ``reference``, ``reauthored`` or ``tflite-{kernel}``."""

        def sessions(
            kv_layout: str | None = None, mask_as_input: bool | None = None, batch: bool = False
        ) -> Session:
            own = self.run.case
            return self._session(
                implementation,
                replace(
                    own,
                    kv_layout=own.kv_layout if kv_layout is None else kv_layout,
                    mask_as_input=own.mask_as_input if mask_as_input is None else mask_as_input,
                    decode_batch=self._batch_of_file(implementation, own) if batch else 1,
                ),
            )

        return Subject(
            implementation=implementation,
            facts=self.facts,
            agreement=self._agreement(of_file=implementation.startswith(TFLITE)),
            sessions=sessions,
            truth=lambda: self._session(REFERENCE, self.run.case),
        )

    def _batch_of_file(self, implementation: str, case: Case) -> int:
        # On PyTorch, any signature takes a batch. The transposed layout cannot convert one: see
        # tests/backends/test_runtime_edges.py.
        file = implementation.startswith(TFLITE) and case.kv_layout == "default"
        return self.decode_batch if file else 1

    @property
    def facts(self) -> Facts:
        """The facts that the HF config and the case state."""
        return self._once("facts", lambda: facts_of(self.run.hf_config, self.run.case))

    def _session(self, implementation: str, case: Case) -> Session:
        return self._once((implementation, case), lambda: self._new_session(implementation, case))

    def _new_session(self, implementation: str, case: Case) -> Session:
        if implementation == REFERENCE:
            return ReferenceSession(self._reference(), case.kv_cache_len, case.prefill_lengths)
        variant = self._once(case, lambda: self.run.of_case(case))
        if implementation == REAUTHORED:
            return ReauthoredSession(variant.model(), case)
        kernel = implementation.removeprefix(f"{TFLITE}-")
        path = self._once(("file", case), lambda: converted(variant))
        return TfliteSession(path, case, kernel, num_threads=self.num_threads)

    def _reference(self) -> Any:
        return self._once("model", lambda: reference.build(self.run.hf_config, self.run.state()))

    def _agreement(self, *, of_file: bool) -> Agreement:
        case, pool = self.run.case, strategies.pool(self.facts)
        key = (
            entries.versions(),
            entries.source_digest(*REFERENCE_SOURCES, "suites/invariants/floors.py"),
            self.run.checkpoint.identity,
            [list(tokens) for tokens in pool],
            list(case.prefill_lengths),
            of_file,
        )

        def measured() -> Mapping[str, Any]:
            with self.run.timed("floor of the invariants"):
                return floor_per_position(self._reference(), case, pool, of_file=of_file)

        floor = self._once(("floor", of_file), lambda: cached_floor(key, measured, self.run.cache))
        return Agreement(floor, thresholds("invariants"))

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def facts_of(hf_config: Mapping[str, Any], case: Case) -> Facts:
    """Returns what the tests must know, read from the HF config by transformers' own class."""
    config = reference_config(hf_config)
    try:
        rotary: Rotary | Exception = rotary_of(hf_config)
    except (NotApplicableError, CannotCheckError) as error:
        rotary = error
    return Facts(
        model=case.model,
        num_blocks=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        rows=case.kv_cache_len,
        lengths=case.prefill_lengths,
        windows=forward_of(hf_config).windows or (None,) * config.num_hidden_layers,
        rotary=rotary,
        prefill_logits=case.prefill_logits,
    )
