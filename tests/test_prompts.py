"""The prompt templates."""

from fvlm.params import Text
from fvlm.vlm.prompts import CLIP_TEMPLATES, fill, templates


def test_clip_has_80_templates_and_each_has_one_place_for_the_name():
    assert len(CLIP_TEMPLATES) == len(set(CLIP_TEMPLATES)) == 80
    assert all(template.count("{}") == 1 for template in CLIP_TEMPLATES)
    assert CLIP_TEMPLATES[0] == "a bad photo of a {}."
    assert CLIP_TEMPLATES[-1] == "a tattoo of the {}."


def test_clip80_means_clip_s_templates_and_a_list_means_itself():
    assert templates(Text(templates="clip80", background="background")) == CLIP_TEMPLATES
    own = ("a {}", "two {}s")
    assert templates(Text(templates=own, background="background")) == own


def test_a_name_is_put_in_as_it_is():
    assert fill("a photo of a {}.", "traffic light") == "a photo of a traffic light."
    assert fill("{} in {braces}", "{0}") == "{0} in {braces}"
