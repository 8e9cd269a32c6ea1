"""Weights in the layouts that people have: loaded exactly, or one line that names what was found."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import VIT, backbone_of, image_set, save_folder

from clipkal.backbones import image_features, layouts
from clipkal.errors import BackboneError

OPENAI = {
    "input_resolution": torch.tensor(32),
    "context_length": torch.tensor(16),
    "vocab_size": torch.tensor(49408),
}


def behind(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


LAYOUTS = {
    "plain": lambda s: s,
    "ddp": lambda s: {"epoch": 3, "state_dict": behind("module.", s), "optimizer": {"state": {}}},
    "lightning": lambda s: {"state_dict": behind("model.", s), "pytorch-lightning_version": "2.0"},
    "compiled": lambda s: {"state_dict": behind("_orig_mod.", s)},
    "compiled ddp": lambda s: behind("module._orig_mod.", s),
    "compiled tower": lambda s: {n.replace("visual.", "visual._orig_mod."): t for n, t in s.items()},
    "deep": lambda s: {"model": {"state_dict": behind("net.clip.", s)}},
    "model": lambda s: {"model": s},
    "ema": lambda s: {"ema": s, "decay": 0.999},
    "numpy": lambda s: {"state_dict": s, "best": np.float64(0.3), "step": np.int64(7), "lr": np.float32(1)},
    "bias": lambda s: {**s, "logit_bias": torch.tensor(-10.0)},
    "1d scale": lambda s: {**s, "logit_scale": s["logit_scale"].reshape(1)},
    "half": lambda s: {n: t.to(torch.bfloat16).to(torch.float16) for n, t in s.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wrappers_and_prefixes_are_taken_off(architecture, weights, layout, caplog):
    state = {name: tensor.half().float() for name, tensor in load_file(weights).items()}
    if layout == "half":
        state = {name: tensor.to(torch.bfloat16).float() for name, tensor in state.items()}
    path = weights.with_suffix(".pt")
    torch.save(LAYOUTS[layout](state), path)
    found = backbone_of(architecture, pretrained=str(path)).model.state_dict()
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert not caplog.records


def test_what_is_left_out_or_chosen_is_said(architecture, weights, caplog):
    state, path = load_file(weights), weights.with_suffix(".pt")
    torch.save({**behind("clip.", state), "loss.weight": torch.zeros(3)}, path)
    backbone_of(architecture, pretrained=str(path))
    assert "1 tensors outside clip. are left out (loss.weight" in caplog.text
    torch.save({"state_dict": state, "state_dict_ema": state}, path)
    backbone_of(architecture, pretrained=str(path))
    assert "as state_dict and state_dict_ema; taking state_dict" in caplog.text


def hugging_face(state):
    """The tensors of open_clip's CLIP as transformers' CLIPModel has them."""
    found = {
        "logit_scale": state["logit_scale"],
        "text_model.embeddings.position_ids": torch.arange(16)[None],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_projection.weight": state["text_projection"].T,
        "visual_projection.weight": state["visual.proj"].T,
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    }
    for kind in ("weight", "bias"):
        found[f"text_model.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        found[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
        found[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
        for theirs, own, layers in (
            ("text_model", "transformer", 1),
            ("vision_model", "visual.transformer", 2),
        ):
            for i in range(layers):
                block, layer = f"{own}.resblocks.{i}.", f"{theirs}.encoder.layers.{i}."
                parts = state[f"{block}attn.in_proj_{kind}"].chunk(3)
                for part, tensor in zip("qkv", parts, strict=True):
                    found[f"{layer}self_attn.{part}_proj.{kind}"] = tensor
                for a, b in (
                    ("self_attn.out_proj", "attn.out_proj"),
                    ("layer_norm1", "ln_1"),
                    ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"),
                    ("mlp.fc2", "mlp.c_proj"),
                ):
                    found[f"{layer}{a}.{kind}"] = state[f"{block}{b}.{kind}"]
    return {name: tensor.contiguous() for name, tensor in found.items()}


@pytest.fixture
def transformers_folder(weights, tmp_path):
    folder = tmp_path / "clip-vit-tiny"
    folder.mkdir()
    save_file(hugging_face(load_file(weights)), folder / "model.safetensors")
    return folder


def test_transformers_clip_model_is_converted_exactly(architecture, weights, transformers_folder):
    config = {"vision_config": {"hidden_act": "gelu"}, "text_config": {"hidden_act": "gelu"}}
    (transformers_folder / "config.json").write_text(json.dumps(config))
    found = backbone_of(architecture, pretrained=str(transformers_folder / "model.safetensors"))
    assert found.digest == backbone_of(architecture, pretrained=str(weights)).digest


def test_transformers_config_or_the_user_says_whether_it_was_quick_gelu(architecture, transformers_folder):
    file = transformers_folder / "model.safetensors"
    assert "backbone.quick_gelu=true" in error_of(architecture, file)
    backbone_of(architecture, pretrained=str(file), quick_gelu=False)
    config = transformers_folder / "config.json"
    config.write_text(json.dumps({"vision_config": {}, "text_config": {}}))  # the default is quick_gelu
    assert error_of(architecture, file).endswith("type backbone.model=tiny-vit-quickgelu")
    backbone_of("tiny-vit-quickgelu", pretrained=str(file))
    for broken in ("[]", "{", '{"vision_config": 3, "text_config": {}}', "[" * 5000):
        config.write_text(broken)
        assert "config.json is not the config.json of a CLIPModel" in error_of(architecture, file)
    with pytest.raises(BackboneError, match=r"backbone\.pretrained=.*clip-vit-tiny/model\.safetensors"):
        backbone_of(transformers_folder)


def error_of(model, path, **more):
    with pytest.raises(BackboneError) as caught:
        backbone_of(model, pretrained=str(path), **more)
    message = str(caught.value)
    assert str(path.parent) in message and "\n" not in message and len(message) < 700
    return message


def test_the_state_dict_of_openais_archive_loads_into_the_architecture_with_quick_gelu(architecture, weights):
    state = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # the file is written anew
    save_file(state | OPENAI, weights)
    assert "tiny-vit-quickgelu" in error_of(architecture, weights)
    found = backbone_of("tiny-vit-quickgelu", pretrained=str(weights)).model.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)
    backbone_of(architecture, pretrained=str(weights), quick_gelu=False)


def changed(**tensors):
    return lambda state: {**state, **tensors}


BROKEN = {
    "nan scale": (changed(logit_scale=torch.tensor(math.nan)), "logit_scale has values that are not finite"),
    "nan weight": (changed(ln_final=torch.zeros(1)), "Unexpected"),
    "exponentiated": (
        changed(logit_scale=torch.tensor(100.0)),
        "logit_scale is 100, but should be the logarithm",
    ),
    "temperature": (changed(logit_scale=torch.tensor(-1e9)), "logit_scale is -1e"),
    "two models": (
        lambda s: behind("student.", s) | behind("teacher.", s),
        "holds 2 models (student., teacher.)",
    ),
    "image tower": (lambda s: {n: t for n, t in s.items() if n.startswith("visual.")}, "image tower alone"),
    "lora": (lambda s: {"weights": {"visual.attn.w_lora_A": torch.zeros(2)}}, "low-rank changes (LoRA)"),
    "siglip": (lambda s: {"vision_model.head.probe": torch.zeros(2)}, "Hugging Face's transformers"),
    "dino": (lambda s: {"blocks.0.attn.qkv.weight": torch.zeros(2)}, "no text tower"),
    "nothing": (lambda s: {"epoch": 3}, "holds no weights"),
    "a list": (lambda s: [torch.zeros(2)], "holds no weights"),
    "a tensor": (lambda s: torch.zeros(2), "holds no weights"),
    "no dict within": (lambda s: {"state_dict": None}, "holds no weights"),
    "int8": (
        lambda s: s | {"visual.proj": s["visual.proj"].to(torch.int8)},
        "visual.proj in int8; quantised",
    ),
    "infinite": (
        lambda s: s | {"visual.proj": s["visual.proj"] / 0},
        "visual.proj has values that are not finite",
    ),
    "long text": (
        lambda s: s | {"positional_embedding": torch.zeros(248, 16)},
        "a text context of 248 tokens, and it has 16",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_does_not_fit_is_named(architecture, weights, kind):
    change, expected = BROKEN[kind]
    path = weights.with_suffix(".pt")
    torch.save(change(load_file(weights)), path)
    assert expected in error_of(architecture, path)


@pytest.mark.parametrize("scale", [math.log(117), math.log(100), math.log(1 / 0.07), 0.0])
def test_the_logit_scales_of_clip_and_siglip_are_believed(architecture, weights, scale):
    save_file(load_file(weights) | {"logit_scale": torch.tensor(scale)}, weights)
    assert backbone_of(architecture, pretrained=str(weights)).logit_scale == pytest.approx(math.exp(scale))


def test_a_pickled_object_is_named(architecture, weights):
    import argparse

    path = weights.with_suffix(".pt")
    torch.save({"state_dict": load_file(weights), "args": argparse.Namespace(lr=1)}, path)
    assert "a pickled argparse.Namespace, refused" in error_of(architecture, path)


def test_every_pattern_of_the_conversion_is_used(weights):
    """So that a mistyped one cannot hide."""
    import re

    names = hugging_face(load_file(weights))
    assert all(any(re.search(pattern, name) for name in names) for pattern, _ in layouts._FROM_CLIP_MODEL)


# Image sizes


def edit(folder, **vision):
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["vision_cfg"].update(vision)
    file.write_text(json.dumps(config))


def test_weights_of_another_image_size_are_interpolated_with_a_warning(tmp_path, caplog):
    folder = save_folder(tmp_path / "vit", VIT)
    edit(folder, image_size=64)
    backbone = backbone_of(folder)
    assert "its 5 image positions are interpolated to 17" in caplog.text
    assert "Resize(size=64" in backbone.transform


TIMM = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("timm"), TIMM)


def timm_of(timm_folder, tmp_path, size):
    """A folder whose configuration and position embedding are for `size` pixels."""
    folder = shutil.copytree(timm_folder, tmp_path / "timm")
    edit(folder, image_size=size)
    file = folder / "open_clip_model.safetensors"
    state = load_file(file)
    before = state["visual.trunk.pos_embed"]
    tokens = before.shape[1] - (160 // 16) ** 2 + (size // 16) ** 2
    save_file(state | {"visual.trunk.pos_embed": before[:, :1].repeat(1, tokens, 1)}, file)
    return folder


@pytest.mark.parametrize("size", [160, 224])
def test_a_timm_tower_takes_the_image_size_of_the_configuration(timm_folder, tmp_path, size):
    backbone = backbone_of(timm_of(timm_folder, tmp_path, size))
    assert f"Resize(size={size}" in backbone.transform
    assert image_features(backbone, image_set(2), cache_dir=False)[0].inputs.shape == (2, 24)


def test_timm_weights_of_another_image_size_are_refused(timm_folder, tmp_path):
    folder = timm_of(timm_folder, tmp_path, 160)
    edit(folder, image_size=224)
    with pytest.raises(BackboneError, match=r"size mismatch for visual\.trunk\.pos_embed"):
        backbone_of(folder)


def test_a_tower_that_cannot_take_its_own_image_size_is_one_line(timm_folder, tmp_path):
    with pytest.raises(BackboneError, match=r"cannot encode an image of 150 × 150 pixels.*divisible"):
        backbone_of(timm_of(timm_folder, tmp_path, 150))
