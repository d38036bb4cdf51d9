"""The errors: one base exception, whose attributes carry the facts and whose ``str`` shows them.

Every public error says what is wrong, where, what was expected and what to do. The command line
prints ``str(error)`` as its one line and exits with status 2.
"""

from __future__ import annotations


class EdgeVerifyError(Exception):
    """Says what went wrong, where, what was expected and what to do: bad usage or bad input.

    Attributes:
        what: the fact, e.g. ``"tensor 'model.norm.weight' is missing"``.
        where: the file, option or object that is wrong, or None.
        expected: the right value, or None.
        fix: what the user can do about it, or None.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.expected = expected
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what if self.where is None else f"{self.where}: {self.what}"]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.fix:
            parts.append(self.fix)
        return "; ".join(" ".join(part.split()) for part in parts)


class UsageError(EdgeVerifyError):
    """An option, a name or a combination of them that cannot be run."""


class PortError(EdgeVerifyError):
    """A port that cannot be loaded, or whose model cannot be built from its config."""


class CheckpointError(EdgeVerifyError):
    """Weights that are missing, damaged, unsafe, or of another model."""


class TraceError(EdgeVerifyError):
    """A trace file that cannot be read, or that is not one."""


class ArtifactError(EdgeVerifyError):
    """A .tflite that cannot be written, opened or run as the case requires."""


class DiskFullError(ArtifactError):
    """The disk has no room for a file. A file that was there before is intact."""


class NoRoomError(ArtifactError):
    """A model that fits neither in memory nor on the disk. Nothing was run."""


class RecipeError(EdgeVerifyError):
    """A quantization recipe that cannot be read, or cannot be applied to a model."""


class CacheFullError(EdgeVerifyError):
    """A step that would end past the KV cache's last row. The runtime was not called."""


class GoldenError(EdgeVerifyError):
    """A golden that is damaged, edited, too large, or of another format."""
