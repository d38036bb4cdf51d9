"""One small interface to every implementation: prefill, decode, read the cache, rewind."""

from edgeverify.sessions.session import Cache, Session

__all__ = ["Cache", "Session"]
