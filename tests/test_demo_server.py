"""The demo's server over HTTP: the detector's own boxes, bad requests in one line, strangers kept out."""

import base64
import dataclasses
import io
import json
import socket
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image
from small_model import noise

pytest.importorskip("uvicorn", reason='the extra "demo" is not installed')
pytest.importorskip("starlette", reason='the extra "demo" is not installed')

from demo_server import boxes, request, serving

from fvlm.demo.guard import is_own
from fvlm.demo.server import Limits
from fvlm.predict.detections import decide

WORDS = ["dog", "person", "a zebra that walks"]
LIMITS = Limits(picture_bytes=200_000, pixels=20_000, words=100, request_bytes=20_000)


@pytest.fixture(scope="module")
def port(detector):
    with serving(detector, LIMITS) as port:
        yield port


def as_file(array: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, form, **options)
    return file.getvalue()


def claiming(side: int) -> bytes:
    """The head of a PNG file that says it has side * side pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + b"\0\0\0\x09IDAT"
        + bytes(9)
    )


def upload(port: int, body: bytes, **headers: str) -> tuple[int, dict]:
    status, _, content = request(port, "POST", "/picture", body, **headers)
    return status, json.loads(content)


@pytest.fixture(scope="module")
def key(port):
    status, taken = upload(port, as_file(noise(40, 60)))
    assert status == 200
    return taken["picture"]


def rows(found):
    return [
        [*box, score, place]
        for box, score, place in zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
    ]


def test_the_views_are_what_the_detector_predicts_with_those_weights(port, key, detector):
    status, found = boxes(port, key, WORDS, alpha=0.2, beta=0.7)
    assert status == 200
    assert found["words"] == [{"name": w, "supervised": w == "person"} for w in WORDS]
    for view, alpha, beta in (("fused", 0.2, 0.7), ("detector", 0, 0), ("vlm", 1, 1)):
        expected = detector.predict(noise(40, 60), WORDS, alpha=alpha, beta=beta, threshold=0)
        np.testing.assert_allclose(found["views"][view], rows(expected), rtol=0, atol=0.005)
        assert len(expected) > 10
    assert found["views"]["fused"] != found["views"]["detector"] != found["views"]["vlm"]


def test_boxes_above_a_threshold_are_those_of_the_page_for_any_threshold(detector):
    raw = detector.raw(noise(40, 60), WORDS)
    whole = decide(raw, detector.settings(threshold=0.0))[0]
    for threshold in (0.1, 0.3, 0.5):
        apart = decide(raw, detector.settings(threshold=threshold))[0]
        assert rows(apart) == [row for row in rows(whole) if row[4] >= threshold]


def test_weights_and_words_need_no_new_inference(port, key, detector, monkeypatch):
    monkeypatch.setattr(detector.network, "detect", lambda *_: pytest.fail("the network ran"))
    first = boxes(port, key, WORDS, alpha=0, beta=0)[1]["views"]["fused"]
    assert boxes(port, key, WORDS, alpha=1, beta=1)[1]["views"]["fused"] != first
    status, found = boxes(port, key, ["kite"])
    assert status == 200
    assert {row[5] for row in found["views"]["fused"]} == {0}


def test_only_the_views_that_are_asked_for_are_computed(port, key):
    assert boxes(port, key, WORDS, views=["fused"])[1]["views"].keys() == {"fused"}


def test_two_visitors_at_once_get_their_own_boxes(port, detector):
    wrong: list[str] = []
    words = {0: ["dog", "cat"], 1: ["zebra", "red bus", "kite"]}

    def visit(number: int) -> None:
        array = noise(40 + 8 * number, 60, seed=number)
        expected = rows(detector.predict(array, words[number], alpha=0.35, beta=0.65, threshold=0))
        key = upload(port, as_file(array))[1]["picture"]
        for _ in range(4):
            status, found = boxes(port, key, words[number])
            if status != 200 or not np.allclose(found["views"]["fused"], expected, rtol=0, atol=0.005):
                wrong.append(f"{number}: {status}")

    visitors = [threading.Thread(target=visit, args=(number,)) for number in words]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert wrong == []


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_of_usual_formats_are_taken_and_shown_again(port, form):
    status, taken = upload(port, as_file(noise(40, 60), form))
    assert (status, taken["width"], taken["height"]) == (200, 60, 40)
    with Image.open(io.BytesIO(base64.b64decode(taken["shown"].partition(",")[2]))) as shown:
        assert shown.size == (60, 40)


def test_a_turned_photograph_is_shown_upright(port):
    exif = Image.Exif()
    exif[0x0112] = 6
    status, taken = upload(port, as_file(noise(40, 60), exif=exif))
    assert (status, taken["width"], taken["height"]) == (200, 40, 60)


@pytest.mark.parametrize("size", [(1, 1), (2, 9000), (9000, 2)])
def test_pictures_of_odd_sizes_are_taken(port, size):
    status, taken = upload(port, as_file(noise(*size)))
    assert (status, taken["height"], taken["width"]) == (200, *size)
    assert boxes(port, taken["picture"], WORDS)[0] == 200


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"this is no picture", 422, "the picture: expected a whole picture, but it cannot be decoded"),
        (b"", 422, "the picture: expected a picture file, got an empty one"),
        (as_file(noise(40, 60))[:-2000], 422, "expected a whole picture"),
        (as_file(noise(200, 101)), 422, "expected at most 20,000 pixels, got 101 x 200"),
        (claiming(12_000), 422, "expected at most 20,000 pixels, got 12,000 x 12,000"),
        (claiming(100_000), 422, "exceeds limit"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
            422,
            "it has none of the known formats",
        ),
        (bytes(200_001), 413, "the picture: expected at most 200,000 bytes"),
    ],
    ids=["text", "empty", "truncated", "pixels", "bomb", "larger bomb", "eps", "bytes"],
)
def test_a_bad_upload_is_one_line(port, body, status, said):
    got, content = upload(port, body)
    assert got == status
    assert said in content["error"]
    assert "\n" not in content["error"]


def test_an_upload_that_does_not_say_its_size_is_cut_off_all_the_same(port):
    status, _, content = request(port, "POST", "/picture", iter([bytes(90_000)] * 3))  # http.client sends chunks
    assert status == 413
    assert "expected at most 200,000 bytes" in json.loads(content)["error"]


def test_an_upload_that_never_ends_is_broken_off_and_others_are_served(detector):
    limits = dataclasses.replace(LIMITS, uploads=1, upload_seconds=0.5)
    with serving(detector, limits) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"POST /picture HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nabc")
        assert upload(port, as_file(noise(40, 60)))[0] == 200
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "words: expected at least one, got none"),
        ([f"word {i}" for i in range(500)], "words: expected at most 100, got 500"),
        (["dog", "Dog "], "is given twice"),
        (["dog", " "], "got an empty name"),
        (["x" * 500], "names: expected a name of at most"),
        (["\ud800"], "half a character"),
        ("dog", "the request: expected texts and numbers where they belong"),
        ([1], "the request: expected texts and numbers where they belong"),
    ],
)
def test_bad_words_are_one_line(port, key, words, said):
    status, found = boxes(port, key, words)
    assert status == 422
    assert said in found["error"]
    assert "\n" not in found["error"]


def test_words_in_any_letters_work(port, key):
    status, found = boxes(port, key, ["собака", "犬", "<b>🐕</b>"])
    assert (status, [word["name"] for word in found["words"]]) == (200, ["собака", "犬", "<b>🐕</b>"])


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 2},
        {"beta": -0.1},
        {"alpha": float("nan")},
        {"alpha": True},
        {"alpha": "0"},
        {"views": ["all"]},
        {"picture": 3},
        {"more": 1},
    ],
)
def test_a_request_of_another_form_is_one_line(port, key, changes):
    status, found = boxes(port, key, WORDS, **changes)
    assert status == 422
    assert "\n" not in found["error"]


@pytest.mark.parametrize("body", [b"", b"no JSON", b"\xff\xfe", b"[" * 15_000, b"[]"])
def test_what_is_no_request_is_one_line(port, body):
    status, _, content = request(port, "POST", "/boxes", body)
    assert (status, json.loads(content)["error"].partition(":")[0]) == (422, "the request")


def test_a_picture_that_is_not_kept_is_gone(port):
    assert boxes(port, "AAAAAAAAAAAAAAAAAAAAAA", WORDS) == (
        410,
        {"error": "this picture is no longer kept; choose it again"},
    )


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:8000", True),
        ("localhost:8000", True),
        ("LOCALHOST", True),
        ("[::1]:8000", True),
        ("192.168.1.7:80", True),
        ("lab.example", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("127.1", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_the_demo_answers_to_its_own_names_and_to_numbers_alone(host, own):
    assert is_own(host, {"localhost", "lab.example"}) == own


def test_another_host_gets_nothing(port):
    for path in ("/", "/model", "/example/0.jpg"):
        status, headers, content = request(port, "GET", path, Host="evil.example")
        assert (status, headers["content-type"]) == (403, "application/json")
        assert b"Boxes" not in content


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_a_page_of_another_site_can_upload_nothing(port, headers):
    status, content = upload(port, as_file(noise(40, 60)), **headers)
    assert (status, content["error"]) == (403, "expected a request of the demo's own page, got one of another site")


def test_the_demos_own_page_can_upload(port):
    own = {"Origin": f"http://127.0.0.1:{port}", "Sec_Fetch_Site": "same-origin"}
    assert upload(port, as_file(noise(40, 60)), **own)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page.html",
        "/model.json",
        "/../model.json",
        "/..%2f..%2fmodel.json",
        "//etc/passwd",
        "/server.py",
        "/example/99.jpg",
    ],
)
def test_nothing_but_the_page_is_served(port, path):
    assert request(port, "GET", path)[0] == 404


def test_wrong_methods_are_refused_in_one_line(port):
    for method, path in (("POST", "/"), ("GET", "/picture"), ("DELETE", "/boxes")):
        status, _, content = request(port, method, path)
        assert (status, "error" in json.loads(content)) == (405, True)


def test_the_page_may_load_from_its_own_address_alone(port):
    for path in ("/", "/page.js", "/page.css", "/model"):
        status, headers, content = request(port, "GET", path)
        assert status == 200
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"
        if path != "/model":
            text = content.decode().replace("http://www.w3.org/2000/svg", "")  # a name, which nothing fetches
            assert "http:" not in text and "https:" not in text


def test_the_model_and_its_limits_are_told(port, detector):
    told = json.loads(request(port, "GET", "/model")[2])
    assert (told["alpha"], told["beta"]) == (detector.evaluate.alpha, detector.evaluate.beta)
    assert told["limits"] == {"bytes": 200_000, "pixels": 20_000}
    assert len(told["examples"]) == 6
    assert "CC-BY 4.0" in told["credit"]
    status, headers, content = request(port, "GET", told["examples"][0]["file"])
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (256, 256)
