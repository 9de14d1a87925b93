"""The ONNX file, run by onnxruntime, against the same model in PyTorch."""

import json
import sys

import numpy as np
import pytest
import torch
from small_model import noise

from fvlm.cli import main
from fvlm.data.transforms import fit, render
from fvlm.detector.scores import class_log_probs, fuse_scores
from fvlm.evaluation.best import best_detections
from fvlm.predict.export import METADATA_KEY, export
from fvlm.predict.pictures import as_pixels

onnxruntime = pytest.importorskip("onnxruntime", reason='the extra "onnx" is not installed')
onnx = pytest.importorskip("onnx", reason='the extra "onnx" is not installed')

pytestmark = pytest.mark.slow

NAMES = ["horse", "umbrella", "a zebra that walks", "犬"]  # base, novel, and two of no list
SIZES = [(64, 64), (40, 60), (90, 31), (1, 1), (300, 200)]
ROOM = 250  # proposals


@pytest.fixture(scope="module")
def settings(detector):
    return detector.settings(alpha=0.3, beta=0.7, threshold=0.05, nms_iou=0.35, max_detections=25)


@pytest.fixture(scope="module")
def session(detector, settings, tmp_path_factory):
    object.__setattr__(detector.network.model, "rpn_post_nms_top_n", ROOM)
    path = tmp_path_factory.mktemp("onnx") / "detector.onnx"
    export(detector, NAMES, path, evaluate=settings)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def canvas_of(detector, picture):
    size = detector.network.model.image_size
    crop = fit(as_pixels(picture), size)
    return render([crop], size, detector.card.image_mean, detector.card.image_std), crop.size_hw


def by_onnx(session, canvas, size_hw):
    return session.run(None, {"image": canvas.numpy(), "size_hw": np.array(size_hw, np.float32)})


@torch.no_grad()
def by_torch(detector, evaluate, canvas, size_hw):
    text = detector.embed(NAMES)
    (found,) = detector.network.detect(canvas, [size_hw], text)
    probs = fuse_scores(
        class_log_probs(found.detector_similarity, detector.network.temperature.item()),
        class_log_probs(found.vlm_similarity, detector.card.temperature, background=evaluate.vlm_background),
        torch.tensor([name in detector.supervised for name in NAMES]),
        alpha=evaluate.alpha,
        beta=evaluate.beta,
        renormalise=evaluate.renormalise,
    )[:, 1:]
    regions, classes, scores = best_detections(
        found.boxes,
        probs,
        nms_iou=evaluate.nms_iou,
        score_threshold=evaluate.score_threshold,
        max_detections=evaluate.max_detections,
    )
    return found.boxes[regions].numpy(), scores.numpy(), classes.numpy()


@pytest.mark.parametrize("size", SIZES)
def test_boxes_scores_and_classes_are_those_of_torch(detector, settings, session, size):
    height, width = size
    canvas, size_hw = canvas_of(detector, noise(height, width, seed=height + width))
    boxes, scores, classes = by_onnx(session, canvas, size_hw)
    expected_boxes, expected_scores, expected_classes = by_torch(detector, settings, canvas, size_hw)
    assert len(scores) > 5
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    np.testing.assert_array_equal(classes, expected_classes)
    np.testing.assert_allclose(boxes, expected_boxes, atol=1e-3)
    assert (boxes >= 0).all() and (boxes <= np.array(size_hw[::-1] * 2, np.float32)).all()


def test_some_of_these_pictures_fill_the_room_for_proposals_and_some_do_not(detector, session):
    """What is suppressed must not come back where there is room: the sizes above are of both kinds."""
    counts = []
    for height, width in SIZES:
        canvas, size_hw = canvas_of(detector, noise(height, width, seed=height + width))
        (found,) = detector.network.detect(canvas, [size_hw], detector.embed(NAMES))
        counts.append(len(found.proposals))
    assert min(counts) < ROOM == max(counts)


def test_the_file_says_what_is_to_be_known_beside_the_graph(detector, session):
    facts = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    assert (facts["names"], facts["supervised"]) == (NAMES, ["horse"])
    assert (facts["canvas"], facts["model_sha256"]) == (64, detector.record.model_sha256)
    assert facts["evaluate"]["beta"] == 0.7
    assert [(x.name, x.shape) for x in session.get_inputs()] == [("image", [1, 3, 64, 64]), ("size_hw", [2])]


def test_the_command_writes_a_sound_file_which_may_find_nothing(detector, model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["export", "out/pets.onnx", "--model", str(model_folder), "--classes", "dog, cat", "--threshold", "1"]
    assert main(command) == 0
    assert "export: out/pets.onnx" in capsys.readouterr().out
    onnx.checker.check_model(onnx.load("out/pets.onnx"), full_check=True)
    session = onnxruntime.InferenceSession("out/pets.onnx", providers=["CPUExecutionProvider"])
    boxes, scores, classes = by_onnx(session, *canvas_of(detector, noise(50, 60)))
    assert (boxes.shape, scores.shape, classes.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--classes", ""], "expected names to look for, got none"),
        (["--classes", "dog", "--beta", "2"], "beta: expected a number from 0 to 1, got 2.0"),
        (["--classes", "dog, dog"], "is given twice"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(model_folder, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "out.onnx", "--model", str(model_folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_line(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["export", "file/out.onnx", "--model", str(model_folder), "--classes", "dog"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write file")


def test_without_the_extra_the_command_says_what_to_install(detector, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(Exception, match=r'pip install "fvlm\[onnx\]"'):
        export(detector, NAMES, tmp_path / "out.onnx")
