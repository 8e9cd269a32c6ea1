"""What is loaded is what was asked for, frozen and ready."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny_clip import VIT, backbone_of, image_set, save_folder, settings

from clipkal.backbones import image_features, load_backbone, sources, text_features
from clipkal.errors import BackboneError, ConfigError


@pytest.mark.parametrize("folder", ["vit_folder", "resnet_folder"])
def test_a_local_dir_becomes_a_frozen_backbone(folder, request):
    backbone = backbone_of(request.getfixturevalue(folder))
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert {p.dtype for p in backbone.model.parameters()} == {torch.float32}
    assert (backbone.name, backbone.precision, backbone.embed_dim) == ("tiny", "fp32", 24)
    assert backbone.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)
    assert backbone.tokenizer(["a cat", "a dog"]).shape == (2, 16)
    image = backbone.preprocess(image_set().decode(0))
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32


def test_the_folders_preprocessing_is_used_and_can_be_overridden(vit_folder):
    assert "mean=[0.4, 0.5, 0.6]" in backbone_of(vit_folder).transform
    own = backbone_of(vit_folder, image_mean=[0.1, 0.2, 0.3], image_std=[1, 1, 1])
    assert "mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)" in own.transform
    assert " at 0x" not in own.transform


def test_a_configuration_may_be_an_omegaconf_node(vit_folder):
    cfg = OmegaConf.create(
        {"name": "x", "model": f"local-dir:{vit_folder}", "pretrained": None, "precision": "bf16"}
    )
    OmegaConf.set_struct(cfg, True)
    backbone = load_backbone(cfg, device="cpu")
    assert backbone is not None and backbone.precision == "bf16" and backbone.batch_size == 128


def test_precomputed_needs_no_backbone():
    assert load_backbone(settings("precomputed")) is None


def test_the_digest_names_the_weights_not_the_file(vit_folder, weights, architecture):
    torch.save(backbone_of(vit_folder).model.state_dict(), weights.with_suffix(".pt"))
    digests = {
        backbone_of(vit_folder).digest,
        backbone_of(architecture, pretrained=str(weights)).digest,
        backbone_of(architecture, pretrained=str(weights.with_suffix(".pt"))).digest,
    }
    assert len(digests) == 1
    assert backbone_of(architecture, pretrained="random").digest not in digests


def test_random_weights_are_the_same_each_time_and_leave_the_random_stream_alone(architecture):
    torch.manual_seed(5)
    first = backbone_of(architecture, pretrained="random")
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert backbone_of(architecture, pretrained="random").digest == first.digest


def test_a_tag_brings_its_preprocessing(tags, architecture):
    backbone = backbone_of(architecture, pretrained="plain")
    assert "mean=(0.5, 0.5, 0.5)" in backbone.transform
    assert (backbone.architecture, backbone.pretrained) == (architecture, "plain")


def test_a_file_takes_the_preprocessing_beside_it_or_what_all_tags_agree_on(
    vit_folder, weights, tags, architecture
):
    beside = backbone_of(architecture, pretrained=str(vit_folder / "open_clip_model.safetensors"))
    assert "mean=[0.4, 0.5, 0.6]" in beside.transform
    assert "mean=(0.5, 0.5, 0.5)" in backbone_of(architecture, pretrained=str(weights)).transform


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("precision", "int8"),
        ("batch_size", 0),
        ("batch_size", -1),
        ("image_mean", [0]),
        ("image_mean", [float("nan"), 0, 0]),
        ("image_std", [0, 1, 1]),
        ("image_std", [float("inf"), 1, 1]),
        ("weights_sha256", "abc"),
        ("weights_sha256", "z" * 64),
    ],
)
def test_a_setting_without_such_a_value_is_named(vit_folder, key, value):
    with pytest.raises(ConfigError, match=f"backbone.{key}="):
        backbone_of(vit_folder, **{key: value})


@pytest.mark.parametrize("device", ["foo", "cuda:77", "cuda:-1", "mps", "xpu", "meta", ""])
@pytest.mark.parametrize("model", ["mini", "precomputed"])
def test_a_device_that_is_not_there_is_named(device, model):
    with pytest.raises(ConfigError, match=f"^device={device}:") as caught:
        load_backbone(settings(model), device=device)
    assert "\n" not in str(caught.value)


def test_a_gpu_beyond_the_last_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="device=cuda:7: there are only cuda:0 to cuda:1"):
        load_backbone(settings("mini"), device="cuda:7")


def test_the_checkpoint_file_can_be_pinned(vit_folder):
    actual = hashlib.sha256((vit_folder / "open_clip_model.safetensors").read_bytes()).hexdigest()
    backbone_of(vit_folder, weights_sha256=actual.upper())
    with pytest.raises(BackboneError, match=f"sha256 {actual}"):
        backbone_of(vit_folder, weights_sha256="0" * 64)


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release folder in place of the embedded one, with its own small vocabulary."""
    import gzip

    merges = "#version\n" + "\n".join(["c a", "d o", "ca t</w>", "do g</w>"]) + "\n"
    # Bytes with and without </w>; merges and the empty line at the end; start and end
    vocabulary = 512 + 5 + 2
    text = {"context_length": 8, "vocab_size": vocabulary, "width": 16, "heads": 2, "layers": 1}
    text["tokenizer_kwargs"] = {"bpe_path": "merges.txt.gz"}
    folder = save_folder(tmp_path / "mini", VIT, text_cfg=text)
    with gzip.open(folder / "merges.txt.gz", "wb") as file:
        file.write(merges.encode())
    monkeypatch.setattr(sources, "MINI_FOLDER", folder)
    return folder


