"""The texts that a class name is put into before CLIP embeds it."""

from open_clip import OPENAI_IMAGENET_TEMPLATES

from ..params import Text

# open_clip keeps them as functions of the name; given "{}" they return themselves as text
CLIP_TEMPLATES: tuple[str, ...] = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def templates(text: Text) -> tuple[str, ...]:
    """The templates that params ask for, each with one `{}`.

    Source: `clip80` are the 80 of CLIP's ImageNet evaluation, as in F-VLM's `clip_utils.py`.
    """
    return CLIP_TEMPLATES if text.templates == "clip80" else text.templates


def fill(template: str, name: str) -> str:
    """`template` about `name`. Other braces, in either, are ordinary text."""
    return template.replace("{}", name)
