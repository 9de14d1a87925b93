"""Model folders: moved, damaged, pushed and fetched."""

import json
import shutil
import sys
import types

import pytest

from fvlm import load_detector
from fvlm.errors import InputError
from fvlm.predict.folder import RECORD, TEXT, locate, push, read_record
from fvlm.tensors import load_tensors, save_tensors


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "moved")


def test_a_copied_folder_needs_nothing_of_the_pipeline(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    detector = load_detector("moved")
    assert detector.embed(["a thing that no stage embedded"]).shape == (2, 16)


@pytest.mark.parametrize("name", ["model.safetensors", "text.safetensors", "model.json"])
def test_a_missing_file_is_named_with_the_command_that_writes_it(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"moved: expected a model folder, but it lacks {name}; run `python -m fvlm p"):
        load_detector(folder)


def test_no_folder_at_all_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"runs/zsd: expected a model folder, found none; run `python -m fvlm package"):
        load_detector(tmp_path / "runs" / "zsd")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "another"}, "expected the record of an fvlm model folder 1, got format 'another'"),
        ({"evaluate": {"alpha": 2}}, "evaluate: alpha: expected"),
        ({"text": {}}, "text: expected the keys background, category_ids"),
        ({"model_sha256": "0" * 64}, "not the detector that model.json beside it describes"),
        ({"text_sha256": "0" * 64}, "not the text tower that model.json beside it describes"),
        ({"tokenizer": {}}, "cuts words into other tokens"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(folder, change, said):
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | change))
    with pytest.raises(InputError, match=said):
        load_detector(folder)


def test_a_damaged_text_tower_is_refused(folder):
    tensors, metadata = load_tensors(folder / TEXT, "", "")
    tensors["tower.ln_final.bias"] += 1
    save_tensors(folder / TEXT, tensors, metadata)
    with pytest.raises(InputError, match=r"text\.safetensors: not the text tower"):
        load_detector(folder)


def test_defaults_may_be_edited_in_the_record(folder):
    record = json.loads((folder / RECORD).read_text())
    record["evaluate"]["alpha"] = 0.125
    (folder / RECORD).write_text(json.dumps(record))
    assert read_record(folder).evaluate.alpha == 0.125


class Hub(types.ModuleType):
    """Stands in for huggingface_hub, and keeps what it was asked."""

    def __init__(self, folder, fails=False):
        super().__init__("huggingface_hub")
        self.folder, self.fails, self.asked = folder, fails, []

    def snapshot_download(self, repository, **options):
        self.asked.append((repository, options["revision"], sorted(options["allow_patterns"])))
        if self.fails:
            raise ConnectionError("no\nnetwork")
        return str(self.folder)

    def HfApi(self):
        return self

    def create_repo(self, name, **options):
        self.asked.append((name, options))
        if self.fails:
            raise PermissionError("who are you?")

    def upload_folder(self, **options):
        self.asked.append(options)
        return "https://huggingface.co/me/model/commit/1"


FILES = ["model.json", "model.safetensors", "text.safetensors", "train.json"]


def test_a_repository_of_the_hub_is_loaded_by_its_name_and_revision(folder, monkeypatch):
    hub = Hub(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert locate("hf-hub:me/model@v1") == folder
    load_detector("hf-hub:me/model")
    assert hub.asked == [("me/model", "v1", FILES), ("me/model", None, FILES)]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(None, fails=True))
    with pytest.raises(
        InputError, match=r"^hf-hub:me/model: cannot be obtained \(ConnectionError: no network\)[^\n]*$"
    ):
        load_detector("hf-hub:me/model")


def test_pushing_uploads_the_files_of_a_model_folder_and_no_others(folder, monkeypatch):
    hub = Hub(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert push(folder, "hf-hub:me/model", private=True).endswith("/commit/1")
    created, uploaded = hub.asked
    assert created == ("me/model", {"private": True, "exist_ok": True})
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/model", folder)
    assert sorted(uploaded["allow_patterns"]) == ["README.md", *FILES]


@pytest.mark.parametrize("name", ["me/model", "hf-hub:model", "hf-hub:a/b/c"])
def test_a_repository_is_named_in_full(folder, name):
    with pytest.raises(InputError, match="expected hf-hub:<owner>/<name>"):
        push(folder, name)


def test_a_refused_upload_says_how_to_log_in(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(folder, fails=True))
    with pytest.raises(InputError, match="hf auth login"):
        push(folder, "hf-hub:me/model")
