"""The demo's server: one page, and what its script asks for.

    POST /picture   a picture file -> the network runs once; its regions are kept under a key
    POST /boxes     key, words, alpha, beta -> boxes of the fused view, of the detector alone, of the VLM alone

Fusion and NMS run here and nowhere else, by the code that scores the pipeline (`decide`): milliseconds, so that a
slider is answered at once. New words cost their text embeddings and two matrix products. Boxes leave with all their
scores, and the page applies the threshold, which changes nothing else: a box is only suppressed by a better one.
"""

import base64
import io
import json
import threading
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from ..errors import InputError
from ..predict.detections import Detections, decide
from ..predict.detector import Detector
from ..predict.pictures import decode
from .examples import CREDIT, examples
from .guard import Guard
from .store import GoneError, Store

PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # others have decoders that run programs, as EPS does
SHOWN_SIDE = 1280  # longest side of the picture that goes back to the page, pixels
THRESHOLD = 0.3  # where the page's slider stands at first
VIEWS = ("fused", "detector", "vlm")
REQUEST_KEYS = {"picture", "words", "alpha", "beta", "views"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a visitor may ask for."""

    picture_bytes: int = 20 << 20
    pixels: int = 50_000_000  # 150 MB decoded
    words: int = 1000
    request_bytes: int = 1 << 20  # of all else
    uploads: int = 4  # that are read and decoded at once; more of them wait
    upload_seconds: float = 60
    kept_bytes: int = 256 << 20
    kept_seconds: float = 1800


class Demo:
    """The requests that need the detector.

    Args:
        detector: of the model folder.
        limits: of a request and of memory.
    """

    def __init__(self, detector: Detector, limits: Limits) -> None:
        self.detector = detector
        self.limits = limits
        self.store = Store(most_bytes=limits.kept_bytes, seconds=limits.kept_seconds)
        self._network = threading.Lock()  # one picture at a time: two would only share the same cores and memory
        self._uploads = anyio.Semaphore(limits.uploads)

    async def model(self, request: Request) -> Response:
        """What the page has to know."""
        shown = await run_in_threadpool(examples)
        record = self.detector.record
        return JSONResponse(
            {
                "setting": record.setting,
                "supervised": self.detector.supervised,
                "names": record.names[1:],
                "alpha": self.detector.evaluate.alpha,
                "beta": self.detector.evaluate.beta,
                "threshold": THRESHOLD,
                "limits": {"bytes": self.limits.picture_bytes, "pixels": self.limits.pixels},
                "examples": [{"file": f"/example/{i}.jpg", "names": one.names} for i, one in enumerate(shown)],
                "credit": CREDIT,
            }
        )

    async def example(self, request: Request) -> Response:
        """One of `examples`."""
        shown, number = await run_in_threadpool(examples), request.path_params["number"]
        if number >= len(shown):
            raise HTTPException(404)
        return Response(shown[number].jpeg, media_type="image/jpeg")

    async def picture(self, request: Request) -> Response:
        """Run the network on the picture that is the request's body."""
        async with self._uploads:
            body = await _body(request, self.limits.picture_bytes, "picture", self.limits.upload_seconds)
            return JSONResponse(await run_in_threadpool(self._take, body))

    def _take(self, body: bytes) -> dict[str, Any]:
        if not body:
            raise InputError("the picture: expected a picture file, got an empty one")
        Image.init()
        formats = tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF is not in every build of Pillow
        with self._network:
            pixels = decode(io.BytesIO(body), "the picture", most_pixels=self.limits.pixels, formats=formats)
            seen = self.detector.see(pixels)
        height, width = seen.size_hw
        return {"picture": self.store.add(seen), "width": width, "height": height, "shown": _as_data(pixels)}

    async def boxes(self, request: Request) -> Response:
        """Boxes of a kept picture for words and weights."""
        body = await _body(request, self.limits.request_bytes, "request", self.limits.upload_seconds)
        return JSONResponse(await run_in_threadpool(self._look, _asked(body, self.limits.words)))

    def _look(self, asked: dict[str, Any]) -> dict[str, Any]:
        seen, raw = self.store.get(asked["picture"])
        words = tuple(word.strip() for word in asked["words"])
        settings = {"detector": (0.0, 0.0), "vlm": (1.0, 1.0), "fused": (asked["alpha"], asked["beta"])}
        wanted = {
            view: self.detector.settings(alpha=alpha, beta=beta, threshold=0.0)
            for view, (alpha, beta) in settings.items()
            if view in asked["views"]
        }
        with self._network:
            if raw is None or raw.names[1:] != words:
                raw = self.detector.compare(seen, words)
                self.store.remember(asked["picture"], raw)
            views = {view: _as_rows(decide(raw, evaluate)[0]) for view, evaluate in wanted.items()}
        known = set(raw.supervised)
        return {"words": [{"name": word, "supervised": word in known} for word in words], "views": views}


def build_app(detector: Detector, names: Collection[str], limits: Limits | None = None) -> Guard:
    """The whole demo as an ASGI application.

    Args:
        names: host names under which it may be opened, beside numeric addresses (see `Guard`).
    """
    demo = Demo(detector, limits or Limits())
    folder = Path(__file__).parent
    routes = [
        Route(path, partial(_file, content=(folder / name).read_bytes(), media_type=media_type), methods=["GET"])
        for path, (name, media_type) in PAGE.items()
    ]
    routes += [
        Route("/model", demo.model, methods=["GET"]),
        Route("/example/{number:int}.jpg", demo.example, methods=["GET"]),
        Route("/picture", _in_one_line(demo.picture), methods=["POST"]),
        Route("/boxes", _in_one_line(demo.boxes), methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: _refusal}), names)


