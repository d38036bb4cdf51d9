"""The leg ``runtime:litert_lm``: checks whether LiteRT-LM uses a correct file correctly.

The engine is compared with two things. What it feeds (token ids, start token, chat template) and
where it stops are compared with the checkpoint's tokenizer and configs. What it computes is
compared with the LiteRT interpreter's results of the same file, so that the engine is not blamed
for what is wrong in the file. If an answer differs, the possible wrong ways of use are tried on the
interpreter, and the one that gives the engine's answer is named.
"""

from __future__ import annotations

from edgeverify.legs.runtime.engine.expected import Wanted, wanted_of
from edgeverify.legs.runtime.engine.leg import Floors, engine_leg

__all__ = ["Floors", "Wanted", "engine_leg", "wanted_of"]
