"""Fetch one large file over HTTP: go on where it broke off, and hand it out only if every byte is right.

requests brings proxies (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), redirects and certificates. Going on with `Range` and
checking what comes back is done here: pooch, torchvision and fsspec start a file that broke off from its beginning,
urllib3's `Retry` repeats requests but not the body of an answer, and huggingface_hub resumes files of its hub only.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3

from .. import __version__
from ..errors import InputError, can_stand_in_a_line
from ..io import sha256_of_file
from .progress import ByteProgress, shown_bytes

BLOCK_BYTES = 1 << 20
TIMEOUT_S = 60.0  # without a byte, or without a connection
FAILURES = 8  # in a row, each without one more byte
LONGEST_PAUSE_S = 60.0
# HTTP statuses after which asking again can help; the last five are Cloudflare's
TRANSIENT = (408, 416, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524)


@dataclass(frozen=True)
class Remote:
    """A file on a server, known before it is asked for."""

    url: str
    size: int  # bytes
    sha256: str
    magic: bytes = b""  # what it begins with: other bytes are an error page, or were compressed on the way

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


class _BrokenOff(Exception):
    """Nothing more comes from this answer; asking again may help."""

    def __init__(self, reason: str, *, pause_s: float = 0, has_range: bool = True) -> None:
        super().__init__(_printable(reason))
        self.pause_s = pause_s  # the server's own wish
        self.has_range = has_range  # False: it says that it has no bytes where we wanted to go on


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
    have = _bytes_of(part)
    if have > remote.size:  # never of our writing
        part.unlink()
        have = 0
    failures, has_range = 0, True
    if have == remote.size:
        return
    with requests.Session() as session, ByteProgress(f"download: {remote.name}", remote.size, have) as progress:
        session.headers["User-Agent"] = f"fvlm/{__version__}"
        session.hooks["response"] = [_leave_a_redirect_unread]
        if have:
            progress.say(f"going on after {shown_bytes(have)} of {shown_bytes(remote.size)}")
        while True:
            before, reason, wish_s = have, "", 0.0
            # a server without our range may have another file: its next answer is asked for from the beginning, and
            # what is there stays until its checksum says that it is wrong
            start, has_range = have if has_range else 0, True
            try:
                _receive(session, remote, part, start, progress, timeout_s)
            except _BrokenOff as broken_off:
                reason, wish_s, has_range = str(broken_off), broken_off.pause_s, broken_off.has_range
            have = _bytes_of(part)
            if have == remote.size:
                return
            reason = reason or f"the answer ended after {have:,} of {remote.size:,} bytes"
            failures = 0 if have > before else failures + 1
            if failures == FAILURES:
                raise InputError(
                    f"{remote.url}: expected {remote.size:,} bytes, got {have:,}; the last of {FAILURES} failures in "
                    f"a row: {reason}; run the same command again to go on, or name another server in data.mirror"
                )
            wait_s = min(max(pause_s * 2 ** max(failures - 1, 0), wish_s), LONGEST_PAUSE_S)
            progress.say(f"{reason}; trying again in {wait_s:.0f} s")
            time.sleep(wait_s)


def _receive(
    session: requests.Session, remote: Remote, part: Path, start: int, progress: ByteProgress, timeout_s: float
) -> None:
    """Append to `part` what one answer brings of the bytes from `start`, which are asked for.

    Raises:
        _BrokenOff: the answer cannot be used, or broke off; what came before that is in `part`.
        InputError: asking again would not help.
    """
    with _ask(session, remote, start, timeout_s) as response:
        first = _first_byte(response, remote, start)
        have = _bytes_of(part)
        doubled = have - first  # of a server that ignores Range: passed over, so that nothing is lost
        with open(part, "ab") as file:
            # read1 hands out what has arrived; read would lose up to a block when the rest does not come
            while have < remote.size and (block := _read(response)):
                if first == 0 and block[: len(remote.magic)] != remote.magic[: len(block)]:
                    raise _BrokenOff(f"the answer begins with {block[:8]!r}, expected {remote.magic!r}")
                first = -1  # what follows is not the beginning
                new = block[doubled:][: remote.size - have]
                doubled -= min(doubled, len(block))
                file.write(new)
                have += len(new)
                progress.advance(len(new))


def _bytes_of(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _ask(session: requests.Session, remote: Remote, start: int, timeout_s: float) -> requests.Response:
    """The head of an answer, after redirects. Raises as `_receive`."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return session.get(remote.url, headers=headers, stream=True, timeout=timeout_s)
    except requests.exceptions.InvalidHeader as error:  # of the answer; it is a ValueError, too
        raise _BrokenOff(_short(error)) from None
    except ValueError as error:  # an address that is none, perhaps of a redirect
        reason, remedy = _short(error), "correct data.mirror or the proxy's address"
    except requests.exceptions.ProxyError as error:
        raise _BrokenOff(f"the proxy: {_short(error)}") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _BrokenOff(_short(error)) from None
    except OSError as error:  # of certificates, the only files that are read here
        reason, remedy = _short(error), "correct REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE"
    raise InputError(f"{remote.url}: {_printable(reason)}; {remedy}")


def _leave_a_redirect_unread(response: requests.Response, **_: Any) -> None:
    """Before requests follows it, for which it would read its whole body into memory, however long that is."""
    if response.is_redirect:
        response.raw.close()


def _read(response: requests.Response) -> bytes:
    try:
        return bytes(response.raw.read1(BLOCK_BYTES))
    except urllib3.exceptions.HTTPError as error:
        raise _BrokenOff(_short(error)) from None


def _first_byte(response: requests.Response, remote: Remote, start: int) -> int:
    """The place in the file, at most `start`, at which the answer's body begins. Raises as `_receive`."""
    status, said = response.status_code, f"HTTP status {response.status_code} ({response.reason})"
    if status in TRANSIENT:
        wish = response.headers.get("Retry-After", "")
        raise _BrokenOff(said, pause_s=float(wish) if wish.isdecimal() else 0, has_range=status != 416)
    if status not in (200, 206):
        raise InputError(
            f"{_printable(response.url)}: expected the file {remote.name}, got {_printable(said)}; name a server that "
            "has it in data.mirror, or a folder that holds COCO 2017 in data.root"
        )
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise _BrokenOff("got a web page instead of the file (the login page of a network?)")
    if status == 200:
        length = response.headers.get("Content-Length", str(remote.size))
        if length != str(remote.size):
            raise _BrokenOff(f"the server says that its file has {length} bytes, expected {remote.size:,}")
        return 0
    of = response.headers.get("Content-Range", "nothing")
    match = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d+|\*)", of)
    if not match or int(match[1]) > start or match[2] not in ("*", str(remote.size)):
        raise _BrokenOff(f"asked for the bytes from {start:,} of {remote.size:,}, got Content-Range {of[:80]!r}")
    return int(match[1])


def _short(error: Exception) -> str:
    """The reason on one line: requests and urllib3 wrap it several times over."""
    while isinstance(inner := (error.args or [None])[-1], Exception) or (inner := getattr(error, "reason", None)):
        if not isinstance(inner, Exception):
            break
        error = inner
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def _printable(text: str) -> str:
    """Without what a server could steer a terminal with."""
    return "".join(letter if can_stand_in_a_line(letter) else "?" for letter in text)
