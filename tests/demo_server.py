"""The demo on a free port of this machine, in a thread, with a tiny random model."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator

import uvicorn

from fvlm.demo.command import listen, own_names
from fvlm.demo.server import Limits, build_app
from fvlm.predict.detector import Detector


@contextlib.contextmanager
def serving(detector: Detector, limits: Limits) -> Iterator[int]:
    """The port."""
    listening = listen("127.0.0.1", 0)
    app = build_app(detector, own_names("127.0.0.1"), limits)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()
    listening.close()


def request(
    port: int, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str
) -> tuple[int, dict, bytes]:
    """Status, headers and body of an answer; `headers` with _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, content


def boxes(port: int, picture: str, words: object, /, **changes: object) -> tuple[int, dict]:
    """Status and content of an answer to POST /boxes."""
    asked = {"picture": picture, "words": words, "alpha": 0.35, "beta": 0.65, "views": ["fused", "detector", "vlm"]}
    status, _, content = request(port, "POST", "/boxes", json.dumps(asked | changes).encode())
    return status, json.loads(content)
