import io
import sys

import pytest

from fvlm.data import progress as module
from fvlm.data.progress import ByteProgress, shown_bytes


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1.0 kB"), (815_585_330, "815.6 MB"), (19_336_861_798, "19.3 GB")],
)
def test_bytes_are_shown_in_decimal_units(count, shown):
    assert shown_bytes(count) == shown


def test_without_a_terminal_a_plain_line_comes_now_and_then(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with ByteProgress("download: a.zip", 10_000_000, done=1_000_000) as progress:
        for second in range(1, 61):
            now[0] = 100.0 + second
            progress.advance(50_000)
    assert capsys.readouterr().out.splitlines() == [
        "download: a.zip: 2.5 MB of 10.0 MB, 50.0 kB/s, 2 min left",
        "download: a.zip: 4.0 MB of 10.0 MB, 50.0 kB/s, 2 min left",
    ]


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with ByteProgress("download: a.zip", 10_000_000, done=5_000_000) as progress:
        progress.advance(5_000_000)
        progress.say("going on")
    assert "100%" in terminal.getvalue()
    assert "10.0M/10.0M" in terminal.getvalue()
    assert capsys.readouterr().out == "download: a.zip: going on\n"
