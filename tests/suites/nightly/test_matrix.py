"""The matrix file: its product, what it takes out, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeverify.core.errors import UsageError
from edgeverify.legs.ports import catalogue
from edgeverify.litert.recipes import RECIPES
from edgeverify.suites.nightly.matrix import Matrix, load_matrix


def matrix(tmp_path: Path, text: str) -> Matrix:
    path = tmp_path / "m.toml"
    path.write_text(f"schema = 1\n{text}")
    return load_matrix(path)


def test_the_shipped_matrix_has_every_port_recipe_and_layout() -> None:
    found = load_matrix()
    ids = {case.id for case in found.cases} | {out.id for out in found.excluded}
    assert ids == {
        f"{port}.tiny.{layout}.{recipe}"
        for port in catalogue()
        for layout in ("default", "transposed")
        for recipe in RECIPES
    }
    assert {case.runtimes for case in found.cases} == {("compiled_model", "tf_lite")}
    assert all(out.reason for out in found.excluded)


def test_an_include_is_a_product_in_order(tmp_path: Path) -> None:
    found = matrix(
        tmp_path,
        """
        [defaults]
        layouts = ["transposed"]
        memory = "3GiB"
        seed = 4
        [[include]]
        models = ["gemma2", "phi2"]
        sizes = ["tiny"]
        recipes = ["float32", "fp16"]
        [[include]]
        models = ["smollm"]
        layouts = ["default"]
        name = "short"
        prefill = [4, 8]
        """,
    )
    assert [case.id for case in found.cases] == [
        "gemma2.tiny.transposed.float32",
        "gemma2.tiny.transposed.fp16",
        "phi2.tiny.transposed.float32",
        "phi2.tiny.transposed.fp16",
        "smollm.short.tiny.default.float32",
    ]
    assert found.cases[0].memory == 3 * 2**30
    assert found.cases[1].selectors() == {
        "size": "tiny",
        "checkpoint": None,
        "recipes": ["fp16"],
        "runtimes": [],
        "kv_layout": "transposed",
        "seed": 4,
    }
    assert found.cases[4].options == {"seed": 4, "prefill": [4, 8]}
    assert found.cases[0].group == found.cases[1].group != found.cases[2].group


def test_checkpoints_take_the_place_of_sizes_and_are_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    found = matrix(
        tmp_path,
        """
        [defaults]
        sizes = ["tiny"]
        [[include]]
        models = ["smollm2"]
        checkpoints = ["./weights", "Org/Some-Model"]
        """,
    )
    assert [case.id for case in found.cases] == [
        "smollm2.weights.default.float32",
        "smollm2.Some-Model.default.float32",
    ]
    assert found.cases[0].checkpoint == str(tmp_path / "weights")
    assert found.cases[1].checkpoint == "Org/Some-Model"
    assert [case.size for case in found.cases] == [None, None]


def test_what_is_excluded_is_kept_with_its_reason(tmp_path: Path) -> None:
    found = matrix(
        tmp_path,
        """
        [[include]]
        models = ["gemma2", "phi2"]
        recipes = ["float32", "fp16"]
        [[exclude]]
        models = ["phi2"]
        recipes = ["fp16"]
        reason = "not yet"
        """,
    )
    assert len(found.cases) == 3
    assert [(out.id, out.reason) for out in found.excluded] == [
        ("phi2.tiny.default.fp16", "not yet")
    ]


INCLUDE = '[[include]]\nmodels = ["gemma2"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no case; expected an [[include]] with models"),
        ("[[include]]\n", 'has no models; expected models = ["gemma2", …] or ["all"]'),
        ('[[include]]\nmodels = ["gema2"]', "there is no model 'gema2'"),
        ('[[include]]\nmodels = "gemma2"', "models is 'gemma2'; expected a list of text"),
        (INCLUDE + "recipes = []", "recipes is []; expected a list of text"),
        (INCLUDE + 'recipe = ["fp16"]', "there is no 'recipe'; expected one of models, sizes"),
        (INCLUDE + 'recipes = ["int3"]', "there is no 'int3'"),
        (INCLUDE + 'layouts = ["odd"]', "there is no 'odd'; expected one of default, transposed"),
        (INCLUDE + 'sizes = ["9b"]', "there is no '9b'"),
        (INCLUDE + 'memory = "much"', "got 'much'; expected a size such as 8GiB or 512MiB"),
        (INCLUDE + "memory = 8", "memory is 8; expected text"),
        (INCLUDE + "time_limit = 0", "time_limit is 0; expected seconds above 0"),
        (INCLUDE + "decode_steps = 0", "got [0]; expected whole numbers from 1 on"),
        (INCLUDE + 'checkpoints = ["x"]\nsizes = ["tiny"]', "has both sizes and checkpoints"),
        (INCLUDE + INCLUDE, "'gemma2.tiny.default.float32' is there twice"),
        (INCLUDE + '[[exclude]]\nmodels = ["phi2"]\nreason = "x"', "fits no case"),
        (INCLUDE + '[[exclude]]\nmodels = ["gemma2"]', 'has no reason; expected reason = "…"'),
        (INCLUDE + '[[exclude]]\nreason = "x"', "excludes every case"),
        ("include = 3", "include is no list of tables; expected [[include]]"),
        ("[[includes]]", "there is no 'includes'"),
        ("[", "is no TOML"),
    ],
)
def test_what_no_run_could_take_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        matrix(tmp_path, text)
    assert words in str(caught.value)
    assert f"--matrix {tmp_path / 'm.toml'}" in str(caught.value)


def test_a_missing_file_and_another_schema_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read \\(No such file"):
        load_matrix(tmp_path / "none.toml")
    (tmp_path / "m.toml").write_text("schema = 2")
    with pytest.raises(UsageError, match="has schema 2; expected schema = 1"):
        load_matrix(tmp_path / "m.toml")
