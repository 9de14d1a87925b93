"""Contrastive pretraining of the miniature CLIP on captioned emoji pictures of ALL categories, never on a box.

It stands for what OpenAI's CLIP brings along: the novel concepts have been seen, with words, without localisation.
A picture shows one object, named by its caption, on a background, often with a piece of another object that the caption
does not name; some pictures show a background only and are captioned with the word for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations
from tqdm import tqdm

from ..checkpoint import load_checkpoint, save_checkpoint
from ..data.backgrounds import background
from ..data.order import generator_of
from ..data.sprites import SPRITE_SIDE, load_sprites
from ..errors import InputError
from ..params import Miniature, Pretrain
from ..schedule import learning_rate
from .clip import C5_STRIDE, tokenize

VOCABULARY = 49408  # byte pairs of CLIP's tokenizer
BACKGROUND_BANK = 768
PLAIN_EVERY = 4  # steps: one shows single pictures, the others mosaics
OBJECT_SIDE = (0.7, 1.1)  # of the picture's side
DISTRACTOR_SHARE = 0.3
BACKGROUND_SHARE = 0.06
MAX_ROTATION = math.radians(20)
PLAIN_LINES = 10  # of progress where there is no terminal
CHECKPOINT_EVERY = 100  # steps, half a minute on two cores; 56 MB and a quarter of a second in the default recipe
MAX_LOGIT_SCALE = 100.0  # CLIP section 2.3


def miniature_config(miniature: Miniature) -> dict[str, Any]:
    """`build_clip`'s argument for the miniature: the same classes as RN50's, QuickGELU in the text tower included."""
    return {
        "embed_dim": miniature.embed_dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": miniature.image_size,
            "layers": list(miniature.layers),
            "width": miniature.width,
            "patch_size": None,
        },
        "text_cfg": {
            "context_length": miniature.context_length,
            "vocab_size": VOCABULARY,
            "width": miniature.text_width,
            "heads": miniature.text_heads,
            "layers": miniature.text_layers,
        },
    }


@dataclass(frozen=True)
class CaptionedPictures:
    """Draws batches of captioned pictures.

    Args:
        names: concepts; the last is the word for a background without objects.
        sprites: (M, 4, 72, 72) premultiplied RGBA in [0, 1].
        concept_of_sprite: (M,) index into `names`.
        backgrounds: (B, 3, side, side) in [0, 1], side at least 1.5 times the picture's.
        size: pixels per side of a picture.
        mean, std: (3,) normalisation.
    """

    names: list[str]
    sprites: Tensor
    concept_of_sprite: Tensor
    backgrounds: Tensor
    size: int
    mean: Tensor
    std: Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(count, 3, size, size) normalised pictures and (count,) concepts. All chance comes from `generator`."""
        concepts = torch.randint(len(self.names) - 1, (count,), generator=generator)
        empty = torch.rand(count, generator=generator) < BACKGROUND_SHARE
        pictures = self._backgrounds(count, generator)
        distracted = torch.rand(count, generator=generator) < DISTRACTOR_SHARE
        others = torch.randint(len(self.sprites), (count,), generator=generator)
        pictures = self._paste(pictures, others, distracted, (0.5, 1.1), (0.45, 0.9), generator)
        pictures = self._paste(
            pictures, self._sprite_of(concepts, generator), ~empty, OBJECT_SIDE, (0.0, 0.15), generator
        )
        concepts[empty] = len(self.names) - 1
        gain = 1 + 0.1 * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1)
        shift = 0.05 * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
        pictures = ((pictures - 0.5) * gain + 0.5 + shift).clamp(0, 1)
        return (pictures - self.mean[:, None, None]) / self.std[:, None, None], concepts

    def _sprite_of(self, concepts: Tensor, generator: torch.Generator) -> Tensor:
        """A random sprite of each concept. Sprites are sorted by concept, so those of one are a range."""
        first = torch.searchsorted(self.concept_of_sprite, concepts)
        last = torch.searchsorted(self.concept_of_sprite, concepts, right=True)
        chance = torch.rand(len(concepts), generator=generator)
        return first + (chance * (last - first)).long()

    def _backgrounds(self, count: int, generator: torch.Generator) -> Tensor:
        chosen = self.backgrounds[torch.randint(len(self.backgrounds), (count,), generator=generator)]
        side = self.backgrounds.shape[-1]
        room = 1 - self.size / side
        zoom = 1 - room * torch.rand(count, generator=generator)
        place = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - zoom[:, None])
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = zoom
        theta[:, :, 2] = place
        return _sample(chosen, theta, self.size)

    def _paste(
        self,
        pictures: Tensor,
        sprites: Tensor,
        where: Tensor,
        side: tuple[float, float],
        offset: tuple[float, float],
        generator: torch.Generator,
    ) -> Tensor:
        """`pictures` with one sprite on each that `where` marks.

        side: range of the sprite's side, offset: range of its centre's distance from the picture's, in picture sides.
        """
        count = len(pictures)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, generator=generator)

        angle, scale, distance = uniform(-MAX_ROTATION, MAX_ROTATION), uniform(*side), uniform(*offset)
        mirror = torch.randint(2, (count,), generator=generator) * 2.0 - 1
        direction = uniform(0, 2 * math.pi)
        # grid_sample wants the map from picture coordinates in [-1, 1] to sprite coordinates
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        linear = torch.stack([torch.stack([cos * mirror, sin * mirror], 1), torch.stack([-sin, cos], 1)], 1)
        centre = 2 * distance[:, None] * torch.stack([torch.cos(direction), torch.sin(direction)], 1)
        theta = torch.cat([linear, -(linear @ centre[:, :, None])], dim=2)
        drawn = _sample(self.sprites[sprites], theta, self.size) * where[:, None, None, None]
        return drawn[:, :3] + pictures * (1 - drawn[:, 3:])


