"""Photographs through every stage, as the command line runs them: a folder in COCO's layout and a full-size RN50."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import make_coco, real_pictures

from fvlm.cli import STAGES, main
from fvlm.params import read_tree

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "coco_folder.yaml"
QUICK = {
    "text": {"templates": ["a photo of a {}."]},  # RN50's text tower takes half a minute for all 80
    "model": {"image_size": 128, "fpn_channels": 16, "head_channels": 16, "head_fc_dim": 32},
    "train": {"steps": 2, "batch_size": 2, "warmup_steps": 1},
    "report": {"pictures": 2},
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Real COCO pictures where there are some, otherwise photograph-like JPEGs of our own."""
    folder = real_pictures()
    return folder if folder is not None else make_coco(tmp_path / "coco", train_images=24)


def test_every_stage_runs_on_a_folder_of_photographs(pictures, tmp_path, monkeypatch):
    tree = read_tree(RECIPE)
    for section, values in QUICK.items():
        tree[section] |= values
    tree["data"]["root"] = str(pictures)
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")

    for stage in ("download", "vlm", "splits", "val_splits", "text", "train", "detect", "evaluate", "report"):
        setting = ["--setting", "zsd"] if stage in ("splits", "train", "detect", "evaluate") else []
        assert stage in STAGES
        assert main([stage, *setting]) == 0

    metrics = json.loads(Path("metrics.json").read_text(encoding="utf-8"))
    assert metrics == json.loads(Path("metrics/zsd.json").read_text(encoding="utf-8"))
    assert 0 <= metrics["generalized_all_AP50"] < 20  # a random tower after two steps knows nothing, and says so
    card = json.loads(Path("models/vlm.json").read_text(encoding="utf-8"))
    assert (card["grid"], card["model_config"]["embed_dim"], card["pretraining"]) == (7, 1024, None)
    page = Path("reports/index.html").read_text(encoding="utf-8")
    assert "coco_folder" in page
