"""The GitHub workflows: that they are whole, and that the commands in them are ours."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeverify.cli import main
from edgeverify.core.units import bytes_of
from edgeverify.suites.nightly.matrix import load_matrix
from edgeverify.suites.nightly.plan import parse_shard, share

FOLDER = Path(__file__).parents[3] / ".github" / "workflows"
NAMES = ("nightly.yml", "pull-request.yml")


def workflow(name: str) -> dict[Any, Any]:
    return dict(yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")))


def steps(name: str) -> Iterator[dict[str, Any]]:
    for job in workflow(name)["jobs"].values():
        yield from job["steps"]


def commands(name: str) -> Iterator[list[str]]:
    for step in steps(name):
        for line in step.get("run", "").splitlines():
            yield shlex.split(re.sub(r"\$\{\{.*?\}\}", "1", line))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_workflow(name: str) -> None:
    found = workflow(name)
    assert {"name", True, "permissions", "jobs"} <= found.keys()  # YAML reads ``on`` as true
    for job in found["jobs"].values():
        assert job["runs-on"]
        assert job["timeout-minutes"] > 0
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert "@" in step.get("uses", "@")


@pytest.mark.parametrize("name", NAMES)
def test_its_commands_are_parsed_by_our_own_parser(name: str) -> None:
    ours = [words for words in commands(name) if words[0] == "edgeverify"]
    assert ours
    for words in ours:
        options = main._parser(words[1:]).parse_args(words[1:])
        assert options.command == words[1]
        if options.command == "nightly" and options.shard:
            parse_shard(options.shard)


@pytest.mark.parametrize("name", NAMES)
def test_its_cache_is_the_one_that_is_used_and_bounded(name: str) -> None:
    jobs = [job for job in workflow(name)["jobs"].values() if "env" in job]
    assert jobs
    for job in jobs:
        assert bytes_of("EDGEVERIFY_CACHE_SIZE", job["env"]["EDGEVERIFY_CACHE_SIZE"])
        cached = [s for s in job["steps"] if s.get("uses", "").startswith("actions/cache@")]
        assert [step["with"]["path"] for step in cached] == ["${{ env.EDGEVERIFY_CACHE }}"]
        assert "EDGEVERIFY_CACHE" in job["env"]


def test_the_shards_of_the_night_are_the_whole_matrix() -> None:
    job = workflow("nightly.yml")["jobs"]["shard"]
    numbers = job["strategy"]["matrix"]["shard"]
    run = next(step["run"] for step in job["steps"] if "--shard" in step.get("run", ""))
    total = re.search(r"\}\}/(\d+)", run)
    assert total is not None
    assert numbers == list(range(1, int(total[1]) + 1))
    cases = load_matrix().cases
    assert [c for k in numbers for c in share(cases, (k, len(numbers)))] == list(cases)
    assert not job["strategy"]["fail-fast"]


def test_the_report_comes_even_if_a_shard_failed_and_reads_what_shards_upload() -> None:
    jobs = workflow("nightly.yml")["jobs"]
    assert jobs["report"]["if"] == "always()"
    assert jobs["report"]["needs"] == "shard"
    uploads = [s for s in jobs["shard"]["steps"] if "upload-artifact" in s.get("uses", "")]
    download = next(s for s in jobs["report"]["steps"] if "download-artifact" in s.get("uses", ""))
    merge = next(s["run"] for s in jobs["report"]["steps"] if "--merge" in s.get("run", ""))
    assert uploads[0]["with"]["name"].startswith("shard-")
    assert uploads[0]["if"] == "always()"
    assert f"{download['with']['path']}/{download['with']['pattern']}" in merge


def test_a_pull_request_gates_what_it_touches_and_has_the_history_to_tell() -> None:
    found = list(steps("pull-request.yml"))
    assert found[0]["with"]["fetch-depth"] == 0
    assert (
        "edgeverify.suites.nightly.changed"
        in next(s for s in found if s.get("id") == "touched")["run"]
    )
    gate = next(step for step in found if "--changed-since" in step.get("run", ""))
    assert gate["if"] == "steps.touched.outputs.ports != ''"
    # No text of a pull request is put into a shell by the template.
    assert not any("${{ github.event" in step.get("run", "") for step in found)
