"""One small interface to every implementation: prefill, decode, read the cache, rewind."""

from edgeverify.backends.sessions.session import Cache, Session

__all__ = ["Cache", "Session"]
