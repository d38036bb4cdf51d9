"""What is put beside upstream: medians, ratios, words and the folder that all read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from benchmarks import upstream
from benchmarks.upstream import Taken, in_turn, main, ratio, write_checkpoint


def taken(seconds: float, busy: float) -> Taken:
    return Taken(seconds, busy, 0, {})


def test_runs_take_turns_and_the_median_by_the_processor_counts() -> None:
    order: list[str] = []

    def runs(name: str, busy: list[float]) -> object:
        left = iter(busy)

        def one() -> Taken:
            order.append(name)
            return taken(1.0, next(left))

        return one

    found = in_turn(3, runs("a", [5.0, 1.0, 3.0]), runs("b", [2.0, 2.0, 9.0]))
    assert [one.busy for one in found] == [3.0, 2.0]
    assert order == ["a", "b"] * 3


def test_a_ratio_is_of_the_clock_and_of_the_processor() -> None:
    assert ratio(taken(30, 12), taken(10, 8)) == " 3.00 (processor  1.50)"
    assert ratio(taken(30, 12), taken(10, 8), taken(5, 4)) == " 5.00 (processor  2.00)"


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", "verifyer"])
    assert ended.value.code == 2
    assert "no part verifyer; there are check, recipes, memory" in capsys.readouterr().err


def test_a_process_that_fails_is_told_with_its_words() -> None:
    with pytest.raises(SystemExit, match=r"ended with 3:\nso it is"):
        upstream.run(
            [upstream.sys.executable, "-c", "import sys; sys.stderr.write('so it is'); sys.exit(3)"]
        )


def test_a_process_is_timed_by_its_own_work() -> None:
    code = "import time; time.sleep(0.3); print('done')"
    seconds, busy, printed = upstream.run([upstream.sys.executable, "-c", code])
    assert printed == "done\n"
    assert 0 < busy < seconds
    assert seconds > 0.3


def test_the_folder_is_one_that_both_sides_read(tmp_path: Path) -> None:
    subject = write_checkpoint("smollm", None, "tiny", tmp_path)
    assert subject.label == "smollm tiny, seeded"
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == 283
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        sizes = [file.get_tensor(name).numel() for name in names]
    assert "lm_head.weight" not in names
    assert subject.float32 == 4 * sum(sizes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("job", ["verifier", "forwards"])
def test_upstreams_jobs_run(job: str, tmp_path: Path) -> None:
    subject = write_checkpoint("smollm", None, "tiny", tmp_path)
    one = upstream.user(subject, job)
    assert one.peak > 100_000_000
    assert one.told.get("passed", True)
    assert one.told.get("largest difference", 0.0) < 1e-3
