"""`python -m fvlm demo`: the page on an address of this machine, until Ctrl+C."""

import contextlib
import ipaddress
import socket
import warnings

import torch
from PIL import Image

from ..compute import set_up_cpu
from ..errors import InputError
from ..params import Precision
from ..predict.detector import load_detector

MOST_CONNECTIONS = 64  # a browser opens up to six and keeps them


def run(*, model: str, host: str, port: int, device: str, threads: int, precision: Precision) -> int:
    """Serve the demo.

    Args:
        model: folder or `hf-hub:<owner>/<name>`.
        host: name or address to listen on.
        port: 0 for any that is free.

    Returns:
        0, when it was interrupted.

    Raises:
        InputError: an argument is wrong, or the optional packages are missing.
    """
    try:
        import uvicorn

        from .server import build_app
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise InputError(f"demo: the package {error.name} is not installed; pip install starlette uvicorn") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: expected a CUDA device, found none; say --device cpu")
    listening = listen(host, port)  # before the model, which takes seconds
    with contextlib.closing(listening):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the server's own limit is lower
        if device == "cpu":
            set_up_cpu(threads)
        app = build_app(load_detector(model, device=device, precision=precision), own_names(host))
        config = uvicorn.Config(
            app,
            log_level="warning",
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
        )
        print(f"fvlm demo: {address(listening, host)} (Ctrl+C ends it)", flush=True)
        if not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
            print("fvlm demo: whoever reaches this machine can use it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again when it has ended in good order
            uvicorn.Server(config).run(sockets=[listening])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`, the first of its addresses.

    Raises:
        InputError: there is no such host on this machine, or the port is taken.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port: expected a number from 0 to 65535, got {port}")
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(place[:2], family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"demo: cannot listen on {host} port {port} ({reason}); choose another --port or --host"
        ) from None


def own_names(host: str) -> set[str]:
    """Host names under which the demo may be opened: another that points to this machine is somebody else's."""
    return {"localhost", host.lower(), socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}


def address(listening: socket.socket, host: str) -> str:
    """What to open in a browser."""
    found, port = listening.getsockname()[:2]
    if ipaddress.ip_address(found).is_unspecified:  # all addresses of the machine, whose own name is one of them
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
