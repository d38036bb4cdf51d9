"""``pytest -m parity --model tinyllama``: one test per audit, leg and step, in any project.
``pytest -m invariants --model tinyllama``: one test per invariant and implementation.
``pytest -m golden --model tinyllama``: one test per golden.

The entry point. pytest imports it wherever edgeverify is installed, in projects that never heard
of it, so it only decides whether a run asks for edgeverify: the mark expression chooses one of
the marks, or an argument is one of the options. What options and tests need is imported then.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from edgeverify.cli.pytest_marks import MARKS, is_asked_for


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """Declares the options, if the run asks for them, once the project's own are known.

    ``pytest_addoption`` is too early for that: it runs before a conftest's, whose own ``--model``
    would then end every run in an error. ``args`` holds what stands in ``addopts``, too.
    """
    known = early_config.known_args_namespace
    asked = is_asked_for(getattr(known, "markexpr", ""), args) and not known.help
    if asked:
        from edgeverify.cli import pytest_options

        pytest_options.declare(parser)
        paths = pytest_options.paths(parser, args)
        known.file_or_dir = known.file_or_dir if paths is None else paths
    result = yield
    unknown = parser.parse_known_and_unknown_args(args)[1]
    if asked or unknown or known.help:
        from edgeverify.cli import pytest_options

        pytest_options.settle(early_config, parser, args, unknown, asked=asked)
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marks, for ``--strict-markers`` and ``--markers``."""
    for name, text in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
