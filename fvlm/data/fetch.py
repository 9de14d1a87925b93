"""Fetch one large file over HTTP: go on where it broke off, and hand it out only if every byte is right.

requests brings proxies (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), redirects and certificates. Going on with `Range` and
checking what comes back is done here: pooch, torchvision and fsspec start a file that broke off from its beginning,
urllib3's `Retry` repeats requests but not the body of an answer, and huggingface_hub resumes files of its hub only.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3

from .. import __version__
from ..errors import InputError
from ..io import sha256_of_file
from .progress import ByteProgress, shown_bytes

BLOCK_BYTES = 1 << 20
TIMEOUT_S = 60.0  # without a byte, or without a connection
FAILURES = 8  # in a row, each without one more byte
LONGEST_PAUSE_S = 60.0
TRANSIENT = (408, 416, 425, 429, 500, 502, 503, 504)  # HTTP statuses after which asking again can help


@dataclass(frozen=True)
class Remote:
    """A file on a server, known before it is asked for."""

    url: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


class _BrokenOff(Exception):
    """Nothing more comes from this answer; asking again may help."""

    def __init__(self, reason: str, *, pause_s: float = 0) -> None:
        super().__init__(reason)
        self.pause_s = pause_s  # the server's own wish


def fetch(remote: Remote, part: Path, *, timeout_s: float = TIMEOUT_S, pause_s: float = 1.0) -> None:
    """Make `part` hold all of `remote`. What it holds already is not asked for again, whenever it was fetched.

    Args:
        part: where the bytes arrive; after an error or a kill the next call goes on from it.
        timeout_s: how long a server may be silent.
        pause_s: the first pause after a failure; each further one in a row is twice as long, `LONGEST_PAUSE_S` at most.

    Raises:
        InputError: the server does not have the file, has another one, or failed `FAILURES` times in a row.
    """
    for last in (False, True):
        _complete(remote, part, timeout_s=timeout_s, pause_s=pause_s)
        print(f"download: {remote.name}: checking sha256", flush=True)
        found = sha256_of_file(part)
        if found == remote.sha256:
            return
        part.unlink()  # which of its bytes are wrong is unknown
        if not last:
            print(f"download: {remote.name}: wrong sha256 {found[:12]}..., once more from the beginning", flush=True)
    raise InputError(
        f"{remote.url}: expected sha256 {remote.sha256}, got {found}, twice; the server or a proxy on the way sends "
        "other bytes: name another server in data.mirror, or obtain the file yourself"
    )


def _complete(remote: Remote, part: Path, *, timeout_s: float, pause_s: float) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have > remote.bytes:  # never of our writing
        part.unlink()
        have = 0
    failures = 0
    if have == remote.bytes:
        return
    with requests.Session() as session, ByteProgress(f"download: {remote.name}", remote.bytes, have) as progress:
        session.headers["User-Agent"] = f"fvlm/{__version__}"
        if have:
            progress.say(f"going on after {shown_bytes(have)} of {shown_bytes(remote.bytes)}")
        while True:
            before, reason, wish_s = have, "", 0.0
            try:
                _receive(session, remote, part, have, progress, timeout_s)
            except _BrokenOff as broken_off:
                reason, wish_s = str(broken_off), broken_off.pause_s
            have = part.stat().st_size if part.exists() else 0
            if have == remote.bytes:
                return
            if have < before:
                progress.advance(have - before)
            reason = reason or f"the answer ended after {have:,} of {remote.bytes:,} bytes"
            failures = 0 if have > before else failures + 1
            if failures == FAILURES:
                raise InputError(
                    f"{remote.url}: expected {remote.bytes:,} bytes, got {have:,}; the last of {FAILURES} failures in "
                    f"a row: {reason}; run the same command again to go on, or name another server in data.mirror"
                )
            wait_s = min(max(pause_s * 2 ** max(failures - 1, 0), wish_s), LONGEST_PAUSE_S)
            progress.say(f"{reason}; trying again in {wait_s:.0f} s")
            time.sleep(wait_s)


def _receive(
    session: requests.Session, remote: Remote, part: Path, have: int, progress: ByteProgress, timeout_s: float
) -> None:
    """Append to `part` what one answer brings, beginning after `have` bytes.

    Raises:
        _BrokenOff: the answer cannot be used, or broke off; what came before that is in `part`.
        InputError: asking again would not help.
    """
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with session.get(remote.url, headers=headers, stream=True, timeout=timeout_s) as response:
            if response.status_code == 416:
                part.unlink(missing_ok=True)  # the server's file ends before ours: one of them is wrong
            first = _first_byte(response, remote, have)
            doubled = have - first  # of a server that ignores Range: passed over, so that nothing is lost
            with open(part, "ab") as file:
                # read1 hands out what has arrived; read would lose up to a block when the rest does not come
                while have < remote.bytes and (block := response.raw.read1(BLOCK_BYTES)):
                    new = block[doubled:][: remote.bytes - have]
                    doubled -= min(doubled, len(block))
                    file.write(new)
                    have += len(new)
                    progress.advance(len(new))
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        if isinstance(error, ValueError):  # an address that is none, perhaps of a redirect
            raise InputError(f"{remote.url}: {_short(error)}; correct data.mirror or the proxy's address") from None
        raise _BrokenOff(_short(error)) from None


def _first_byte(response: requests.Response, remote: Remote, have: int) -> int:
    """The place in the file, at most `have`, at which the answer's body begins. Raises as `_receive`."""
    status, url = response.status_code, response.url
    if status in TRANSIENT:
        wish = response.headers.get("Retry-After", "")
        raise _BrokenOff(f"HTTP status {status} ({response.reason})", pause_s=float(wish) if wish.isdecimal() else 0)
    if status not in (200, 206):
        raise InputError(
            f"{url}: expected the file {remote.name}, got HTTP status {status} ({response.reason}); name a server that "
            "has it in data.mirror, or a folder that holds COCO 2017 in data.root"
        )
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _BrokenOff("got a web page instead of the file (the login page of a network?)")
    if status == 200:
        length = response.headers.get("Content-Length", str(remote.bytes))
        if length != str(remote.bytes):
            raise _BrokenOff(f"the server says that its file has {length} bytes, expected {remote.bytes:,}")
        return 0
    said = response.headers.get("Content-Range", "nothing")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", said)
    if not match or int(match[1]) > have or match[2] not in ("*", str(remote.bytes)):
        raise _BrokenOff(f"asked for the bytes from {have:,} of {remote.bytes:,}, got Content-Range {said!r}")
    return int(match[1])


def _short(error: Exception) -> str:
    """The reason on one line: requests and urllib3 wrap it several times over."""
    while isinstance(inner := (error.args or [None])[-1], Exception) or (inner := getattr(error, "reason", None)):
        if not isinstance(inner, Exception):
            break
        error = inner
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
