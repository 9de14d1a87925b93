"""Stands in for every module of fvlm/stages in test_workflow.py: writes the files that dvc.yaml declares for the stage.

Their content is a hash of all that the stage declares to depend on, so that it changes exactly where a real one may.
Each run leaves a line in $RAN.
"""

import os
from pathlib import Path
from typing import Any

import yaml

from fvlm.io import sha256_of_file, sha256_of_json, write_json
from fvlm.params import Params, read_tree


def run(params: Params, setting: str = "", seed: int | None = None) -> None:
    name = Path(__file__).stem
    of = "-".join(str(part) for part in (setting, seed) if part not in ("", None))
    with open(os.environ["RAN"], "a") as ran:
        ran.write(f"{name}@{of}\n" if of else f"{name}\n")
    stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][name]

    def path(entry: Any) -> str:
        text = entry if isinstance(entry, str) else next(iter(entry))
        for key, value in {
            "item.setting": setting,
            "item.seed": seed,
            "seeds[0]": params.seeds[0],
            "data.dataset": params.data.dataset,
        }.items():
            text = text.replace(f"${{{key}}}", str(value))
        return text

    files = [Path(path(dep)) for dep in stage["deps"]]
    files = sorted(f for file in files for f in (file.rglob("*.json") if file.is_dir() else [file]))
    sections = {key: read_tree()[key] for key in stage.get("params", [])}
    made_from = sha256_of_json([sections, [sha256_of_file(file) for file in files]])
    for kind in ("outs", "metrics", "plots"):
        for out in stage.get(kind, []):
            write_json(path(out), {"a_number": int(made_from[:4], 16), "of_" + (of or name): 1})