def test_mini_is_registered_and_finds_its_vocabulary_from_any_folder(mini, tmp_path, monkeypatch):
    import open_clip

    monkeypatch.chdir(tmp_path)
    backbone = backbone_of("mini")
    assert "clipkal-mini" in open_clip.list_models()
    assert backbone.architecture == "clipkal-mini"
    assert "mean=[0.4, 0.5, 0.6]" in backbone.transform
    assert backbone.tokenizer(["cat"])[0].count_nonzero() == 3  # start, one merged word, end
    assert text_features(backbone, [["a cat"], ["a dog"]], cache_dir=False).shape == (2, 24)
    open_clip.add_model_config(tmp_path)  # a later scan of the registry must not trip over the temporary file


def test_another_vocabulary_of_the_same_size_is_another_entry(mini, tmp_path):
    import gzip

    found = []
    for merges in (["c a", "d o", "ca t</w>", "do g</w>"], ["d o", "c a", "do g</w>", "ca t</w>"]):
        with gzip.open(mini / "merges.txt.gz", "wt") as file:
            file.write("\n".join(["#version", *merges, ""]))
        found.append(text_features(backbone_of(mini), [["a cat"], ["a dog"]], tmp_path / "cache"))
    assert not torch.equal(*found) and len(list((tmp_path / "cache").glob("*.safetensors"))) == 2


def test_mini_and_a_local_dir_of_it_give_the_same(mini):
    embedded, exported = backbone_of("mini"), backbone_of(mini)
    assert embedded.identity == exported.identity
    one, _ = image_features(embedded, image_set(), cache_dir=False)
    two, _ = image_features(exported, image_set(), cache_dir=False)
    assert torch.equal(one.inputs, two.inputs)
    assert torch.equal(embedded.tokenizer(["a dog"]), exported.tokenizer(["a dog"]))


def test_the_embedded_release_works_as_installed():
    backbone = backbone_of("mini")
    classes = text_features(backbone, [["a photo of a circle"], ["a photo of a star"]], cache_dir=False)
    assert classes.shape == (2, backbone.embed_dim) and (classes[0] @ classes[1]).abs() < 0.999
    found, _ = image_features(backbone, image_set(3), cache_dir=False)
    torch.testing.assert_close(found.inputs.norm(dim=1), torch.ones(3), atol=1e-5, rtol=0)


def test_a_vocabulary_larger_than_the_text_tower_is_an_error(mini):
    config = json.loads((mini / "open_clip_config.json").read_text())
    del config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]
    (mini / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="has 49408 tokens but its text tower 519"):
        backbone_of("mini")


def test_a_missing_vocabulary_or_release_folder_is_named(mini):
    (mini / "merges.txt.gz").unlink()
    with pytest.raises(BackboneError, match=r"merges\.txt\.gz, which is missing"):
        backbone_of("mini")
    shutil.rmtree(mini)
    with pytest.raises(BackboneError, match="embedded backbone `mini` is missing"):
        backbone_of("mini")


def test_an_older_or_foreign_config_is_named(vit_folder, tmp_path):
    folder = tmp_path / "foreign"
    shutil.copytree(vit_folder, folder)
    config = folder / "open_clip_config.json"
    for content, message in [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ('{"model_cfg": {}}', "needs model_cfg with"),
    ]:
        config.write_text(content)
        with pytest.raises(BackboneError, match=message):
            backbone_of(folder)
    good = json.loads((vit_folder / "open_clip_config.json").read_text())
    good["model_cfg"]["vision_cfg"]["no_such_key"] = 1
    config.write_text(json.dumps(good))
    with pytest.raises(BackboneError, match=r"cannot build local-dir:.*no_such_key"):
        backbone_of(folder)


def test_every_key_of_a_config_that_is_used_is_checked(vit_folder, tmp_path):
    folder = shutil.copytree(vit_folder, tmp_path / "folder")
    good = json.loads((folder / "open_clip_config.json").read_text())
    for key, value, expected in [
        ("preprocess_cfg.mean", [0.5, 0.5], "mean must be three numbers, not [0.5, 0.5]"),
        ("preprocess_cfg.interpolation", "nearest", "must be bicubic or bilinear"),
        ("model_cfg.text_cfg", [], "text_cfg must be an object"),
        ("model_cfg.embed_dim", "24", "embed_dim must be a positive whole number"),
        ("model_cfg.vision_cfg.image_size", 0, "image_size must be a number of pixels"),
    ]:
        broken = json.loads(json.dumps(good))
        *way, last = key.split(".")
        holder = broken
        for part in way:
            holder = holder[part]
        holder[last] = value
        (folder / "open_clip_config.json").write_text(json.dumps(broken))
        with pytest.raises(BackboneError) as caught:
            backbone_of(folder)
        assert expected in str(caught.value) and "open_clip_config.json: " in str(caught.value)


def test_a_tilde_without_a_home_is_one_line(monkeypatch):
    monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(ConfigError, match="~/model: there is no home directory"):
        backbone_of("local-dir:~/model")
