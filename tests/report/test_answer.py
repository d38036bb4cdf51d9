"""The answer on made-up reports: order, merging, and what is said where little is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgeverify.core.leg import Leg
from edgeverify.core.results import (
    FAIL,
    PASS,
    UNCHECKED,
    AuditResult,
    Check,
    Finding,
    GoldenChange,
    GoldenResult,
    InvariantResult,
    LegResult,
    Report,
)
from edgeverify.report.answer import answer_of
from edgeverify.report.answer_text import LINES, WIDTH, answer_lines, part_lines
from edgeverify.report.audit_causes import told_apart
from edgeverify.report.causes import named_causes
from edgeverify.report.places import compact

COMMAND = "edgeverify check my_port.py:PORT"
Make = Callable[..., Report]


def cause(kind: str, *changes: str, taps: tuple[str, ...] = ("blocks.1.attn.k",)) -> Finding:
    return Finding(
        "authoring.cause", "authoring", f"prefill.0/{taps[0]}", "", kind, 0.6, taps, changes
    )


def config(*checks: tuple[str, str, str, str]) -> AuditResult:
    right = Check("layers", "ModelConfig", PASS, "3", "3")
    odd = (Check(item, where, FAIL, expected, found) for item, where, expected, found in checks)
    return AuditResult("config", (right, *odd))


def with_audit(report: Report, audit: AuditResult, leg: str = "authoring") -> Report:
    finding = Finding(f"audit.{audit.name}", leg, "", "; ".join(map(str, audit.odd)))
    audits = {**report.audits, audit.name: audit}
    return replace(report, audits=audits, findings=(finding, *report.findings))


def with_findings(report: Report, *findings: Finding) -> Report:
    return replace(report, findings=(*report.findings, *findings))


def lines(report: Report) -> list[str]:
    shown = answer_lines(answer_of(report))
    assert max(map(len, shown)) <= WIDTH
    return shown


BASE = [
    ("rotary base", "ModelConfig", "3700.0", "10000.0"),
    ("rotary base", "module", "3700.0", "10000.0"),
    ("rotary base", "file", "3700.0", "9999.999117439422"),
    ("rotary base", "file, prefill_16", "3700.0", "9999.999117439422"),
]


def test_an_audit_and_the_diagnosis_that_name_one_cause_are_one(report: Make) -> None:
    made = with_audit(report("fail", command=COMMAND), config(*BASE))
    made = with_findings(made, cause("rope.base", "rotary base 10000 → 3700"))
    assert lines(made) == [
        "FAIL  tinyllama tiny · seeded random weights · 69 prompt tokens + 8 decode steps",
        "cause  rotary base is 10000, should be 3700",
        "       found by config audit (ModelConfig, module, file, prefill_16) and diagnosis",
        "where  authoring (Hugging Face → port): attn.k of block 1",
        "       first at prefill.0/blocks.1.attn.k: error 71.0 times float32 noise (allowed 1.50)",
        "next   read rotary base from the HF config (here 3700) in my_port.py (model_config), "
        "then:",
        f"       {COMMAND}",
        "✗ config      4 of 5 values differ: rotary base",
        "✗ authoring   Hugging Face → port: 2 of 66 taps differ",
        "✓ conversion  port → .tflite: 66 taps agree, worst 1.02 of 1.50 allowed",
    ]


def test_a_pass_is_short(report: Make, audits: Callable[..., Any]) -> None:
    made = replace(report(), audits=audits())
    assert lines(made) == [
        "PASS  tinyllama tiny · seeded random weights · 69 prompt tokens + 8 decode steps",
        "✓ config      2 values agree",
        "✓ weights     2 tensors agree",
        "✓ signatures  2 tensors agree",
        "✓ edges       2 steps agree",
        "✓ authoring   Hugging Face → port: 66 taps agree, worst 1.02 of 1.50 allowed",
        "✓ conversion  port → .tflite: 66 taps agree, worst 1.02 of 1.50 allowed",
    ]


def test_fields_of_one_kind_with_equal_values_are_one(report: Make) -> None:
    norms = ("final norm eps", "attention norm eps", "feed-forward norm eps")
    checks = [
        (norm, place, "1e-05", found)
        for norm in norms
        for place, found in (("ModelConfig", "1.1e-05"), ("file", "1.0999999722e-05"))
    ]
    made = with_audit(report("fail"), config(*checks))
    (found,) = named_causes(made)
    assert found.text == (
        "norm eps is 1.1e-05, should be 1e-05 (final norm, attention norm, feed-forward norm)"
    )
    assert found.repair == "read norm eps from the HF config (here 1e-05)"


def test_blocks_are_told_where_not_all_have_it(report: Make) -> None:
    made = with_audit(report("fail"), config(("window", "ModelConfig, blocks 0, 2", "13", "14")))
    (found,) = named_causes(made)
    assert found.text == "window in blocks 0, 2 is 14, should be 13"
    assert found.blocks == {0, 2}


def test_what_is_no_number_is_told_in_the_words_of_the_diagnosis(report: Make) -> None:
    audit = config(("activation", "module", "gelu (tanh form)", "gelu"))
    made = with_findings(
        with_audit(report("fail"), audit), cause("ff.activation", "exact GELU → tanh GELU")
    )
    (found,) = named_causes(made)
    assert found.text == "activation: exact GELU, should be: tanh GELU"


@pytest.mark.parametrize(
    ("found", "right", "shown"),
    [
        ("9999.999117439422", "3700.0", ("10000", "3700")),
        ("0.20646002888679504", "0.20851441405707477", ("0.20646", "0.208514")),
        ("9.812500000000002", "9.8125", ("9.812500000000002", "9.8125")),
        ("-0.19038717", "-0.19038714", ("-0.1903872", "-0.1903871")),
        ("1000000.0", "10000.0", ("1000000", "10000")),
        ("none", "13", ("none", "13")),
        ("13.0", "13", ("13", "13")),
        ("inf", "1.0", ("inf", "1")),
    ],
)
def test_values_that_differ_never_look_equal(
    found: str, right: str, shown: tuple[str, str]
) -> None:
    assert told_apart(found, right) == shown


def test_several_causes_are_listed_with_who_names_them(report: Make) -> None:
    made = with_audit(report("fail", command=COMMAND), config(*BASE))
    others = [
        cause("ff.gate", "gate and up exchanged → in order", taps=("blocks.0.ff.out",)),
        cause("rope.base", "rotary base 10000 → 3700"),
        cause("bias", "bias left out → added", taps=("blocks.0.attn.v",)),
        cause("residual", "added twice → once", taps=("blocks.0.out",)),
    ]
    shown = lines(with_findings(made, *others))
    assert shown[1].startswith("cause  rotary base is 10000, should be 3700 · config audit (Mod")
    assert [line.strip() for line in shown[3:6]] == [
        "gate and up exchanged, should be: in order · diagnosis (ff.out of block 0)",
        "bias left out, should be: added · diagnosis (attn.v of block 0)",
        "and 1 more: see -v",
    ]


def test_what_explains_as_well_is_told(report: Make) -> None:
    made = with_findings(report("fail"), cause("rope.base", "rotary base 1 → 2", "RoPE x → y"))
    assert answer_of(made).cause == (
        "rotary base 1, should be: 2",
        "or, as good: RoPE x → y",
        "named by the diagnosis: repaired, these taps are within float32 noise",
    )


def test_tensors_that_stand_for_others_are_told_together(report: Make) -> None:
    def check(layer: int, name: str, found: str, where: str) -> Check:
        right = f"model.layers.{layer}.{name}.weight"
        return Check(right, f"{where}, w.{layer}.{name}", FAIL, right, found)

    loaded_twice = tuple(
        check(1, name, f"model.layers.0.{name}.weight", where)
        for name in ("q", "k", "v")
        for where in ("module", "file")
    )
    made = with_audit(report("fail"), AuditResult("weights", loaded_twice))
    (found,) = named_causes(made)
    assert found.text == "model.layers.0.* stands where model.layers.1.* belongs (3 tensors)"
    exchanged = tuple(
        check(layer, a, f"model.layers.{layer}.{b}.weight", "module")
        for layer in (0, 1)
        for a, b in (("k", "v"), ("v", "k"))
    )
    made = with_audit(report("fail"), AuditResult("weights", exchanged))
    text = "weight model.layers.*.v.weight → model.layers.*.k.weight"
    made = with_findings(made, cause("weight", text), cause("weight", text, taps=("blocks.0.out",)))
    (found,) = named_causes(made)
    assert found.text == ("model.layers.*: k.weight and v.weight are exchanged (4 tensors)")
    assert found.seen == ("weights audit (module)", "diagnosis")


def test_of_one_value_both_are_shown_and_no_leg_is_blamed(report: Make) -> None:
    wrong = [
        Check("a.weight", f"{at}, b.weight", FAIL, "0.5 at [3, 5]", "0.50000006", "1 of 9 differ")
        for at in ("module", "file")
    ]
    made = with_audit(report(command=COMMAND), AuditResult("weights", tuple(wrong)))
    assert lines(made)[1:6] == [
        "cause  a.weight: 1 of 9 differ",
        "       found 0.5000001 at [3, 5], should be 0.5",
        "       found only by the weights audit",
        "where  module, file, in b.weight; the outputs agree",
        f"next   load it unchanged in my_port.py, then: {COMMAND}",
    ]


def test_of_no_named_cause_the_error_is_described(report: Make) -> None:
    unexplained = Finding(
        "authoring.unexplained",
        "authoring",
        "prefill.0/blocks.1.attn.k",
        "",
        shape=("position 0 agrees, all others differ",),
        tried=146,
    )
    made = with_findings(report("fail", command=COMMAND), unexplained)
    answer = answer_of(made)
    assert not answer.named
    assert answer.cause == (
        "not named: none of 146 known faults explains it",
        "the error: position 0 agrees, all others differ, relative error 7e-06, near float32's "
        "own rounding",
    )
    assert answer.next == "look in my_port.py at the key projection, then:"


def test_what_the_named_causes_leave_open_is_told(report: Make) -> None:
    open_ = Finding("authoring.unexplained", "authoring", "", "", taps=("logits",), tried=9)
    made = with_findings(report("fail", "fail"), cause("ff.gate", "a → b"), open_)
    assert answer_of(made).cause == (
        "a, should be: b",
        "named by the diagnosis: repaired, these taps are within float32 noise",
        "not named: logits: none of 9 known faults explains it",
        "not named: what is wrong in conversion",
    )


def test_the_diagnosis_agrees_only_on_the_same_value_and_blocks(report: Make) -> None:
    made = with_audit(report("fail"), config(("window", "ModelConfig, blocks 0, 2", "13", "14")))
    for taps, change in (
        (("blocks.1.attn.out",), "window 14 → 13"),
        (("blocks.0.attn.out",), "window 15 → 13"),
    ):
        found = named_causes(with_findings(made, cause("attention.window", change, taps=taps)))
        assert [one.kind for one in found] == ["config", "code"]
    same = cause("attention.window", "window 14 → 13", taps=("blocks.0.attn.out",))
    assert len(named_causes(with_findings(made, same))) == 1


def test_operators_of_several_signatures_are_one(report: Make) -> None:
    found = [
        Finding(
            "conversion.op",
            "conversion",
            "prefill.0",
            "",
            operator=f"{index} CONCATENATION",
            signature=signature,
            module="blocks.1.attention",
        )
        for index, signature in ((91, "prefill_16"), (89, "decode"))
    ]
    answer = answer_of(with_findings(report(conversion="fail", command=COMMAND), *found))
    assert answer.cause == (
        "CONCATENATION of blocks.1.attention: right inputs, wrong output",
        "op 91 of prefill_16, op 89 of decode, each computed in float64",
    )
    assert answer.command == f"{COMMAND} --model-explorer nodes.json"


def test_a_file_without_a_named_operator_is_tried_with_other_kernels(report: Make) -> None:
    answer = answer_of(report(conversion="fail", command=f"{COMMAND} --kernel xnnpack"))
    assert answer.command == f"{COMMAND} --kernel builtin"
    builtin = report(conversion="fail", kernel="builtin", command=f"{COMMAND} --kernel builtin")
    assert answer_of(builtin).command == f"{COMMAND} --kernel reference"
    assert answer_of(report(conversion="fail")).command == (
        "edgeverify.verify(port, kernel='builtin')"
    )


def test_unchecked_says_what_and_that_nothing_was_wrong(report: Make) -> None:
    answer = answer_of(report(conversion="unchecked", reason="no tensor of that name"))
    assert answer.cause == (
        "no fault was found, but not everything could be checked",
        "no tensor of that name",
    )
    assert answer.where == ("conversion (port → .tflite): attn.k of block 1, logits",)


def test_memory_that_is_too_small_is_told_once(report: Make, audits: Callable[..., Any]) -> None:
    told = "needs about 9 GiB of memory, and there are 2 GiB allowed"
    made = report(command=f"{COMMAND} --memory-budget 2000 --size tiny")
    legs = {name: LegResult(Leg.of(name), UNCHECKED, {}, reason=told) for name in made.legs}
    unread = {n: AuditResult(n, (Check(n, "model", UNCHECKED, reason=told),)) for n in audits()}
    made = replace(made, legs=legs, audits=unread, environment={"memory": told})
    assert lines(made) == [
        "UNCHECKED  tinyllama tiny · seeded random weights · 69 prompt tokens + 8 decode steps",
        f"cause  not checked: {told}",
        "where  everything",
        "next   raise --memory-budget, or leave it out: "
        "edgeverify check my_port.py:PORT --size tiny",
        "? config      not checked",
        "? weights     not checked",
        "? signatures  not checked",
        "? edges       not checked",
        "? authoring   Hugging Face → port: not checked",
        "? conversion  port → .tflite: not checked",
    ]


def test_a_quantized_file_is_charged_itself_and_more_parts_share_lines(
    report: Make, audits: Callable[..., Any]
) -> None:
    name = "quantization:dynamic_int8"
    odd = Check("w.weight", "file, ff.w2.weight", FAIL, reason="1 of 480 scales are not right")
    made = report(command=f"{COMMAND} --recipe dynamic_int8")
    legs = {**made.legs, name: replace(made.legs["conversion"], leg=Leg.of(name))}
    legs["runtime:tf_lite"] = replace(made.legs["conversion"], leg=Leg.of("runtime:tf_lite"))
    made = replace(made, legs=legs, audits=audits())
    shown = lines(with_audit(made, AuditResult(name, (odd,)), name))
    assert len(shown) <= LINES
    assert shown[1:3] == [
        "cause  w.weight: 1 of 480 scales are not right",
        "       found only by the quantization:dynamic_int8 audit",
    ]
    assert shown[-6:] == [
        "✓ config, weights, signatures, edges",
        "✗ weights of dynamic_int8    1 of 1 weights differ: w.weight",
        "✓ authoring                  Hugging Face → port: 66 taps agree, worst 1.02 of 1.50 "
        "allowed",
        "✓ conversion                 port → .tflite: 66 taps agree, worst 1.02 of 1.50 allowed",
        "✓ quantization:dynamic_int8  weights → file: 66 taps agree, worst 1.02 of 1.50 allowed",
        "✓ runtime:tf_lite            interpreter → tf_lite: 66 taps agree, worst 1.02 of "
        "1.50 allowed",
    ]


def test_parts_that_agree_share_a_line_where_none_is_left(
    report: Make, audits: Callable[..., Any]
) -> None:
    answer = answer_of(replace(report("fail"), audits=audits(weights=FAIL)))
    fails = ["✗ weights     1 of 2 tensors differ: rotary base",
             "✗ authoring   Hugging Face → port: 2 of 66 taps differ"]  # fmt: skip
    assert part_lines(answer, room=4) == [*fails, "✓ config, signatures, edges, conversion"]
    assert part_lines(answer, room=1) == part_lines(answer, room=4)
    assert len(part_lines(answer, room=6)) == len(part_lines(answer)) == 6


def test_a_runtime_that_differs_is_told_apart_from_the_interpreter(report: Make) -> None:
    made = report(conversion="fail", command=COMMAND)
    leg = replace(made.legs["conversion"], leg=Leg.of("runtime:tf_lite"))
    made = replace(made, legs={"authoring": made.legs["authoring"], leg.name: leg}, findings=())
    answer = answer_of(made)
    assert answer.where[0] == ("runtime:tf_lite (interpreter → tf_lite): attn.k of block 1")
    assert answer.command == f"{COMMAND} --kernel builtin"


def test_a_leg_without_taps_gives_its_reason(report: Make) -> None:
    made = report(command=COMMAND)
    leg = LegResult(Leg.of("runtime:tf_lite"), FAIL, {}, reason="cannot be loaded")
    answer = answer_of(replace(made, legs={**made.legs, leg.name: leg}))
    assert answer.cause == ("not named: cannot be loaded",)
    assert answer.parts[-1].text == "interpreter → tf_lite: cannot be loaded"


def test_a_golden_that_moved_says_who_and_how_to_keep_it(report: Make) -> None:
    update = "edgeverify golden tinyllama --golden-dir golden --update-golden"
    golden = GoldenResult(
        "tinyllama-tiny.tflite.safetensors",
        FAIL,
        ("kernels",),
        ("moved: kernels", "kernels: the same file gives something else",
         f"if the change is meant: {update}"),
        (GoldenChange("prefill.0/logits", "moved by 3.2 of the noise floor", 3.2),),
    )  # fmt: skip
    shown = lines(replace(report(), goldens=(golden,)))
    assert shown[1:6] == [
        "cause  tinyllama-tiny.tflite.safetensors: moved: kernels",
        "       kernels: the same file gives something else",
        "where  prefill.0/logits: moved by 3.2 of the noise floor",
        f"next   if the change is meant: {update}",
        "✓ authoring   Hugging Face → port: 66 taps agree, worst 1.02 of 1.50 allowed",
    ]
    assert shown[-1] == "✗ golden      tinyllama-tiny.tflite.safetensors: moved: kernels"


def test_a_golden_that_was_missing_says_what_to_do_once(report: Make) -> None:
    told = ("there was no such golden: it has been written", "add x to version control")
    made = replace(report(), goldens=(GoldenResult("x", FAIL, (), told),), legs={})
    assert lines(made)[1:3] == [f"cause  x: {told[0]}", f"next   {told[1]}"]


def test_an_invariant_that_does_not_hold_shows_the_shortest_case(report: Make) -> None:
    result = InvariantResult(
        "cache.split",
        "reauthored",
        FAIL,
        7,
        reason="row 3 differs",
        contract="one prefill is two",
        arguments={"tokens": [1, 2]},
        seed=4,
        reproduction="python - <<'EOF'\nreproduce()\nEOF",
    )
    shown = lines(replace(report(command=COMMAND), invariants=(result,)))
    assert shown[1:6] == [
        "cause  cache.split does not hold on reauthored: row 3 differs",
        "       broken contract: one prefill is two",
        "where  shortest case found: tokens=[1, 2] (seed 4)",
        "next   see the shortest case and how to run it again:",
        f"       {COMMAND} --invariants -v",
    ]


def test_long_names_and_commands_wrap_and_can_be_copied(report: Make) -> None:
    long = f"{COMMAND} --checkpoint /{'folder/' * 11}model --recipe dynamic_int8 --kernel builtin"
    made = with_audit(
        report("fail", command=long, checkpoint=f"/{'folder/' * 20}model"), config(*BASE)
    )
    shown = lines(made)
    place = next(i for i, line in enumerate(shown) if line.strip().startswith("edgeverify check"))
    command = shown[place : place + 3]
    assert [line.endswith(" \\") for line in command] == [True, True, False]
    assert " ".join(line.removesuffix("\\").strip() for line in command) == long


def test_a_leg_alone_has_its_own_causes(report: Make) -> None:
    made = with_audit(report("fail", "fail", command=COMMAND), config(*BASE))
    assert answer_of(made, "authoring").cause[0] == "rotary base is 10000, should be 3700"
    alone = answer_of(made, "conversion")
    assert not alone.named
    assert alone.command == f"{COMMAND} --kernel builtin"
    audit = answer_of(made, "config")
    assert audit.cause[0] == "rotary base is 10000, should be 3700"
    assert audit.where == ("ModelConfig, module, file, prefill_16",)


def test_taps_of_the_same_blocks_are_told_together() -> None:
    named = ["blocks.0.attn.q", "blocks.0.attn.k", "blocks.1.attn.q", "blocks.1.attn.k", "logits"]
    assert compact(named, (0, 1)) == "attn.q and attn.k of every block, logits"
    assert compact(named, (0, 1, 2)) == "attn.q and attn.k of blocks 0, 1, logits"
    assert compact(["kv.3.k"]) == "kv.k of block 3"
    many = [f"blocks.{i}.out" for i in (0, 1, 2, 5)]
    assert compact(many) == "out of blocks 0–2, 5"
    whole = [f"blocks.1.{tap}" for tap in ("attn_norm", "attn.q", "attn.k", "attn.v", "ff.out")]
    assert compact(whole) == "5 taps, attn_norm first, of block 1"
