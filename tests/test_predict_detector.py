"""`load_detector` and its detector: the pipeline's boxes for the pipeline's names, and any other words."""

import dataclasses
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from small_model import noise, save_picture, tiny_params, write_folder

import fvlm
from fvlm import layout, load_detector
from fvlm.data.coco import categories
from fvlm.data.dataset import ValidationPictures
from fvlm.detector.trained import load_trained
from fvlm.errors import InputError
from fvlm.evaluation.protocols import protocols
from fvlm.predict import detector as module
from fvlm.predict.detections import decide
from fvlm.stages.detect import run_detector
from fvlm.tensors import load_tensors

NAMES = ["dog", "red bus", "a zebra that walks"]
SIZES = [(40, 60), (64, 32), (20, 20), (90, 91)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("pipeline"))
        yield write_folder().resolve()


@pytest.fixture(scope="module")
def detector(folder):
    return load_detector(folder)


@pytest.fixture
def paths(tmp_path):
    return [save_picture(tmp_path / f"{i}.png", *size, seed=i) for i, size in enumerate(SIZES)]


def same(a, b):
    return torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) and torch.equal(a.classes, b.classes)


def close(a, b):
    """Scores to the float16 of similarities: of two pictures at once a convolution may add in another order."""
    torch.testing.assert_close(a.scores, b.scores, rtol=2e-2, atol=1e-4)
    torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=0.05)


def test_importing_fvlm_does_not_import_torch_and_unknown_names_are_unknown():
    code = "import fvlm, sys; assert 'torch' not in sys.modules; fvlm.load_detector; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'load_detecter'"):
        fvlm.load_detecter  # noqa: B018


def test_a_validation_picture_gets_what_the_stage_detect_keeps_bit_for_bit(folder, detector, paths, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    images = [
        {"id": i, "file_name": path.name, "height": height, "width": width}
        for i, (path, (height, width)) in enumerate(zip(paths, SIZES, strict=True))
    ]
    network, card, _, _ = load_trained(layout.model("zsd"), "")
    text, metadata = load_tensors(layout.TEXT_EMBEDDINGS, "", "")
    pictures = ValidationPictures(
        {"images": images}, paths[0].parent, canvas_size=64, mean=card.image_mean, std=card.image_std
    )
    settings = dataclasses.replace(tiny_params().detect, batch_size=3)
    stage = run_detector(network, pictures, text["embeddings"], settings)
    raw = detector.raw(paths, metadata["names"][1:], batch_size=3)
    for name, tensor in stage.items():
        assert torch.equal(getattr(raw, name), tensor), name
    assert raw.supervised == tuple(n for n in raw.names if n in detector.supervised) and len(raw.supervised) == 48
    assert raw.vlm_temperature == card.temperature and raw.detector_temperature == network.temperature.item()


def test_predict_decides_as_evaluate_does(detector, paths):
    names = protocols()["generalized"].names
    raw = detector.raw(paths, [name for _, name in categories()])
    for ours, theirs in zip(detector.predict(paths, names), decide(raw, detector.evaluate, names), strict=True):
        assert len(ours) > 0 and same(ours, theirs)


def test_one_picture_gives_one_answer_and_a_batch_of_mixed_sizes_a_list(detector, paths):
    together = detector.predict(paths, NAMES, batch_size=3)
    assert [found.size_hw for found in together] == SIZES
    for path, found in zip(paths, together, strict=True):
        close(detector.predict(path, NAMES), found)
        height, width = found.size_hw
        assert found.boxes.min() >= 0 and (found.boxes[:, 2] <= width).all() and (found.boxes[:, 3] <= height).all()
        assert (found.scores.diff() <= 0).all()


def test_every_kind_of_picture_gives_the_same_boxes(detector, paths):
    array = noise(*SIZES[0], seed=0)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = detector.predict(paths[0], NAMES)
    for given in (str(paths[0]), Image.fromarray(array), array, tensor, tensor / 255, array[::-1][::-1]):
        assert same(detector.predict(given, NAMES), expected)
    [of_batch] = detector.predict(array[None], NAMES)
    assert same(of_batch, expected)


@pytest.mark.parametrize("size_hw", [(1, 1), (50, 20_000), (3, 500)])
def test_odd_sizes_give_boxes_within_the_picture(detector, size_hw):
    found = detector.predict(noise(*size_hw), NAMES)
    assert len(found) > 0 and torch.isfinite(found.scores).all()
    assert found.boxes.min() >= 0 and found.boxes[:, 2].max() <= size_hw[1] and found.boxes[:, 3].max() <= size_hw[0]


def test_names_that_had_boxes_are_fused_with_alpha_and_others_with_beta_unless_told(detector):
    array = noise(64, 64)
    raw = detector.raw(array, ["Dog", "  person ", "red bus"])
    assert raw.names == ("background", "Dog", "person", "red bus")
    assert raw.supervised == ("person",)  # dog is one of the 17; case and spaces make no difference
    assert detector.raw(array, ["dog", "red bus"], supervised=["Red  bus"]).supervised == ("red bus",)
    assert detector.raw(array, ["dog", "person"], supervised=()).supervised == ()


@pytest.mark.parametrize(
    ("name", "supervised", "acts", "idle"),
    [
        ("person", None, "alpha", "beta"),
        ("red bus", None, "beta", "alpha"),
        ("person", (), "beta", "alpha"),
        ("red bus", ["red bus"], "alpha", "beta"),
    ],
)
def test_alpha_acts_on_supervised_names_and_beta_on_the_others(detector, name, supervised, acts, idle):
    def predict(**weights):
        return detector.predict(noise(64, 64), [name], supervised=supervised, **weights)

    assert same(predict(**{idle: 0.9}), predict())
    assert not same(predict(**{acts: 0.9}), predict())


def test_threshold_and_number_of_boxes_are_chosen_by_the_call(detector):
    array = noise(64, 64)
    every = detector.predict(array, NAMES)
    middle = every.scores.median().item()
    assert same(detector.predict(array, NAMES, threshold=middle), every.above(middle))
    assert len(detector.predict(array, NAMES, max_detections=2)) == 2
    assert len(detector.predict(array, NAMES, nms_iou=0.05)) < len(every)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alpha": 1.5}, "alpha: expected a number from 0 to 1, got 1.5"),
        ({"beta": -1}, "beta: expected"),
        ({"threshold": float("nan")}, "threshold: expected"),
        ({"nms_iou": 2}, "nms_iou: expected"),
        ({"max_detections": 0}, "max_detections: expected a number from 1 on"),
        ({"batch_size": 0}, "batch_size: expected a number from 1 on"),
    ],
)
def test_numbers_out_of_range_are_refused(detector, changes, said):
    with pytest.raises(InputError, match=said):
        detector.predict(noise(8, 8), NAMES, **changes)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "expected at least one name to look for, got none"),
        (["dog", " "], "got an empty name"),
        (["dog", "red bus", "Dog "], "'Dog ' is given twice"),
        ("dog", r"expected a list of names, got one text 'dog'; write \['dog'\]"),
        ([3], "expected texts, got int '3'"),
        (["x " * 250], "at most 24 tokens in its longest prompt, got 257 for 'x x .*'; shorten it"),
        (["犬" * 500], "tokens in its longest prompt, got "),
    ],
    ids=["none", "empty", "twice", "a text", "a number", "500 letters", "500 signs"],
)
def test_names_that_cannot_be_looked_for_are_said_in_one_line(detector, names, said):
    with pytest.raises(InputError, match=said) as caught:
        detector.predict(noise(8, 8), names)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["犬", "собака", "🐶", "naïve café", "a {} b", "dog & cat", "background", "%s\t\\n"])
