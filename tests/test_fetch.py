import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from coco_server import (
    CocoServer,
    breaks_off_after,
    falls_silent_after,
    ignores_range,
    running,
    says,
    status,
)

from fvlm.data import fetch as module
from fvlm.data.fetch import FAILURES, Remote, fetch
from fvlm.errors import InputError

CONTENT = random.Random(0).randbytes(300_000)
PATH = "/zips/train2017.zip"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CocoServer]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with running() as server:
        server.files[PATH] = CONTENT
        yield server


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / ".train2017.zip.part"


def remote(server: CocoServer) -> Remote:
    return Remote(server.url + PATH, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def get(server: CocoServer, part: Path, *, timeout_s: float = 20) -> None:
    fetch(remote(server), part, timeout_s=timeout_s, pause_s=0)
    assert part.read_bytes() == CONTENT


def refusal(server: CocoServer, part: Path) -> str:
    with pytest.raises(InputError) as error:
        fetch(remote(server), part, timeout_s=20, pause_s=0)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_is_fetched_in_one_request_without_a_range(server, part):
    get(server, part)
    assert server.requests == [(PATH, None)]


def test_what_is_there_is_not_asked_for_again(server, part):
    part.write_bytes(CONTENT[:123_456])
    get(server, part)
    assert server.ranges == ["bytes=123456-"]


def test_a_file_that_is_there_is_checked_without_a_request(server, part):
    part.write_bytes(CONTENT)
    get(server, part)
    assert server.requests == []


def test_a_connection_that_breaks_off_goes_on_after_the_last_byte(server, part):
    server.answers = [breaks_off_after(100_000), breaks_off_after(7), breaks_off_after(1)]
    get(server, part)
    assert server.ranges == [None, "bytes=100000-", "bytes=100007-", "bytes=100008-"]


def test_breaking_off_often_is_no_failure_as_long_as_every_answer_brings_something(server, part):
    server.answers = [breaks_off_after(10) for _ in range(3 * FAILURES)]
    get(server, part)
    assert len(server.requests) == 3 * FAILURES + 1


def test_a_server_that_falls_silent_is_asked_again_and_what_it_sent_is_kept(server, part):
    server.answers = [falls_silent_after(5_000)]
    get(server, part, timeout_s=0.5)
    assert server.ranges[:2] == [None, "bytes=5000-"]


def test_a_server_that_ignores_range_costs_time_but_no_byte(server, part):
    part.write_bytes(CONTENT[:123_456])
    server.answers = [breaks_off_after(50_000, ignoring_range=True), breaks_off_after(150_000, ignoring_range=True)]
    server.answers.append(ignores_range)
    get(server, part)
    assert server.ranges == ["bytes=123456-", "bytes=123456-", "bytes=150000-"]


def test_an_answer_that_begins_before_what_was_asked_for_is_cut(server, part):
    part.write_bytes(CONTENT[:1000])
    whole = f"bytes 900-{len(CONTENT) - 1}/{len(CONTENT)}"
    server.answers = [says(206, CONTENT[900:], Content_Range=whole)]
    get(server, part)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "content_range",
    ["nothing at all", "bytes 1001-299999/300000", "bytes 1000-299999/300001", "bytes 1000-1999/2000", None],
)
def test_a_partial_answer_that_does_not_fit_is_not_used(server, part, content_range):
    part.write_bytes(CONTENT[:1000])
    headers = {} if content_range is None else {"Content_Range": content_range}
    server.answers = [says(206, b"x" * 500, **headers)]
    get(server, part)
    assert server.ranges == ["bytes=1000-", "bytes=1000-"]


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server, part, code):
    server.answers = [status(code)] * (FAILURES - 1)
    get(server, part)
    assert len(server.requests) == FAILURES


def test_a_server_that_stays_busy_is_named_with_what_it_said_and_what_is_there_is_kept(server, part):
    part.write_bytes(CONTENT[:1000])
    server.answers = [status(503)] * FAILURES
    message = refusal(server, part)
    assert message.startswith(f"{server.url}{PATH}: expected 300,000 bytes, got 1,000")
    assert "HTTP status 503 (Service Unavailable)" in message
    assert "run the same command again to go on" in message
    assert part.read_bytes() == CONTENT[:1000]
    get(server, part)


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_server_without_the_file_is_named_at_once(server, part, code):
    server.answers = [status(code)]
    message = refusal(server, part)
    assert message.startswith(f"{server.url}{PATH}: expected the file train2017.zip, got HTTP status {code} ")
    assert message.endswith("; name a server that has it in data.mirror, or a folder that holds COCO 2017 in data.root")
    assert len(server.requests) == 1


