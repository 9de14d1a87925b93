"""Progress of long work that counts in bytes: a bar on a terminal, now and then a plain line elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


def shown_bytes(count: float) -> str:
    """A number of bytes for people, in decimal units: 19,336,861,798 is 19.3 GB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


class ByteProgress:
    """What is done of `total` bytes.

    Args:
        what: begins each line, such as "download: train2017.zip".
        total: bytes in all.
        done: bytes that an earlier run left behind; they do not count for the rate.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done, self.first = what, total, done, done
        self.began = self.said = time.monotonic()
        self.bar = (
            tqdm(total=total, initial=done, desc=what, unit="B", unit_scale=True) if sys.stderr.isatty() else None
        )

    def __enter__(self) -> "ByteProgress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, count: int) -> None:
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif time.monotonic() - self.said >= SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            rate = (self.done - self.first) / (self.said - self.began)
            left = f", {(self.total - self.done) / rate / 60:.0f} min left" if rate > 0 else ""
            self.say(f"{shown_bytes(self.done)} of {shown_bytes(self.total)}, {shown_bytes(rate)}/s{left}")

    def say(self, line: str) -> None:
        """A line of its own, which does not tear the bar apart."""
        if self.bar is not None:
            self.bar.write(f"{self.what}: {line}")
        else:
            print(f"{self.what}: {line}", flush=True)
