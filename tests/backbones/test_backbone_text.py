"""Class features follow the field's ensemble rule."""

import pytest
import torch
from tiny_clip import Forwards, backbone_of
from torch.nn import functional as F

from clipkal.backbones import text_features
from clipkal.backbones.prompts import templates
from clipkal.errors import BackboneError, ConfigError, DataError

PROMPTS = [
    ["a photo of a cat.", "a sketch of a cat.", "my cat"],
    ["a photo of a dog."],
    ["a bird", "the bird"],
]


def test_normalise_average_normalise(vit):
    found = text_features(vit, PROMPTS, cache_dir=False)
    assert found.shape == (3, 24) and found.dtype == torch.float32
    for row, sentences in zip(found, PROMPTS, strict=True):
        with torch.no_grad():
            each = F.normalize(vit.model.encode_text(vit.tokenizer(sentences)), dim=-1)
        torch.testing.assert_close(row, F.normalize(each.mean(0), dim=-1), atol=1e-6, rtol=0)


def test_open_clips_own_zero_shot_classifier_agrees(vit):
    import open_clip

    names, sentences = ["cat", "dog"], templates("simple7")
    theirs = open_clip.build_zero_shot_classifier(vit.model, vit.tokenizer, names, sentences)
    ours = text_features(vit, [[s.format(name) for s in sentences] for name in names], cache_dir=False)
    torch.testing.assert_close(ours, theirs.T, atol=1e-6, rtol=0)


def test_unit_rows_whatever_the_batch_or_precision(vit_folder):
    reference = text_features(backbone_of(vit_folder, batch_size=100), PROMPTS, cache_dir=False)
    torch.testing.assert_close(reference.norm(dim=1), torch.ones(3), atol=1e-6, rtol=0)
    for more in ({"batch_size": 1}, {"batch_size": 4}, {"precision": "bf16"}):
        found = text_features(backbone_of(vit_folder, **more), PROMPTS, cache_dir=False)
        torch.testing.assert_close(found, reference, atol=1e-5, rtol=0)


def test_the_entry_is_keyed_by_sentences_and_by_how_they_are_shared_out(vit, tmp_path):
    forwards = Forwards(vit.model.transformer)
    text_features(vit, [["a"], ["b", "c"]], tmp_path)
    text_features(vit, [["a", "b"], ["c"]], tmp_path)
    text_features(vit, [["a"], ["b", "d"]], tmp_path)
    assert forwards.count == 3
    text_features(vit, [["a", "b"], ["c"]], tmp_path)
    assert forwards.count == 3


@pytest.mark.parametrize("prompts", [[], [["a cat"], []], [["a cat"], [" "]]])
def test_a_class_without_a_sentence_is_an_error(vit, prompts):
    with pytest.raises(DataError):
        text_features(vit, prompts, cache_dir=False)


def test_text_features_that_are_not_finite_are_an_error(vit):
    with torch.no_grad():
        vit.model.text_projection.fill_(float("nan"))
    with pytest.raises(BackboneError, match="not finite"):
        text_features(vit, PROMPTS, cache_dir=False)


def test_named_ensembles_are_open_clips():
    assert len(templates("simple7")) == 7 and len(templates("imagenet80")) == 80
    assert templates("simple7")[0] == "itap of a {}."
    assert all(t.count("{}") == 1 for t in templates("imagenet80"))
    with pytest.raises(ConfigError, match="simple7, imagenet80"):
        templates("imagenet81")
