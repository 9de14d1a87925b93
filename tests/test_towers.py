"""OpenAI's four towers at full size, with random weights: the spec's table, shapes, and parity with open_clip.

The two large ones are slow, and one is in memory at a time: RN50x64's image tower alone has 1.7 GB.
"""

import gc

import open_clip
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from fvlm.vlm.clip import C5_STRIDE, REAL_TOWERS, ImageTower, build_clip, real_tower_config
from fvlm.vlm.pooling import pool_crops, pool_regions

# F-VLM, the authors' export_saved_model.py: embedding, heads of the attention pool, VLM crop; then CLIP's picture size
TABLE = {
    "RN50-quickgelu": (1024, 32, 7, 224),
    "RN50x4-quickgelu": (640, 40, 9, 288),
    "RN50x16-quickgelu": (768, 48, 12, 384),
    "RN50x64-quickgelu": (1024, 64, 14, 448),
}
C5_CHANNELS = dict(zip(TABLE, (2048, 2560, 3072, 4096), strict=True))
MILLION_PARAMETERS = dict(zip(TABLE, (102.01, 178.30, 290.98, 623.26), strict=True))  # open_clip's model_profile.csv
SLOW = [
    pytest.param("RN50x16-quickgelu", marks=pytest.mark.slow),
    pytest.param("RN50x64-quickgelu", marks=pytest.mark.long),
]


def shapes_only(architecture):
    with torch.device("meta"):
        return build_clip(real_tower_config(architecture))


def test_the_real_towers_are_those_of_the_table():
    assert tuple(TABLE) == REAL_TOWERS


@pytest.mark.parametrize("architecture", REAL_TOWERS)
def test_embedding_heads_grid_and_channels_are_those_of_the_table(architecture):
    embedding, heads, grid, picture = TABLE[architecture]
    model = shapes_only(architecture)
    pool = model.visual.attnpool
    assert pool.c_proj.out_features == model.text_projection.shape[1] == embedding
    assert pool.num_heads == heads
    assert len(pool.positional_embedding) == 1 + grid**2
    assert model.visual.image_size == picture == C5_STRIDE * grid
    assert ImageTower(model.visual, "all").channels == tuple(C5_CHANNELS[architecture] // 2**n for n in (3, 2, 1, 0))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
        MILLION_PARAMETERS[architecture], abs=0.005
    )


@pytest.mark.parametrize("architecture", REAL_TOWERS)
def test_openai_weights_exist_and_were_trained_with_quick_gelu_and_the_usual_mean_and_std(architecture):
    assert "openai" in open_clip.list_pretrained_tags_by_model(architecture)
    published = open_clip.get_pretrained_cfg(architecture, "openai")
    assert published["quick_gelu"] is True
    assert (published["mean"], published["std"]) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert real_tower_config(architecture)["quick_gelu"] is True


@pytest.fixture(params=[*REAL_TOWERS[:2], *SLOW])
def tower(request):
    """The image tower at full size; random, with norms that keep the signal's size through the many blocks."""
    architecture = request.param
    embedding, heads, _, picture = TABLE[architecture]
    vision = real_tower_config(architecture)["vision_cfg"]
    torch.manual_seed(0)
    visual = ModifiedResNet(vision["layers"], embedding, heads, image_size=picture, width=vision["width"]).eval()
    with torch.no_grad():
        for name, module in visual.named_modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(6**0.5)  # torch's default variance is a sixth of what a ReLU keeps
            elif name.endswith("bn3"):
                module.weight.fill_(0.3)
    for projection in (visual.attnpool.q_proj, visual.attnpool.k_proj):  # attention that is far from uniform
        nn.init.normal_(projection.weight, std=2 * projection.in_features**-0.5)
    yield architecture, ImageTower(visual.requires_grad_(False), "all")
    del visual
    gc.collect()


@torch.no_grad()
def test_at_full_size_the_pool_over_the_whole_picture_is_open_clips_embedding(tower):
    """In the aligned convention the whole picture's box hits every cell's centre; in the authors', the box moved up and
    to the left by half a cell does."""
    architecture, image_tower = tower
    embedding, _, grid, picture = TABLE[architecture]
    image = nn.functional.interpolate(torch.randn(1, 3, 2 * grid, 2 * grid), scale_factor=16)  # something in every cell
    features = image_tower(image)
    assert {level: tuple(x.shape[1:]) for level, x in features.items()} == {
        f"C{n}": (C5_CHANNELS[architecture] // 2 ** (5 - n), picture // 2**n, picture // 2**n) for n in (2, 3, 4, 5)
    }
    expected = image_tower.visual(image)
    assert expected.shape == (1, embedding)
    assert expected.std() > 1e-3  # the comparison means something
    whole = torch.tensor([[0.0, 0.0, picture, picture]])
    for pool in (pool_regions, pool_crops):
        pooled = pool(image_tower.attnpool, features["C5"], [whole - C5_STRIDE / 2], grid=grid, stride=C5_STRIDE)
        torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    moved = pool_regions(image_tower.attnpool, features["C5"], [whole], grid=grid, stride=C5_STRIDE)
    assert not torch.allclose(moved, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
