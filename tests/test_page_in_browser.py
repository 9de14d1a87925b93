import json

import pytest
from chromium import Chromium, found
from report_inputs import params_of, write_inputs

from fvlm.stages import report

pytestmark = pytest.mark.slow

VISIBLE = "[...document.querySelectorAll('figure.picture')].filter(f => f.getClientRects().length > 0)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """The report page of made-up runs, open in a browser."""
    found()
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        params = params_of(pictures=3)
        write_inputs(params, images=14, steps=20)
        report.run(params)
    with Chromium(folder / "profile") as browser:
        browser.open(folder / "reports/index.html")
        yield browser


def choose(browser, control, value):
    browser.evaluate(
        f"(() => {{ const c = document.getElementById('{control}'); c.value = {json.dumps(value)};"
        "c.dispatchEvent(new Event('change')); })()"
    )


def test_the_gallery_shows_the_pictures_of_the_chosen_class_and_kind_alone(browser):
    assert browser.evaluate(f"{VISIBLE}.length") == 9
    name = browser.evaluate("JSON.parse(document.querySelector('figure.picture').dataset.names)[0]")
    choose(browser, "gallery-class", name)
    shown = browser.evaluate(f"{VISIBLE}.map(f => JSON.parse(f.dataset.names))")
    assert 0 < len(shown) < 9
    assert all(name in names for names in shown)
    others = f"{VISIBLE}.flatMap(f => [...f.querySelectorAll('.box.other')].map(b => b.dataset.name))"
    assert name not in browser.evaluate(others)
    assert f"{len(shown)} picture" in browser.evaluate("document.getElementById('gallery-count').value")
    choose(browser, "gallery-class", "")
    choose(browser, "gallery-kind", "worst")
    assert browser.evaluate(f"{VISIBLE}.map(f => f.dataset.kind)") == ["worst"] * 3
    choose(browser, "gallery-kind", "")
    assert browser.evaluate(f"{VISIBLE}.length") == 9
    assert browser.evaluate("document.querySelectorAll('.box.other').length") == 0


def test_the_curve_of_the_chosen_class_is_drawn_for_every_setting(browser):
    points = "[...document.querySelectorAll('#curve-plot polyline')].map(l => l.getAttribute('points'))"
    names = browser.evaluate("[...document.getElementById('curve-class').options].map(o => o.value)")
    choose(browser, "curve-class", names[0])
    first = browser.evaluate(points)
    assert [len(line.split()) for line in first] == [101, 101]
    told = browser.evaluate("document.getElementById('curve-told').value")
    assert "zsd" in told
    assert "ovod" in told
    choose(browser, "curve-class", names[-1])
    assert browser.evaluate(points) != first


def test_every_picture_is_decoded_and_stands_in_all_three_panels(browser):
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.evaluate(
        "[...document.querySelectorAll('figure.picture')].every(f => [...f.querySelectorAll('svg')].length === 3 &&"
        "[...f.querySelectorAll('image, use')].every(i => i.getBoundingClientRect().width > 50))"
    )


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_itself_never_scrolls_sideways(browser, width):
    browser.resize(width, 844)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_nothing_is_requested_and_nothing_goes_wrong(browser):
    assert [url for url in browser.requests if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in browser.requests if url.startswith("file:")]) == 1
    assert browser.complaints == []
