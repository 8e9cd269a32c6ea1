"""Pretraining: the stream is a function of seed and step, a resumed run equals an uninterrupted one."""

import json
import random

import open_clip
import pytest
import torch

from clipkal import pretrain
from clipkal.data.world.captions import invented_name, vocabulary
from clipkal.data.world.shapes import PRETRAINING_CLASSES, UNSEEN
from clipkal.errors import BackboneError, CheckpointError
from clipkal.pretraining.card import model_card
from clipkal.pretraining.evaluation import GROUPS, text_head, zero_shot
from clipkal.pretraining.model import CONTEXT_LENGTH, MERGES_NAME, load_tokenizer, write_merges
from clipkal.pretraining.release import PACKAGED, load_release, write_release
from clipkal.pretraining.stream import Curriculum, PretrainingStream, soil
from clipkal.pretraining.training import Recipe, Trainer, contrastive_loss

PLAN = Curriculum(samples=48, batch_size=12, seed=5)


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / MERGES_NAME
    write_merges(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(merges):
    return load_tokenizer(merges)


@pytest.fixture(scope="module")
def trained(tokenizer):
    """A run of all four steps without interruption."""
    trainer = Trainer(PLAN, Recipe(), tokenizer)
    trainer.run(workers=0)
    return trainer


def test_caption_words_are_spelled_as_by_clips_own_tokenizer(tokenizer):
    full = open_clip.tokenizer.SimpleTokenizer()
    for word in vocabulary():
        assert tokenizer.bpe(word) == full.bpe(word)


def test_other_words_are_spelled_with_known_pieces(tokenizer):
    for word in (*UNSEEN, invented_name(random.Random(0)), "photograph"):
        assert tokenizer.decode(tokenizer.encode(word)).strip() == word


def test_merges_are_the_same_bytes_each_time(merges, tmp_path):
    write_merges(tmp_path / "again.gz")
    assert (tmp_path / "again.gz").read_bytes() == merges.read_bytes()


def test_batches_depend_on_seed_and_step_alone(tokenizer):
    stream = PretrainingStream(PLAN, tokenizer)
    first, again, next_one = stream[2], PretrainingStream(PLAN, tokenizer)[2], stream[3]
    other = PretrainingStream(Curriculum(samples=48, batch_size=12, seed=6), tokenizer)[2]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.images, next_one.images)
    assert not torch.equal(first.images, other.images)


def test_batches_are_consistent(tokenizer):
    batch = PretrainingStream(PLAN, tokenizer)[0]
    assert batch.images.shape == (12, 3, 64, 64)
    assert batch.tokens.shape[1] == CONTEXT_LENGTH
    assert sorted(set(batch.pairs.tolist())) == list(range(len(batch.tokens)))
    for image, noun in enumerate(batch.nouns.tolist()):
        text = tokenizer.decode(batch.tokens[batch.pairs[image]].tolist())
        assert noun == -1 or PRETRAINING_CLASSES[noun] in text


def test_soiling_is_mild_and_repeatable(tokenizer):
    images = PretrainingStream(PLAN, tokenizer)[1].images
    a, b = (soil(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)
    assert 0 < (a.float() - images.float()).abs().mean() < 40


def test_contrastive_loss_without_shared_captions_is_clips_own():
    images, texts = torch.eye(5), torch.nn.functional.normalize(torch.randn(5, 5), dim=1)
    logits = 7 * images @ texts.T
    expected = sum(torch.nn.functional.cross_entropy(x, torch.arange(5)) for x in (logits, logits.T)) / 2
    found = contrastive_loss(images, texts, torch.arange(5), torch.tensor(7.0))
    assert torch.allclose(found, expected, atol=1e-6)


def test_contrastive_loss_of_one_shared_caption_is_zero_between_images():
    images = torch.nn.functional.normalize(torch.ones(4, 3), dim=1)
    loss = contrastive_loss(images, images[:1], torch.zeros(4, dtype=torch.long), torch.tensor(1.0))
    assert torch.allclose(loss, torch.tensor(4.0).log() / 2)


def test_resumed_run_equals_uninterrupted(trained, tokenizer, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    Trainer(PLAN, Recipe(), tokenizer).run(3, workers=0, checkpoint=checkpoint)
    resumed = Trainer(PLAN, Recipe(), tokenizer)
    resumed.load(checkpoint)
    assert resumed.step == 3
    resumed.run(workers=0)
    assert resumed.step == trained.step == 4
    expected = trained.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_checkpoints_of_other_settings_or_damaged_are_refused(tokenizer, tmp_path):
    path = tmp_path / "checkpoint.pt"
    Trainer(PLAN, Recipe(), tokenizer).save(path)
    with pytest.raises(CheckpointError, match="other settings"):
        Trainer(Curriculum(samples=60, batch_size=12), Recipe(), tokenizer).load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a pretraining checkpoint"):
        Trainer(PLAN, Recipe(), tokenizer).load(path)


def test_release_loads_through_open_clip(trained, merges, tmp_path):
    folder = tmp_path / "release"
    write_release(trained, merges, folder, per_class=0)
    assert (folder / "open_clip_model.safetensors").stat().st_size < 8e6
    assert "4 steps of 12 pairs" in (folder / "MODEL_CARD.md").read_text()
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ours, _ = load_release(folder)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found = model.eval().encode_image(images)
        assert torch.equal(found, ours.encode_image(images))
        expected = trained.model.eval().encode_image(images)
    assert torch.allclose(found, expected, atol=0.02 * expected.abs().max().item())
    assert list(preprocess.transforms[-1].mean) == [0.5, 0.5, 0.5]


def test_card_shows_the_table(trained):
    table = {
        group: {"classes": len(names), "chance": 1.0, "textured": 42.0} for group, names in GROUPS.items()
    }
    card = model_card(trained, table, per_class=3)
    assert "| textured \\* | 42.0 |" in card
    assert "{" not in card


def test_incomplete_release_is_refused(tmp_path):
    with pytest.raises(BackboneError, match="not a complete release"):
        load_release(tmp_path)


def test_command_trains_resumes_and_evaluates(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # it would outlast this test
    sizes = ["--samples", "16", "--batch-size", "8", "--workers", "0", "--per-class", "0"]
    base = ["--out", str(tmp_path), *sizes]
    assert pretrain.main(base) == 0
    assert pretrain.main([*base, "--resume"]) == 0
    capsys.readouterr()
    evaluate = ["--evaluate", "--per-class", "1", "--styles", "sketch", "--release"]
    assert pretrain.main([*evaluate, str(tmp_path / "release")]) == 0
    table = json.loads(capsys.readouterr().out)
    assert set(table) == set(GROUPS)
    assert table["digits"]["chance"] == 10.0
    assert pretrain.main([*evaluate, str(tmp_path / "nowhere")]) == 2
    assert "not a complete release" in capsys.readouterr().err


def test_packaged_model_beats_chance():
    model, tokenizer = load_release(PACKAGED)
    head = text_head(model, tokenizer, UNSEEN)
    assert torch.allclose(head.norm(dim=1), torch.ones(len(UNSEEN)), atol=1e-5)
    table = zero_shot(model, tokenizer, per_class=2, styles=("silhouette",))
    assert table["seen"]["silhouette"] > 60
    assert table["target"]["silhouette"] > 40
