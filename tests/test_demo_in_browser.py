"""The demo's page in Chromium: type, drop, slide, and see the boxes change."""

import base64
import io
import json
import time

import pytest
from PIL import Image
from small_model import noise, save_picture

pytest.importorskip("uvicorn", reason='the extra "demo" is not installed')
pytest.importorskip("starlette", reason='the extra "demo" is not installed')

from chromium import PATIENCE_S, Chromium, found
from demo_server import serving

from fvlm.demo.server import Limits

pytestmark = pytest.mark.slow

LIMITS = Limits(picture_bytes=100_000, pixels=100_000)


@pytest.fixture(scope="module")
def port(detector):
    with serving(detector, LIMITS) as port:
        yield port


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    found()
    with Chromium(tmp_path_factory.mktemp("browser") / "profile") as chromium:
        yield chromium


@pytest.fixture
def page(chromium, port):
    """The demo, freshly opened at a desk's width; the threshold is 0, since the model is random."""
    chromium.resize(1280, 900)
    chromium.requests.clear()
    chromium.complaints.clear()
    open_page(chromium, port)
    yield chromium
    assert {url.partition("?")[0] for url in chromium.requests if not url.startswith(("data:", "blob:"))} <= {
        f"http://127.0.0.1:{port}{path}"
        for path in (
            "/",
            "/page.css",
            "/page.js",
            "/model",
            "/picture",
            "/boxes",
            *(f"/example/{i}.jpg" for i in range(6)),
        )
    }, "and nothing from elsewhere"
    assert [line for line in chromium.complaints if "status of 4" not in line] == []


def open_page(browser, port):
    browser.call("Page.navigate", url="about:blank")
    wait(browser, "location.href === 'about:blank'")
    browser.call("Page.navigate", url=f"http://127.0.0.1:{port}/")
    wait(browser, "document.querySelectorAll('#examples button').length === 6 && document.readyState === 'complete'")
    slide(browser, "threshold", 0)


def wait(browser, condition):
    end = time.monotonic() + PATIENCE_S
    while not browser.evaluate(condition):
        assert time.monotonic() < end, (
            f"never: {condition}; the page says: {browser.evaluate('document.body.innerText')}"
        )
        time.sleep(0.02)


def slide(browser, name, value):
    browser.evaluate(
        f"(() => {{ const s = document.getElementById('{name}'); s.value = {value};"
        "s.dispatchEvent(new Event('input')); })()"
    )


def say(browser, words):
    """Type words; waits for nothing."""
    browser.evaluate("document.getElementById('words').select()")
    browser.call("Input.insertText", text=words)


def drop(browser, content, name="picture.png"):
    data = base64.b64encode(content).decode()
    browser.evaluate(
        f"""(() => {{
            const bytes = Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], "{name}"));
            document.getElementById("drop").dispatchEvent(
              new DragEvent("drop", {{dataTransfer: carried, bubbles: true, cancelable: true}}));
        }})()"""
    )


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def frames(browser, view="fused"):
    """[class, x, y, width, height] of each frame, the best last."""
    listed = browser.evaluate(
        f"JSON.stringify([...document.querySelectorAll('#{view} .frame')].map((f) => [f.getAttribute('class'), "
        "...['x', 'y', 'width', 'height'].map((n) => +f.getAttribute(n))]))"
    )
    return json.loads(listed)


SETTLED = "!asking && wanted.size === 0 && !document.querySelector('.busy')"
LOOKED = f"{SETTLED} && picture !== null && answer.words.length > 0"


def test_type_drop_slide_and_see_the_boxes_change(page, detector):
    say(page, "dog, person")
    drop(page, png(noise(40, 60)))
    wait(page, f"{LOOKED} && answer.words.length === 2")
    expected = detector.predict(noise(40, 60), ["dog", "person"], threshold=0)
    drawn = frames(page)[::-1]
    assert len(drawn) == len(expected) > 10
    for (kind, x, y, width, height), box, name in zip(drawn, expected.boxes.tolist(), expected.names, strict=True):
        assert [x, y, x + width, y + height] == pytest.approx(box, abs=0.02)
        assert kind == ("frame known" if name == "person" else "frame novel")
    listed = page.evaluate("[...document.querySelectorAll('#fused li')].map((i) => i.textContent)")
    assert listed == [f"{n}{s:.2f}" for n, s in zip(expected.names, expected.scores.tolist(), strict=True)]

    posted = len([url for url in page.requests if url.endswith("/boxes")])
    cut = float(expected.scores[5])
    slide(page, "threshold", cut)
    assert (
        len(frames(page))
        == int((expected.scores >= float(page.evaluate("byId('threshold').value"))).sum())
        < len(drawn)
    )
    assert len([url for url in page.requests if url.endswith("/boxes")]) == posted, "the threshold asks nobody"
    slide(page, "threshold", 0)

    alone = frames(page, "detector")
    slide(page, "alpha", 0)
    slide(page, "beta", 0)
    wait(page, SETTLED)
    assert frames(page) == alone, "fused without the VLM is the detector alone"
    slide(page, "alpha", 1)
    slide(page, "beta", 1)
    wait(page, SETTLED)
    assert frames(page) == frames(page, "vlm") != alone
    assert len([url for url in page.requests if url.endswith("/picture")]) == 1, "sliders need no inference"

    page.evaluate("byId('reset').click()")
    wait(page, SETTLED)
    assert page.evaluate("+byId('alpha').value") == pytest.approx(detector.evaluate.alpha)
    say(page, "a red kite")
    wait(page, "answer.words.length === 1")
    assert page.evaluate("byId('chips').innerText") == "a red kite"
    assert {frame[0] for frame in frames(page)} == {"frame novel"}
    assert len([url for url in page.requests if url.endswith("/picture")]) == 1, "nor do words"


