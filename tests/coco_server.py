"""A local HTTP server that serves files honestly, or misbehaves for as many requests as it is told to."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Answers with the next of the server's `answers`, or honestly where none is left."""

    protocol_version = "HTTP/1.1"
    server: "CocoServer"

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.requests.append((self.path, self.headers.get("Range")))
            answer = self.server.answers.pop(0) if self.server.answers else honest
        body = self.server.files.get(self.path.removeprefix(self.server.proxied))
        if body is None:
            status(404)(self, b"")
        else:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                answer(self, body)

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status, self.server.reason)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def first(self) -> int:
        """The first byte that is asked for."""
        asked = self.headers.get("Range")
        return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)

    def log_message(self, format: str, *args: object) -> None:
        pass


class CocoServer(ThreadingHTTPServer):
    """Attributes: files by path, requests so far as (path, Range), and answers to come."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.answers: list[Answer] = []
        self.lock = threading.Lock()
        self.let_go = threading.Event()  # what a silent answer waits for
        self.reason: str | None = None  # in words, beside the status
        self.proxied = "\0"  # the address of another server, where this one is its proxy

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.requests]


@contextlib.contextmanager
def running() -> Iterator[CocoServer]:
    server = CocoServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.let_go.set()
        server.shutdown()
        server.server_close()


# --- answers ---


def honest(handler: Handler, body: bytes) -> None:
    first = handler.first()
    if first >= len(body):
        handler.head(416, Content_Range=f"bytes */{len(body)}", Content_Length=0)
    elif handler.headers.get("Range"):
        length = len(body) - first
        handler.head(206, Content_Length=length, Content_Range=f"bytes {first}-{len(body) - 1}/{len(body)}")
        handler.wfile.write(body[first:])
    else:
        handler.head(200, Content_Length=len(body))
        handler.wfile.write(body)


def ignores_range(handler: Handler, body: bytes) -> None:
    handler.head(200, Content_Length=len(body))
    handler.wfile.write(body)


def breaks_off_after(count: int, *, ignoring_range: bool = False) -> Answer:
    """`count` bytes of what was asked for, then the connection is closed."""

    def answer(handler: Handler, body: bytes) -> None:
        first = 0 if ignoring_range else handler.first()
        if first:
            length = len(body) - first
            handler.head(206, Content_Length=length, Content_Range=f"bytes {first}-{len(body) - 1}/{len(body)}")
        else:
            handler.head(200, Content_Length=len(body))
        handler.wfile.write(body[first : first + count])
        handler.hang_up()

    return answer


def falls_silent_after(count: int) -> Answer:
    """`count` bytes, then nothing, but the connection stays open."""

    def answer(handler: Handler, body: bytes) -> None:
        handler.head(200, Content_Length=len(body))
        handler.wfile.write(body[:count])
        handler.wfile.flush()
        handler.server.let_go.wait(60)

    return answer


def status(code: int, **headers: object) -> Answer:
    def answer(handler: Handler, body: bytes) -> None:
        handler.head(code, Content_Length=0, **headers)

    return answer


def says(code: int, content: bytes, **headers: object) -> Answer:
    """`content` under headers of one's own, then the connection is closed."""

    def answer(handler: Handler, body: bytes) -> None:
        handler.head(code, **{"Connection": "close", **headers})
        handler.wfile.write(content)
        handler.hang_up()

    return answer
