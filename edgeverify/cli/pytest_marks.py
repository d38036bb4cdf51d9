"""The marks of the pytest plugin, and whether a run asks for it. It imports nothing.

pytest reads this file wherever edgeverify is installed, in projects that never heard of it.
"""

from __future__ import annotations

from collections.abc import Sequence

PARITY, INVARIANTS, GOLDEN = "parity", "invariants", "golden"
MARKS = {
    PARITY: "a model against its Hugging Face original",
    INVARIANTS: "the contracts of a model's cache, RoPE, mask, padding and batch",
    GOLDEN: "a model against what it gave when its goldens were kept",
}
# Each option has a spelling that begins so, which no other project's option does.
UNMISTAKABLE = "--edgeverify-"


def is_asked_for(expression: str, args: Sequence[str]) -> bool:
    """Whether the mark expression chooses a mark, or an option has its unmistakable spelling.

    Args:
        expression: that of ``-m``; empty without one.
        args: the arguments, those of ``addopts`` included.
    """
    spelled = any(argument.startswith(UNMISTAKABLE) for argument in args)
    return spelled or bool(chosen_marks(expression))


def chosen_marks(expression: str) -> list[str]:
    """The marks that ``-m`` chooses by their names; ``not parity`` chooses none."""
    if not any(mark in expression for mark in MARKS):
        return []
    from _pytest.mark.expression import Expression

    try:
        compiled = Expression.compile(expression)
    except SyntaxError:
        return []  # pytest itself says so

    def chooses(*marks: str) -> bool:
        return bool(compiled.evaluate(lambda name, /, **_: name in marks))

    if chooses():
        return []
    return [mark for mark in MARKS if mark in expression and chooses(mark)]