def test_a_server_without_the_range_is_asked_for_the_whole_and_what_is_there_stays(server, part):
    part.write_bytes(CONTENT[:200_000])
    server.answers = [status(416), breaks_off_after(250_000, ignoring_range=True)]
    get(server, part)
    assert server.ranges == ["bytes=200000-", None, "bytes=250000-"]


def test_wrong_bytes_of_which_a_server_has_no_range_do_not_stay(server, part):
    part.write_bytes(b"x" * 200_000)
    server.answers = [status(416)]
    get(server, part)
    assert server.ranges == ["bytes=200000-", None, None]


def test_a_server_whose_file_is_shorter_is_refused_and_what_is_there_stays(server, part):
    part.write_bytes(CONTENT[:200_000])
    server.answers = [status(416), says(200, CONTENT[:100_000])] * FAILURES  # of unknown length
    assert "the answer ended after 200,000 of 300,000 bytes" in refusal(server, part)
    assert part.read_bytes() == CONTENT[:200_000]
    assert len(server.requests) == FAILURES


def test_a_server_that_always_says_416_is_refused(server, part):
    server.answers = [status(416)] * FAILURES
    assert "HTTP status 416" in refusal(server, part)


def test_a_wrong_length_is_refused_before_a_byte_is_kept(server, part):
    server.answers = [says(200, b"<login>", Content_Length=7)] * FAILURES
    message = refusal(server, part)
    assert "the server says that its file has 7 bytes, expected 300,000" in message
    assert not part.exists()


def test_a_web_page_of_unknown_length_is_not_taken_for_the_file(server, part):
    server.answers = [says(200, b"<html>please log in</html>", Content_Type="text/html; charset=utf-8")]
    get(server, part)
    assert server.ranges == [None, None]


@pytest.mark.parametrize("there", [0, 100])
@pytest.mark.parametrize("headers", [{"Content_Encoding": "gzip"}, {"Content_Type": "Text/HTML"}, {}])
def test_other_bytes_than_the_file_begins_with_are_not_kept(server, part, there, headers):
    part.write_bytes(CONTENT[:there])
    wanted = Remote(server.url + PATH, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), magic=CONTENT[:4])
    server.answers = [says(200, b"\x1f\x8b", **headers), says(200, b"<html>please log in</html>", **headers)]
    fetch(wanted, part, pause_s=0)
    assert part.read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_what_a_server_says_cannot_steer_the_terminal(server, part, capsys):
    server.answers = [status(503, Retry_After=0)]
    server.reason = "\x1b[2J\x07gone"
    get(server, part)
    assert "HTTP status 503 (?[2J?gone)" in capsys.readouterr().out


