from pathlib import Path

import pytest
import yaml
from report_inputs import params_of

from fvlm import layout
from fvlm.errors import InputError
from fvlm.io import write_text
from fvlm.stages import first_seed

ROOT = Path(__file__).resolve().parents[1]
FILES = [path_of for files in layout.RUN_FILES.values() for path_of in files]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A working directory with the runs of seeds 3 and 0, each file with its own path as content; gives the params."""
    monkeypatch.chdir(tmp_path)
    for seed in (3, 0):
        for path_of in FILES:
            path = path_of(layout.Run("zsd", seed).name)
            write_text(path, str(path))
    return params_of(("zsd",), seeds=(3, 0))


def test_every_file_of_the_first_seed_and_of_no_other_is_copied(runs):
    first_seed.run(runs, "zsd")
    for path_of in FILES:
        assert path_of("zsd").read_text() == str(path_of("zsd_seed3"))
    assert layout.model("zsd_seed0").read_text() == "runs/zsd_seed0/model.safetensors", "and none is moved"


def test_a_missing_file_is_named_with_its_stage_and_nothing_is_copied(runs):
    layout.raw_detections("zsd_seed3").unlink()
    with pytest.raises(InputError) as error:
        first_seed.run(runs, "zsd")
    expected = (
        "runs/zsd_seed3/raw_detections.safetensors: not found; run `python -m fvlm detect --setting zsd --seed 3`"
    )
    assert str(error.value) == expected
    assert not layout.model("zsd").exists()


@pytest.mark.parametrize("stage", layout.RUN_FILES)
def test_a_stage_of_a_run_declares_the_files_that_layout_names(stage):
    """A file that train, detect or evaluate writes belongs into layout.RUN_FILES, and so into first_seed."""
    of_stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    declared = {out for kind in ("outs", "metrics", "plots") for out in of_stage.get(kind, [])}
    named = {str(path_of("${item.setting}_seed${item.seed}")) for path_of in layout.RUN_FILES[stage]}
    assert declared == named
