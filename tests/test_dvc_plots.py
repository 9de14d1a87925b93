"""`dvc plots`, as its users call it, on made-up results: curves, and the report's pictures, which need no network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report_inputs import params_of, write_inputs

from fvlm.stages import report

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder with dvc.yaml and every file that its plots name."""
    monkeypatch.chdir(tmp_path)
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", "dvc.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "recipes" / "emoji.yaml", "params.yaml")
    params = params_of(pictures=1)
    write_inputs(params, images=3, steps=5)
    report.run(params)
    return tmp_path


def dvc(*arguments: str) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    process = subprocess.run([sys.executable, "-m", "dvc", *arguments], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_plots_hold_the_losses_of_both_settings_the_sweeps_and_the_reports_pictures(results):
    subprocess.run(["git", "init", "-q"], check=True)
    swept = len((results / "runs/zsd/fusion_sweep.csv").read_text().splitlines()) - 1
    shown = json.loads(dvc("plots", "show", "--json"))["data"]
    for name, points in {
        "total loss": 2 * 5,  # settings, steps
        "class loss": 2 * 5,
        "novel AP50 over the sweep": swept,
        "base AP50 over the sweep": swept,
    }.items():
        (plot,) = shown[name]
        content = plot["content"] if isinstance(plot["content"], dict) else json.loads(plot["content"])
        assert len(content["data"]["values"]) == points, name
    dvc("plots", "show")
    page = (results / "dvc_plots" / "index.html").read_text()
    for name in ("losses", "fusion_sweep", "per_class", "precision_recall", "errors", "detections"):
        picture = results / "dvc_plots" / "static" / f"workspace_reports_{name}.png"
        assert picture.read_bytes() == (results / "reports" / f"{name}.png").read_bytes()
        assert f'<img src="static/{picture.name}">' in page