async def _file(request: Request, *, content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type)


def _in_one_line(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """`endpoint`, whose errors reach the page as one line of text."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except InputError as error:
            return _error(422, " ".join(str(error).split()))
        except GoneError as error:
            return _error(410, str(error))
        except TimeoutError:
            return _error(408, "the upload took too long; choose a smaller picture")
        except ClientDisconnect:
            return _error(400, "the upload was broken off")

    return answer


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)


def _error(status: int, line: str) -> Response:
    return JSONResponse({"error": line}, status_code=status)


async def _body(request: Request, most: int, what: str, seconds: float) -> bytes:
    """The request's body, never more than `most` bytes in memory.

    Raises:
        HTTPException: 413, it is longer.
        TimeoutError: it has not come in `seconds`.
    """
    too_long = HTTPException(413, f"the {what}: expected at most {most:,} bytes, got more; choose a smaller one")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > most:
        raise too_long
    body = bytearray()
    with anyio.fail_after(seconds):
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_long
    return bytes(body)


def _asked(body: bytes, most_words: int) -> dict[str, Any]:
    """The content of a request for boxes, its types checked; ranges and words are the detector's to check."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError("the request: expected JSON, got something else; reload the page") from None
    if not isinstance(asked, dict) or asked.keys() != REQUEST_KEYS:
        raise InputError(f"the request: expected the keys {', '.join(sorted(REQUEST_KEYS))}; reload the page")
    words, views = asked["words"], asked["views"]
    fits = (
        isinstance(asked["picture"], str)
        and isinstance(words, list)
        and all(isinstance(word, str) for word in words)
        and all(type(asked[weight]) in (int, float) for weight in ("alpha", "beta"))
        and isinstance(views, list)
        and all(view in VIEWS for view in views)
    )
    if not fits:
        raise InputError("the request: expected texts and numbers where they belong; reload the page")
    try:
        json.dumps(asked, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError("words: expected letters, got half a character (a lone surrogate); type it again") from None
    if not words:
        raise InputError("words: expected at least one, got none; type what to look for, with commas between")
    if len(words) > most_words:
        raise InputError(f"words: expected at most {most_words:,}, got {len(words):,}; leave some out")
    return asked


def _as_rows(found: Detections) -> list[list[float]]:
    """[x0, y0, x1, y1, score, place of the word] of each box, the best first."""
    rows = zip(found.boxes.double().tolist(), found.scores.double().tolist(), found.classes.tolist(), strict=True)
    return [[*(round(value, 2) for value in box), round(score, 6), place] for box, score, place in rows]


def _as_data(pixels: Tensor) -> str:
    """The picture as the network was shown it (upright, RGB) for an <img>: a browser cannot decode every format."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
