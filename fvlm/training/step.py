"""The gradient of one step, whatever the number of passes and processes that its batch is split into.

`train.accumulation` splits a process's images into passes, each with a forward and a backward run, so that only one
pass's activations are alive. Losses and gradients are those of the whole batch in one piece, but for one thing: a batch
norm in train mode normalises with the images of a pass (of all processes), as it does under any accumulation.
"""

import torch
from torch import Tensor

from ..compute import autocast
from ..data.loading import Batch
from ..data.order import seed_of
from ..detector.detector import FVLM, normalisers
from ..detector.losses import box_term
from ..params import Precision, Train
from .parallel import World


def compute_gradients(
    detector: FVLM, batch: Batch, text: Tensor, train: Train, *, step: int, precision: Precision, world: World
) -> dict[str, Tensor]:
    """Put the gradient of the step's loss into the parameters of `detector`, whose gradients are None.

    Args:
        batch: this process's images of the step, and their targets.
        text: (1 + K, D), on the detector's device.
        step: its number; with the seed and an image's place in the batch it decides what is sampled of the image.

    Returns:
        The four terms of the whole batch's loss, the same in every process: scalars on the device, without gradients.

    How many regions are foreground is known after the RPN has seen all images, when the first pass's activations are
    gone. So with more than one pass the gradient of the regions' box loss is summed apart and divided at the end. This
    second way back through box head and pyramid is what accumulation costs; a normaliser of each pass's own would be
    cheaper, and would weigh an image by what the images beside it happen to hold.
    """
    device = text.device
    images, targets = batch
    first = world.rank * len(images)
    generators = [
        torch.Generator(device).manual_seed(seed_of(train.seed, "sample", step, first + i)) for i in range(len(images))
    ]
    canvas_hw = (images.shape[-2], images.shape[-1])
    anchor_targets = detector.anchor_targets([boxes for boxes, _ in targets], canvas_hw, train, generators)
    elements = world.total(detector.rpn_box_elements(anchor_targets, canvas_hw))
    divisors = normalisers(train.batch_size, elements, train)

    trained = [p for p in detector.parameters() if p.requires_grad]
    box_gradients: dict[int, Tensor] = {}  # by place in `trained`; of the sum, not yet of the mean
    early: dict[str, Tensor] = {}
    box, foreground = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    count = len(images) // train.accumulation
    for start in range(0, len(images), count):
        part = slice(start, start + count)
        with autocast(device, precision):
            sums = detector.loss_sums(
                images[part],
                targets[part],
                anchor_targets[part],
                text,
                train,
                generators[part],
            )
        terms = divisors.early_terms(sums)
        loss = torch.stack(list(terms.values())).sum()
        if train.accumulation == 1:
            foreground = world.total(sums.foreground)
            (loss + box_term(sums.box, foreground)).backward()
        else:
            foreground = foreground + sums.foreground
            # the shorter way back first: it keeps all activations, and the second lets go of them as it goes
            of_box = torch.autograd.grad(sums.box, trained, retain_graph=True, allow_unused=True)
            for i, gradient in enumerate(of_box):
                if gradient is not None:
                    box_gradients[i] = box_gradients[i] + gradient if i in box_gradients else gradient
            del of_box
            loss.backward()
        box = box + sums.box.detach()
        early = {name: early.get(name, 0) + term.detach() for name, term in terms.items()}

    if box_gradients:
        foreground = world.total(foreground)
        for i, gradient in box_gradients.items():
            mean = box_term(gradient, foreground)
            held = trained[i].grad
            trained[i].grad = mean if held is None else held + mean
    world.add_gradients(trained)
    names = [*early, "box"]
    return dict(zip(names, world.total(torch.stack([*early.values(), box_term(box, foreground)])), strict=True))