def test_an_example_is_one_press_of_a_key_away(page):
    page.evaluate("document.querySelector('#examples button').focus()")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
    wait(page, LOOKED)
    assert len(frames(page)) > 10
    assert page.evaluate("document.querySelector('#examples button').getAttribute('aria-pressed')") == "true"
    page.evaluate("byId('all-words').click()")
    wait(page, "answer.words.length === 80")
    assert page.evaluate("document.querySelectorAll('#chips .known').length") == 48


def test_a_file_is_chosen_through_the_field(page, tmp_path):
    path = save_picture(tmp_path / "a.jpg", 90, 50)
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    wait(page, LOOKED)
    assert page.evaluate("document.querySelector('#vlm svg').getAttribute('viewBox')") == "0 0 50 90"


def test_errors_are_one_line_on_the_page_and_the_next_picture_takes_them_away(page):
    drop(page, b"no picture", "letter.jpg")
    wait(page, "!byId('error').hidden && !document.querySelector('.busy')")
    assert "cannot be decoded" in page.evaluate("byId('error').innerText")
    drop(page, bytes(100_001))
    wait(page, "byId('error').innerText.includes('choose a smaller one')")
    drop(page, png(noise(40, 60)))
    wait(page, f"{LOOKED} && byId('error').hidden")
    say(page, "dog, dog")
    wait(page, "byId('error').innerText.includes('given twice')")
    assert page.evaluate("byId('views').classList.contains('stale')"), "old boxes are no answer"
    say(page, " , ")
    wait(page, "byId('status').innerText === 'Type what to look for.'")
    assert frames(page) == []
    say(page, "dog")
    wait(page, f"{LOOKED} && answer.words.length === 1 && byId('error').hidden")
    assert not page.evaluate("byId('views').classList.contains('stale')")


def test_nothing_above_the_threshold_is_said(page):
    drop(page, png(noise(40, 60)))
    wait(page, LOOKED)
    slide(page, "threshold", 1)
    assert page.evaluate("document.querySelector('#fused li').innerText") == "Nothing above the threshold."
    assert page.evaluate("byId('status').innerText").startswith("0 boxes fused")


def test_words_are_text_and_never_markup(page):
    say(page, "<img src=x onerror=document.title='taken'>, dog")
    drop(page, png(noise(40, 60)))
    wait(page, f"{LOOKED} && answer.words.length === 2")
    assert page.evaluate("document.title") == "fvlm demo: boxes for words"
    assert page.evaluate("document.querySelectorAll('#chips img, ol img').length") == 0


def test_a_picture_that_the_server_forgot_is_sent_again(page):
    drop(page, png(noise(40, 60)))
    wait(page, LOOKED)
    page.evaluate("picture.key = 'AAAA'")
    say(page, "kite")
    wait(page, f"{LOOKED} && answer.words.length === 1 && picture.key !== 'AAAA'")
    assert len(frames(page)) > 10
    assert page.evaluate("byId('error').hidden")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_never_scrolls_sideways_and_has_a_name_for_every_control(page, width):
    page.resize(width, 844)
    say(page, "x" * 60 + ", dog")
    drop(page, png(noise(20, 300)))
    wait(page, f"{SETTLED} && (picture !== null || !byId('error').hidden)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    nameless = (
        "[...document.querySelectorAll('input, textarea, button')].filter((c) => !(c.labels && c.labels.length) && "
        "!c.innerText.trim() && !c.querySelector('img[alt]')).map((c) => c.id)"
    )
    assert page.evaluate(nameless) == []