def _sample(images: Tensor, theta: Tensor, size: int) -> Tensor:
    grid = F.affine_grid(theta, [len(images), 1, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def emoji_pictures(
    names: list[str], background_word: str, size: int, mean: list[float], std: list[float], seed: int
) -> CaptionedPictures:
    """The sprites of `names` and a bank of backgrounds."""
    by_name = load_sprites()
    sprites, concept = [], []
    for index, name in enumerate(names):
        for sprite in by_name[name]:
            # sprites are cropped to their visible pixels: centre each on a square
            square = np.zeros((SPRITE_SIDE, SPRITE_SIDE, 4), np.uint8)
            top, left = (SPRITE_SIDE - sprite.shape[0]) // 2, (SPRITE_SIDE - sprite.shape[1]) // 2
            square[top : top + sprite.shape[0], left : left + sprite.shape[1]] = sprite
            rgba = torch.from_numpy(square).permute(2, 0, 1).float() / 255
            sprites.append(torch.cat([rgba[:3] * rgba[3:], rgba[3:]]))
            concept.append(index)
    side = size * 2
    bank = np.stack([background(np.random.default_rng([seed, i]), side) for i in range(BACKGROUND_BANK)])
    return CaptionedPictures(
        names=[*names, background_word],
        sprites=torch.stack(sprites),
        concept_of_sprite=torch.tensor(concept),
        backgrounds=torch.from_numpy(bank).permute(0, 3, 1, 2).float() / 255,
        size=size,
        mean=torch.tensor(mean),
        std=torch.tensor(std),
    )


def contrastive_loss(image_features: Tensor, text_features: Tensor, concepts: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's symmetric loss where several pictures of a batch share a caption.

    Args:
        image_features: (N, D), text_features: (K, D), both L2-normalised; one caption for each of K concepts.
        concepts: (N,) which caption is each picture's.
        logit_scale: scalar, already exponentiated.

    Source: CLIP section 2.3, figure 3. Departure: with 81 concepts a batch repeats captions. Each distinct caption
    enters once, and its target over the pictures is uniform over those that bear it, so that equals are not contrasted.
    """
    logits = logit_scale * image_features @ text_features.T
    match = F.one_hot(concepts, len(text_features)).float()
    bearers = match.sum(dim=0)
    to_image = -(F.log_softmax(logits, dim=0) * match).sum(dim=0)[bearers > 0] / bearers[bearers > 0]
    return (F.cross_entropy(logits, concepts) + to_image.mean()) / 2


def embed_in_mosaics(visual: ModifiedResNet, images: Tensor, shift_yx: tuple[int, int]) -> Tensor:
    """Embed pictures that lie side by side, four to a canvas, anywhere relative to C5's cells.

    The detector's regions lie inside a scene, between cells. A tower that was only shown single pictures, 2 x 2 cells
    with zeros all around, knows no other context, and its crops of a scene's C5 mean little. (OpenAI's towers, with
    7 x 7 cells, suffer less.) The canvas is a torus: it is moved by `shift_yx` pixels, and C5 is read that far on,
    interpolated as RoIAlign does. This uses where pictures lie, never where an object lies in its picture.

    Args:
        images: (N, 3, S, S), N a multiple of 4, S a multiple of 32.
        shift_yx: pixels, 0 to 31.

    Returns:
        (N, D), not normalised, in the order of `images`.
    """
    count, channels, size, _ = images.shape
    canvas = images.reshape(-1, 2, 2, channels, size, size).permute(0, 3, 1, 4, 2, 5)
    canvas = canvas.reshape(-1, channels, 2 * size, 2 * size).roll(shift_yx, dims=(2, 3))
    x = visual.stem(canvas.contiguous(memory_format=torch.channels_last))
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = stage(x)
    for axis, pixels in zip((2, 3), shift_yx, strict=True):
        x = torch.lerp(x, x.roll(-1, axis), pixels / C5_STRIDE)
    grid = size // C5_STRIDE
    windows = x.reshape(-1, x.shape[1], 2, grid, 2, grid).permute(0, 2, 4, 1, 3, 5)
    return visual.attnpool(windows.reshape(count, x.shape[1], grid, grid))


class _FromMatrix(nn.Module):
    """A convolution's kernel (O, I, H, W), as a view of the matrix (O, H * W * I) that is trained.

    The view is channels last, a third faster on CPUs.
    """

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.shape = kernel.permute(0, 2, 3, 1).shape

    def forward(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.shape).permute(0, 3, 1, 2)

    def right_inverse(self, kernel: Tensor) -> Tensor:
        return kernel.permute(0, 2, 3, 1).flatten(1).contiguous()


def pretrain(
    clip: CLIP,
    pictures: CaptionedPictures,
    templates: Sequence[str],
    params: Pretrain,
    seed: int,
    checkpoint: Path,
) -> None:
    """Train `clip` in place; a fixed number of steps, nothing is chosen by the held-out accuracy.

    Source: CLIP section 2.5 for Adam with decoupled weight decay. Departure: the tower's kernels are trained by Muon
    (Jordan et al., 2024), as matrices of a row for each output channel. On the default recipe the held-out accuracy is
    then 98 %; with AdamW alone it was 89 %.

    Every step draws its own pictures and, for each concept, one caption by a random template. The run goes on from
    `checkpoint` where there is one, and writes it every `CHECKPOINT_EVERY` steps and after the last; the caller removes
    it once the results are safe. A run that was killed at any point and is called again with the same arguments ends
    with the same weights, bit for bit.

    Args:
        clip: built from the same seed at every call.
        checkpoint: named by all that the run depends on.

    Raises:
        InputError: the loss is not finite. The checkpoint of the last finite state stays.
    """
    tokens = torch.stack([tokenize(clip, [t.format(name) for name in pictures.names]) for t in templates])  # (T, K, L)
    convolutions = [module for module in clip.visual.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        register_parametrization(convolution, "weight", _FromMatrix(convolution.weight))
    matrices = [p for name, p in clip.named_parameters() if name.endswith(".parametrizations.weight.original")]
    optimizers = _optimizers(clip, matrices, params)
    generator = generator_of(seed, "pretrain")
    clip.train()
    done, _ = load_checkpoint(checkpoint, clip, optimizers, generator)
    if done:
        print(f"vlm: going on after step {done} of {params.steps} ({checkpoint})", flush=True)
    bar = tqdm(range(done, params.steps), initial=done, total=params.steps, desc="vlm", unit="step", disable=None)
    for step in bar:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(
                step,
                steps=params.steps,
                peak=group["peak"],
                warmup_steps=params.warmup_steps,
                warmup_start=0.0,
                schedule="cosine",
            )
        images, concepts = pictures.draw(params.batch_size, generator)
        images = images.contiguous(memory_format=torch.channels_last)
        if step % PLAIN_EVERY == 0:
            embeddings = clip.visual(images)
        else:
            shift_y, shift_x = torch.randint(C5_STRIDE, (2,), generator=generator).tolist()
            embeddings = embed_in_mosaics(clip.visual, images, (shift_y, shift_x))
        which = torch.randint(len(templates), (len(pictures.names),), generator=generator)
        captions = tokens[which, torch.arange(len(pictures.names))]
        loss = contrastive_loss(
            F.normalize(embeddings, dim=-1),
            clip.encode_text(captions, normalize=True),
            concepts,
            clip.logit_scale.exp(),
        )
        if not math.isfinite(loss.item()):
            raise InputError(
                f"vlm: step {step + 1}: the loss is not finite; "
                "lower vlm.pretrain.learning_rate and .kernel_learning_rate, or lengthen vlm.pretrain.warmup_steps"
            )
        clip.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        bar.set_postfix(loss=f"{loss.item():.3f}", scale=f"{clip.logit_scale.exp().item():.1f}")
        if bar.disable and (step + 1) % max(params.steps // PLAIN_LINES, 1) == 0:
            print(f"vlm: step {step + 1}/{params.steps}, loss {loss.item():.3f}", flush=True)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == params.steps:
            save_checkpoint(checkpoint, clip, optimizers, step + 1, [], generator)
    for convolution in convolutions:
        remove_parametrizations(convolution, "weight")
    clip.visual.to(memory_format=torch.contiguous_format)
    clip.eval()


def _optimizers(clip: CLIP, matrices: Sequence[Tensor], params: Pretrain) -> list[torch.optim.Optimizer]:
    """Muon for `matrices`, AdamW for the rest; each group's "peak" is its learning rate after warm-up."""
    by_muon = {id(matrix) for matrix in matrices}
    rest = [p for p in clip.parameters() if id(p) not in by_muon]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": params.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=params.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)
    # with this adjustment a step is as long as AdamW's at the same learning rate
    muon = torch.optim.Muon(
        matrices,
        lr=params.kernel_learning_rate,
        weight_decay=params.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    for optimizer in (adamw, muon):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [adamw, muon]


@torch.no_grad()
def held_out_accuracy(clip: CLIP, pictures: CaptionedPictures, text: Tensor, count: int, seed: int) -> float:
    """Share in [0, 1] of `count` newly drawn pictures whose nearest of the (K, D) text embeddings is their own concept.

    The pictures come from a random stream that training does not use; the sprites are the same: there are no others.
    """
    generator = generator_of(seed, "held out")
    text = F.normalize(text, dim=-1)
    right = 0
    for start in range(0, count, 256):
        images, concepts = pictures.draw(min(256, count - start), generator)
        right += int(((clip.encode_image(images, normalize=True) @ text.T).argmax(dim=1) == concepts).sum())
    return right / count