def test_names_in_any_letters_work(detector, name):
    found = detector.predict(noise(32, 32), [name, "dog"])
    assert found.vocabulary == (name, "dog") and torch.isfinite(found.scores).all()


def test_5000_names_compete(detector, monkeypatch):
    names = [f"thing {number}" for number in range(5000)]
    monkeypatch.setattr(module, "embed_names", lambda tower, of, templates: torch.randn(len(of), 16))
    found = detector.predict(noise(64, 64), names, max_detections=10)
    assert len(found) == 10 and len(found.vocabulary) == 5000


def test_a_name_is_embedded_once_and_known_names_never(folder, monkeypatch):
    detector = load_detector(folder)
    embedded = []

    def counted(tower, names, templates):
        embedded.extend(names)
        return torch.ones(1, 16)

    monkeypatch.setattr(module, "embed_names", counted)
    for _ in range(2):
        detector.predict(noise(8, 8), ["dog", "red bus", "zebra"])
    detector.predict(noise(8, 8), ["Red  Bus"])
    assert embedded == ["red bus"]


def test_an_embedded_name_is_what_the_stage_text_would_make_of_it(folder):
    detector = load_detector(folder)
    known = detector.embed(["dog", "stop sign"])
    detector._embedding_of.clear()
    assert torch.equal(detector.embed(["dog", "stop sign"]), known)


def test_a_bad_picture_stops_predict_and_not_a_stream(detector, paths, tmp_path):
    (tmp_path / "bad.jpg").write_text("no picture")
    mixed = [paths[0], tmp_path / "bad.jpg", *paths[1:], "missing.png"]
    outcomes = list(detector.stream(mixed, NAMES, batch_size=2))
    assert [isinstance(outcome, InputError) for outcome in outcomes] == [False, True, False, False, False, True]
    assert "bad.jpg" in str(outcomes[1]) and [o.size_hw for o in outcomes if hasattr(o, "size_hw")] == SIZES
    assert all(isinstance(o, InputError) for o in detector.stream(["a.png", "b.png"], NAMES))
    for call in (detector.predict, detector.raw):
        with pytest.raises(InputError, match=r"bad\.jpg"):
            call(mixed, NAMES)


def test_a_stream_reads_no_further_ahead_than_two_batches(detector):
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield np.zeros((4, 4, 3), np.uint8)

    stream = detector.stream(endless(), NAMES, batch_size=2)
    for taken in range(1, 7):
        next(stream)
        assert asked <= taken + 2 * 2 + 2
    stream.close()


def test_no_pictures_give_no_answers(detector):
    assert detector.predict([], NAMES) == []
    with pytest.raises(InputError, match="expected at least one picture, got none"):
        detector.raw([], NAMES)


def test_threads_that_share_a_detector_get_their_own_results(detector):
    pictures = [noise(48, 64, seed=seed) for seed in range(4)]
    vocabularies = [NAMES, ["cat"], ["person", "dog"], ["a b", "c d"]]
    expected = [detector.predict(p, v) for p, v in zip(pictures, vocabularies, strict=True)]
    wrong = []

    def user(place):
        for _ in range(3):
            found = detector.predict(pictures[place], vocabularies[place])
            if found.vocabulary != tuple(vocabularies[place]) or not same(found, expected[place]):
                wrong.append(place)

    users = [threading.Thread(target=user, args=(place,)) for place in range(4)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    assert wrong == []


def test_loading_and_predicting_change_no_setting_of_torch(folder):
    torch.manual_seed(3)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    load_detector(folder).predict(noise(8, 8), NAMES)
    after = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
