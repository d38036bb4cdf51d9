"""One base exception whose attributes carry the facts, and one place that renders them.

Every public error says what is wrong, where, what was expected and what to do. The command line
prints ``str(error)`` as its one line and exits with status 2.
"""

from __future__ import annotations


class EdgeVerifyError(Exception):
    """Bad usage or bad input: what happened, where, what was expected, what to do.

    Attributes:
        what: the fact, e.g. ``"tensor 'model.norm.weight' is missing"``.
        where: the file, option or object it was found in, or None.
        expected: what would have been right, or None.
        fix: what the reader can do about it, or None.
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
    """A .tflite that cannot be made, opened or run as the case asks."""


class DiskFullError(ArtifactError):
    """There is no room for a file. Whatever was there before is whole."""


class NoRoomError(ArtifactError):
    """What is to be run fits neither in the memory nor on the disk. Nothing was run."""


class RecipeError(EdgeVerifyError):
    """A quantization recipe that cannot be read, or cannot be applied to a model."""


class CacheFullError(EdgeVerifyError):
    """A step that would end past the KV cache's last row. The runtime was not called."""


class GoldenError(EdgeVerifyError):
    """A golden that is damaged, edited, too large, or of another format."""
