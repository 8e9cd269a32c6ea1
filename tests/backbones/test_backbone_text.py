"""Class features follow the field's ensemble rule."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from tiny_clip import Forwards, backbone_of
from torch.nn import functional as F

from clipkal.backbones import text_features
from clipkal.backbones.prompts import templates, tokenise
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


# Sentences longer than the context


class Words:
    """What `HFTokenizer` asks of a Hugging Face tokenizer, one token a word: [CLS] words [SEP], and padding."""

    cls_token_id, sep_token_id, pad_token_id = 1, 2, 0
    bos_token_id, eos_token_id = 3, 4

    def __init__(self, side="right", ends=True):
        self.side, self.ends, self.known = side, ends, {}

    def __call__(self, texts, max_length=None, truncation=False, padding=False, **more):
        words = [[self.known.setdefault(w, 5 + len(self.known)) for w in text.split()] for text in texts]
        if not truncation:
            return {"input_ids": words}
        room = max_length - (2 if self.ends else 0)
        rows = [w[:room] for w in words]
        if self.ends:
            rows = [[self.cls_token_id, *w, self.sep_token_id] for w in rows]
        pad = lambda n: [self.pad_token_id] * (max_length - n)
        rows = [pad(len(w)) + w if self.side == "left" else w + pad(len(w)) for w in rows]
        return SimpleNamespace(input_ids=torch.tensor(rows))


def hugging_face(mode="", strip=False, **words):
    """open_clip's own wrapper around `Words`, with a context of 8."""
    tokenizer = HFTokenizer.__new__(HFTokenizer)
    tokenizer.tokenizer = Words(**words)
    tokenizer.tokenizer_mode, tokenizer.context_length, tokenizer.strip_sep_token = mode, 8, strip
    tokenizer.clean_fn = str
    return tokenizer


HF_KINDS = {
    "bert": ({}, 6),
    "no sep": ({"strip": True}, 6),
    "clips": ({"mode": "clips"}, 5),
    "left": ({"side": "left"}, 6),
    "no ends": ({"ends": False}, 8),
}


@pytest.fixture(params=["open_clip", "mini", *HF_KINDS])
def tokenizing(request, vit):
    """A backbone with one of the tokenizers, and the number of words that fit."""
    if request.param == "open_clip":
        return vit, vit.tokenizer.context_length - 2
    if request.param == "mini":
        return backbone_of("mini"), 22
    kind, room = HF_KINDS[request.param]
    return replace(vit, tokenizer=hugging_face(**kind)), room


def test_a_sentence_that_just_fits_is_silent_and_one_more_word_is_a_warning(tokenizing, caplog):
    backbone, room = tokenizing
    fits, longer = " ".join(["a"] * room), " ".join(["a"] * (room + 1))
    tokenise(backbone, [[fits], ["the"]])
    assert not caplog.records
    tokenise(backbone, [["the", longer], ["an", fits]])
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("1 of 4 prompts are longer") and repr(longer) in message and "\n" not in message


def test_classes_that_become_the_same_tokens_by_the_cut_are_refused(tokenizing):
    backbone, room = tokenizing
    begin = " ".join(["a"] * room)
    with pytest.raises(DataError, match=r"same tokens.*'a a .* one' and 'a a .* two'; .*shorter names"):
        tokenise(backbone, [["the"], [f"{begin} one"], [f"{begin} two"]])


def test_classes_that_differ_in_case_alone_are_refused_but_one_name_twice_is_the_datasets_affair(vit):
    with pytest.raises(DataError, match="'a Crow' and 'a crow'; use names that differ"):
        text_features(vit, [["a Crow"], ["a crow"]], cache_dir=False)
    same = text_features(vit, [["a missile"], ["a missile"]], cache_dir=False)  # ImageNet has two of them
    assert torch.equal(same[0], same[1])


def test_an_ensemble_tells_classes_apart_where_one_of_its_sentences_does(vit, caplog):
    long = "a " * 14
    found = text_features(vit, [[f"{long} {name}", name] for name in ("crow", "dove")], cache_dir=False)
    assert not torch.equal(found[0], found[1])
    assert "2 of 4 prompts" in caplog.text


def test_a_tokenizer_that_fails_is_one_line(vit):
    def fails(texts, context_length=None):
        raise ValueError("Asking to pad\nbut the tokenizer has no padding token")

    with pytest.raises(BackboneError, match="the tokenizer of tiny fails: Asking to pad but"):
        text_features(replace(vit, tokenizer=fails), PROMPTS, cache_dir=False)


def test_only_sentences_that_may_be_cut_are_tokenised_twice(vit):
    counts = []

    def counting(texts, context_length=None):
        counts.append(len(texts))
        return tokenizer(texts, context_length)

    tokenizer = vit.tokenizer
    prompts = [[f"a photo of class {i}." for _ in range(80)] for i in range(20)]
    tokenise(replace(vit, tokenizer=counting), prompts)
    assert counts == [1600, 1]
