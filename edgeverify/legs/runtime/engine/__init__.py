"""The leg ``runtime:litert_lm``: whether LiteRT-LM uses a right file rightly.

The engine is held against two things. What it feeds (token ids, start token, chat template) and
where it stops are held against the checkpoint's tokenizer and configs. What it computes is held
against the LiteRT interpreter's results of the same file, so that it is not charged with what is
wrong in the file. Where an answer differs, the ways of use that could have led to it are tried on
the interpreter, and the one that gives the engine's answer is named.
"""

from __future__ import annotations

from edgeverify.legs.runtime.engine.expected import Wanted, wanted_of
from edgeverify.legs.runtime.engine.leg import Floors, engine_leg

__all__ = ["Floors", "Wanted", "engine_leg", "wanted_of"]
