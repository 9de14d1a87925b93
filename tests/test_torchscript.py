"""TorchScript archives: the tensors that torch itself finds in them, and nothing run on the way."""

import os
import pickle
import zipfile

import open_clip
import pytest
import torch
from small_clip import tiny_clip
from torch import nn

from fvlm.errors import InputError
from fvlm.vlm.torchscript import is_torchscript, read_torchscript

pytestmark = pytest.mark.filterwarnings("ignore:`?torch.jit", "ignore::torch.jit.TracerWarning")


def as_published(model, path):
    """Write `model` the way OpenAI did: traced, matrices and convolutions in float16, three numbers as tensors."""
    model = model.eval().requires_grad_(False)
    for name, value in (("input_resolution", 64), ("context_length", 24), ("vocab_size", 49408)):
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    with torch.no_grad():
        example = (torch.randn(1, 3, 64, 64), open_clip.tokenize(["a cat"], context_length=24))
        model = torch.jit.trace(model, example, check_trace=False)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.endswith("embedding.weight"):
            parameter.data = parameter.data.half()
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return as_published(tiny_clip(), tmp_path_factory.mktemp("archive") / "RN50.pt")


def test_the_tensors_of_an_archive_are_those_that_torch_finds_in_it(archive):
    expected = torch.jit.load(str(archive)).state_dict()
    found = read_torchscript(archive)
    assert {"input_resolution", "logit_scale", "visual.attnpool.c_proj.weight"} <= expected.keys() <= found.keys()
    assert found.keys() - expected.keys() <= {"attn_mask"}  # not in state dicts
    assert found["visual.conv1.weight"].dtype == torch.float16
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_views_of_one_memory_keep_their_offsets_and_strides(tmp_path):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            memory = torch.arange(24.0)
            self.register_buffer("columns", memory.view(4, 6).T)
            self.register_buffer("tail", memory[20:])
            self.register_buffer("empty", torch.empty(0, 3))

        def forward(self, x):
            return x + self.tail

    torch.jit.script(Views()).save(str(tmp_path / "views.pt"))
    found = read_torchscript(tmp_path / "views.pt")
    assert torch.equal(found["columns"], torch.arange(24.0).view(4, 6).T)
    assert found["tail"].tolist() == [20, 21, 22, 23]
    assert found["empty"].shape == (0, 3)


def test_an_ordinary_checkpoint_is_not_taken_for_an_archive(tmp_path, archive):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "checkpoint.pt")
    (tmp_path / "text.pt").write_text("no zip file")
    assert is_torchscript(archive)
    assert not is_torchscript(tmp_path / "checkpoint.pt")
    assert not is_torchscript(tmp_path / "text.pt")


class Command:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def rewritten(archive, target, change):
    """`archive` with `change(name, data)` for each file in it."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            copy.writestr(name, change(name, source.read(name)))
    return target


def test_a_command_in_an_archive_is_not_run(tmp_path, archive):
    marker = tmp_path / "marker"
    program = pickle.dumps(Command(marker), protocol=2)
    bad = rewritten(archive, tmp_path / "bad.pt", lambda n, d: program if n.endswith("/data.pkl") else d)
    assert read_torchscript(bad) == {}
    assert not marker.exists()
    pickle.loads(program)  # which would have done it
    assert marker.exists()


@pytest.mark.parametrize("program", [b"\x80\x02", b"\x80\x02i0\n0\n.", b"\xff\xff"])
def test_a_program_that_torch_does_not_write_is_told_in_one_line(tmp_path, archive, program):
    bad = rewritten(archive, tmp_path / "bad.pt", lambda n, d: program if n.endswith("/data.pkl") else d)
    with pytest.raises(InputError, match="cannot be read as a TorchScript archive") as error:
        read_torchscript(bad)
    assert "\n" not in str(error.value)


def test_a_damaged_archive_is_named(tmp_path, archive):
    data = bytearray(archive.read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / "damaged.pt").write_bytes(data)
    with pytest.raises(InputError, match=r"damaged\.pt: cannot be read as a TorchScript archive \(BadZipFile: Bad CRC"):
        read_torchscript(tmp_path / "damaged.pt")