def test_certificates_that_are_not_there_are_named_with_the_variable(part, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such.pem")
    with pytest.raises(InputError, match=r"/no/such\.pem; correct REQUESTS_CA_BUNDLE"):
        fetch(Remote("https://127.0.0.1:9/a.zip", 9, "0" * 64), part, pause_s=60)


def test_a_dead_proxy_is_not_taken_for_the_server(server, part, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert "in a row: the proxy: " in refusal(server, part)


def test_a_right_file_of_unknown_length_is_taken(server, part):
    server.answers = [says(200, CONTENT)]
    get(server, part)
    assert len(server.requests) == 1


def test_no_byte_beyond_the_known_size_is_kept(server, part):
    server.answers = [says(200, CONTENT + b"more")]
    get(server, part)
    assert len(server.requests) == 1


def test_an_answer_shorter_than_its_own_length_goes_on(server, part):
    server.answers = [says(200, CONTENT[:4000], Content_Length=len(CONTENT))]
    get(server, part)
    assert server.ranges == [None, "bytes=4000-"]


def test_wrong_bytes_are_fetched_once_more_and_then_refused(server, part):
    wrong = b"x" + CONTENT[1:]
    server.answers = [says(200, wrong, Content_Length=len(wrong))]
    get(server, part)
    part.unlink()
    server.answers = [says(200, wrong, Content_Length=len(wrong))] * 2
    message = refusal(server, part)
    assert f"expected sha256 {hashlib.sha256(CONTENT).hexdigest()}, got {hashlib.sha256(wrong).hexdigest()}" in message
    assert not part.exists()


def test_wrong_bytes_of_an_earlier_run_do_not_stay(server, part):
    part.write_bytes(b"x" * 1000)
    get(server, part)
    assert server.ranges == ["bytes=1000-", None]


def test_a_part_that_is_longer_than_the_file_begins_anew(server, part):
    part.write_bytes(CONTENT + b"x")
    get(server, part)
    assert server.ranges == [None]


def test_a_server_that_is_not_there_is_one_line(part):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets the port
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/a.zip"
        with pytest.raises(InputError, match=r"a\.zip: expected 9 bytes, got 0; .*refused") as error:
            fetch(Remote(address, 9, "0" * 64), part, timeout_s=5, pause_s=0)
    assert len(str(error.value)) < 400


def test_an_address_that_is_none_is_named_at_once(part):
    with pytest.raises(InputError, match=r"correct data\.mirror"):
        fetch(Remote("http:///a.zip", 9, "0" * 64), part, pause_s=60)


@pytest.mark.parametrize("address", ["ftp://a.zip", "http://[::1", "http://a..b/a.zip"])
def test_a_redirect_to_no_address_is_named_at_once(server, part, address):
    server.answers = [status(302, Location=address)]
    with pytest.raises(InputError, match=r"correct data\.mirror"):
        fetch(remote(server), part, pause_s=60)
    assert len(server.requests) == 1


@pytest.mark.parametrize("headers", [{"Content_Length": 10**12}, {"Transfer_Encoding": "chunked"}, {}])
def test_the_body_of_a_redirect_is_not_read(server, part, headers):
    def endless(handler, body):
        handler.head(302, Location=PATH, **headers)
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        while True:  # until nobody listens any more
            handler.wfile.write(chunk)

    server.answers = [endless]
    get(server, part)
    assert server.requests == [(PATH, None)] * 2


def test_a_redirect_in_a_circle_is_given_up(server, part):
    server.answers = [status(302, Location=PATH)] * 31 * FAILURES
    assert "redirects" in refusal(server, part)


def test_pauses_double_up_to_the_longest_and_honour_the_servers_wish(server, part, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    server.answers = [status(500)] * 4 + [status(503, Retry_After=30), status(503, Retry_After=10**6)]
    fetch(remote(server), part, pause_s=1)
    assert pauses == [1, 2, 4, 8, 30, module.LONGEST_PAUSE_S]


def test_a_byte_that_arrives_resets_the_pause(server, part, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    server.answers = [status(500), status(500), breaks_off_after(5), status(500)]
    fetch(remote(server), part, pause_s=1)
    assert pauses == [1, 2, 1, 1]


def test_the_environments_proxy_is_used(server, part, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    server.proxied = "http://coco.invalid"
    wanted = Remote("http://coco.invalid" + PATH, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    fetch(wanted, part, pause_s=0)
    assert server.requests == [("http://coco.invalid" + PATH, None)]


def test_plain_lines_say_what_happens_where_there_is_no_terminal(server, part, capsys):
    part.write_bytes(CONTENT[:100_000])
    server.answers = [status(503)]
    get(server, part)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "download: train2017.zip: going on after 100.0 kB of 300.0 kB"
    assert said[1] == "download: train2017.zip: HTTP status 503 (Service Unavailable); trying again in 0 s"
    assert said[-1] == "download: train2017.zip: checking sha256"


def test_a_download_that_is_killed_goes_on_where_it_was(server, part):
    server.answers = [falls_silent_after(120_000)]
    code = (
        "import sys; from pathlib import Path; from fvlm.data.fetch import *;"
        "fetch(Remote(sys.argv[1], int(sys.argv[2]), sys.argv[3]), Path(sys.argv[4]))"
    )
    wanted = remote(server)
    arguments = [wanted.url, str(wanted.size), wanted.sha256, str(part)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT)
    try:
        patience = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size == 120_000):
            assert process.poll() is None
            assert time.monotonic() < patience
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    get(server, part)
    assert server.ranges == [None, "bytes=120000-"]
