"""What the network saw in the pictures of the last visitors: bounded in bytes and in time, each under a secret key."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..evaluation.raw import RawDetections
from ..predict.detector import Seen

GONE = "this picture is no longer kept; choose it again"


class GoneError(LookupError):
    """There is no such picture, or no longer."""


@dataclass(eq=False)
class _Kept:
    seen: Seen
    raw: RawDetections | None  # of the names that were asked for last
    last_used: float


class Store:
    """Several threads may use it. A key of 128 random bits is all that gives access to a picture's regions.

    Args:
        most_bytes: of all tensors together; past it the pictures that were not used for longest go, but the newest.
        seconds: after which a picture that nobody used goes, at the next call.
        clock: seconds that never run backwards.
    """

    def __init__(self, *, most_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most_bytes = most_bytes
        self.seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}  # what was used last stands last

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, seen: Seen) -> str:
        """Keep `seen`. Returns its key."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[key] = _Kept(seen, None, self._clock())
            self._tidy()
        return key

    def get(self, key: str) -> tuple[Seen, RawDetections | None]:
        """What is kept under `key`, which counts as a use.

        Raises:
            GoneError: nothing.
        """
        with self._lock:
            self._tidy()
            kept = self._kept.pop(key, None)
            if kept is None:
                raise GoneError(GONE)
            kept.last_used = self._clock()
            self._kept[key] = kept
            return kept.seen, kept.raw

    def remember(self, key: str, raw: RawDetections) -> None:
        """Keep `raw` in place of that of earlier names; nothing happens if the picture has gone meanwhile."""
        with self._lock:
            if key in self._kept:
                self._kept[key].raw = raw
                self._tidy()

    def _tidy(self) -> None:
        latest = self._clock() - self.seconds
        for key in [key for key, kept in self._kept.items() if kept.last_used < latest]:
            del self._kept[key]
        total = sum(map(_bytes, self._kept.values()))
        for key in list(self._kept)[:-1]:
            if total <= self.most_bytes:
                break
            total -= _bytes(self._kept.pop(key))


def _bytes(kept: _Kept) -> int:
    raw = kept.raw
    return kept.seen.bytes + (0 if raw is None else raw.detector_similarity.nbytes + raw.vlm_similarity.nbytes)
