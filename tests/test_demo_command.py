"""`python -m fvlm demo`: where it listens, and what it says when it cannot."""

import builtins
import os
import signal
import socket
import subprocess
import sys
import threading
import types
import urllib.request

import pytest
from small_model import write_folder

from fvlm.cli import main
from fvlm.demo import command
from fvlm.errors import InputError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # the command sets them for its process, which is this one
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")


def test_a_missing_package_is_named_with_the_command_that_installs_it(here, monkeypatch, capsys):
    original = builtins.__import__

    def without_uvicorn(name, *rest):
        if name == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_uvicorn)
    assert main(["demo"]) == 2
    said = capsys.readouterr().err
    assert said == "error: demo: the package uvicorn is not installed; pip install starlette uvicorn\n"


def test_it_listens_on_this_machine_alone_unless_told_otherwise(here, monkeypatch):
    asked = {}
    module = types.SimpleNamespace(run=lambda **options: asked.update(options) or 0)
    monkeypatch.setitem(sys.modules, "fvlm.demo.command", module)
    assert main(["demo"]) == 0
    assert (asked["host"], asked["port"], asked["model"]) == ("127.0.0.1", 8000, "runs/zsd")


def test_a_port_that_is_taken_and_a_host_that_is_not_here_are_one_line():
    said = r"cannot listen on 127\.0\.0\.1 port \d+ \(.+\); choose another --port"
    with command.listen("127.0.0.1", 0) as taken, pytest.raises(InputError, match=said):
        command.listen("127.0.0.1", taken.getsockname()[1])
    for host, port in (("192.0.2.1", 0), ("no.such.host.invalid", 0), ("127.0.0.1", 70_000)):
        with pytest.raises(InputError):
            command.listen(host, port)


def test_the_address_that_is_printed_can_be_opened():
    with command.listen("127.0.0.1", 0) as listening:
        assert command.address(listening, "localhost") == f"http://localhost:{listening.getsockname()[1]}/"
    with command.listen("0.0.0.0", 0) as listening:
        assert command.address(listening, "0.0.0.0").startswith(f"http://{socket.gethostname()}:")
        assert socket.gethostname().lower() in command.own_names("0.0.0.0")


def test_a_model_that_is_not_there_is_one_line(here, capsys):
    pytest.importorskip("uvicorn", reason='the extra "demo" is not installed')
    assert main(["demo", "--port", "0", "--model", "runs/none"]) == 2
    assert "runs/none: expected a model folder" in capsys.readouterr().err


@pytest.mark.slow
def test_it_serves_until_it_is_interrupted(here):
    pytest.importorskip("uvicorn", reason='the extra "demo" is not installed')
    folder = write_folder()
    process = subprocess.Popen(
        [sys.executable, "-m", "fvlm", "demo", "--port", "0", "--model", str(folder), "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    watchdog = threading.Timer(300, process.kill)
    watchdog.start()
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("fvlm demo: http://127.0.0.1:")
    with urllib.request.urlopen(line.split()[2]) as answer:
        assert b"<title>fvlm demo" in answer.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    watchdog.cancel()
    assert (process.returncode, out, err) == (0, "", "")
