"""Whatever is wrong with a model name or its weights is one clear line."""

import re
import shutil
import time
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import VIT, backbone_of, save_folder

from clipkal.backbones import hub, quickgelu
from clipkal.errors import BackboneError


def error_of(model, **more) -> str:
    with pytest.raises(BackboneError) as caught:
        backbone_of(model, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_architecture_suggests_the_nearest():
    assert "ViT-B-32" in error_of("VitB32", pretrained="openai")
    assert "mini" in error_of("minni")
    assert "list_models" in error_of("zzzzzz")


def test_a_slash_in_a_name_is_read_as_the_dash_it_stands_for():
    assert "ViT-B-16-quickgelu" in error_of("ViT-B/16", pretrained="openai")


def test_an_unknown_tag_lists_those_of_the_model():
    message = error_of("ViT-B-32-quickgelu", pretrained="opnai")
    assert "'opnai'" in message and "openai" in message and "metaclip_400m" in message


def test_an_architecture_without_weights_says_which_there_are():
    assert "openai" in error_of("ViT-B-32-quickgelu") and "random" in error_of("ViT-B-32-quickgelu")


@pytest.mark.parametrize("model", ["mini", "hf-hub:org/name", "local-dir:/nowhere"])
def test_a_model_with_own_weights_takes_no_others(model):
    assert "pretrained=null" in error_of(model, pretrained="openai")


def test_missing_folders_files_and_weights(tmp_path, architecture, vit_folder):
    assert "no such folder" in error_of(tmp_path / "nowhere")
    assert "no open_clip_config.json" in error_of(tmp_path)
    (tmp_path / "open_clip_config.json").write_text((vit_folder / "open_clip_config.json").read_text())
    assert "holds no weights" in error_of(tmp_path)
    assert "no such checkpoint file" in error_of(architecture, pretrained=str(tmp_path / "gone.pt"))


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_a_truncated_safetensors_file(architecture, weights, keep):
    data = weights.read_bytes()
    weights.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    message = error_of(architecture, pretrained=str(weights))
    assert str(weights) in message and ("truncated" in message or "empty" in message)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_torch_file(architecture, weights, keep, zipped):
    path = weights.with_suffix(".pt")
    torch.save(load_file(weights), path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    message = error_of(architecture, pretrained=str(path))
    assert str(path) in message and any(word in message for word in ("truncated", "empty", "damaged"))


def test_a_checkpoint_of_another_shape_names_the_first_misfit(architecture, tmp_path):
    other = save_folder(tmp_path / "other", {**VIT, "width": 48})
    (other / "open_clip_config.json").unlink()
    message = error_of(architecture, pretrained=str(other / "open_clip_model.safetensors"))
    assert "do not fit tiny-vit" in message and "size mismatch for visual" in message and "more)" in message


def test_a_checkpoint_with_missing_or_foreign_tensors(architecture, weights):
    state = load_file(weights)
    save_file({k: v for k, v in state.items() if not k.startswith("visual")}, weights)
    assert "do not fit" in error_of(architecture, pretrained=str(weights))
    save_file({"head.weight": torch.zeros(3)}, weights)
    assert "do not fit" in error_of(architecture, pretrained=str(weights))


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_a_pickle_is_refused_and_never_run(architecture, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {}, "hook": Malicious()}, path)
    assert "refused because loading them can run code" in error_of(architecture, pretrained=str(path))


def test_a_training_checkpoint_and_half_precision_weights_load(architecture, weights, tmp_path):
    state = {f"module.{k}": v.half() if v.is_floating_point() else v for k, v in load_file(weights).items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    backbone = backbone_of(architecture, pretrained=str(tmp_path / "epoch_3.pt"))
    assert {p.dtype for p in backbone.model.parameters()} == {torch.float32}


def test_a_torchscript_archive_is_refused(architecture, tmp_path):
    path = tmp_path / "ViT.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    assert "TorchScript" in error_of(architecture, pretrained=str(path))


# QuickGELU


def test_a_mismatch_with_a_tag_names_the_right_model(tags, architecture):
    message = error_of(architecture, pretrained="quick")
    assert "QuickGELU mismatch" in message and "backbone.model=tiny-vit-quickgelu" in message
    message = error_of("tiny-vit-quickgelu", pretrained="plain")
    assert re.search(r"without QuickGELU .* backbone\.model=tiny-vit$", message)
    backbone_of("tiny-vit-quickgelu", pretrained="quick")


def test_openai_weights_in_the_plain_architecture_are_refused_before_any_download():
    assert "type backbone.model=ViT-B-16-quickgelu" in error_of("ViT-B-16", pretrained="openai")


def test_every_mismatch_in_open_clips_own_tables_is_caught():
    import open_clip

    for model, tag in open_clip.list_pretrained():
        built = bool(open_clip.get_model_config(model).get("quick_gelu", False))
        trained = bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False))
        twin = quickgelu.counterpart(model)
        if built == trained or twin not in open_clip.list_models():
            quickgelu.check_tag(model, built, tag)
            continue
        assert tag in open_clip.list_pretrained_tags_by_model(twin)
        with pytest.raises(BackboneError, match=f"backbone.model={twin}$"):
            quickgelu.check_tag(model, built, tag)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("vit-b-32-openai.safetensors", "tiny-vit"),
        ("ViT-QuickGELU-epoch5.safetensors", "tiny-vit"),
        ("tiny-vit-quick.safetensors", "tiny-vit"),
        ("tiny-vit-plain.safetensors", "tiny-vit-quickgelu"),
    ],
)
def test_the_name_of_a_file_tells_how_it_was_trained(tags, weights, name, wrong):
    path = weights.rename(weights.with_name(name))
    right = quickgelu.counterpart(wrong)
    assert f"backbone.model={right}, or" in error_of(wrong, pretrained=str(path))
    backbone_of(right, pretrained=str(path))
    backbone_of(wrong, pretrained=str(path), quick_gelu=wrong.endswith("quickgelu"))


def test_the_config_beside_a_file_outweighs_its_name(architecture, tmp_path):
    folder = save_folder(tmp_path / "hub", VIT, quick_gelu=True)
    path = str(folder / "open_clip_model.safetensors")
    assert "open_clip_config.json" in error_of(architecture, pretrained=path)
    backbone_of("tiny-vit-quickgelu", pretrained=path)


def test_a_stated_quick_gelu_is_checked(architecture, weights, vit_folder):
    assert "tiny-vit-quickgelu" in error_of(architecture, pretrained=str(weights), quick_gelu=True)
    assert "QuickGELU mismatch" in error_of(vit_folder, quick_gelu=True)


def test_a_local_dir_that_speaks_of_openai_needs_quick_gelu_in_its_config(tmp_path):
    assert "quick_gelu: true" in error_of(save_folder(tmp_path / "ViT-B-32-openai", VIT))
    backbone_of(tmp_path / "ViT-B-32-openai", quick_gelu=False)
    backbone_of(save_folder(tmp_path / "quick" / "ViT-B-32-openai", VIT, quick_gelu=True))


# Downloads


@pytest.mark.parametrize("model", ["ViT-B-32-quickgelu", "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"])
@pytest.mark.parametrize("offline", [True, False])
def test_no_network_is_said_at_once(model, offline, monkeypatch, tmp_path):
    import open_clip  # noqa: F401 (importing it is not what is timed)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    start = time.monotonic()
    message = error_of(model, pretrained=None if ":" in model else "openai")
    assert time.monotonic() - start < 15  # huggingface_hub alone retries for half a minute
    assert "cannot download" in message and "backbone.pretrained=/path" in message
    assert offline == constants.HF_HUB_OFFLINE


def test_a_download_that_fails_with_network_says_why(monkeypatch):
    import open_clip

    def refuse(*_, **__):
        raise FileNotFoundError("404 Client Error\nRepository Not Found")

    monkeypatch.setattr(hub, "hub", lambda: __import__("contextlib").nullcontext(True))
    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    assert "404 Client Error Repository" in error_of("ViT-B-32-quickgelu", pretrained="openai")


def test_a_hub_that_does_not_answer_costs_no_more_than_the_timeout(monkeypatch):
    monkeypatch.setattr(hub.socket, "create_connection", lambda *_: time.sleep(1) or hub.socket.socket())
    assert not hub.answers("https://hub.invalid", timeout=0.1)


def test_the_hubs_cache_is_enough_without_a_network(vit_folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "answers", lambda *_: False)
    repository, commit = tmp_path / "models--org--tiny", "0" * 40
    shutil.copytree(vit_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    found = backbone_of("hf-hub:org/tiny")
    assert found.identity == backbone_of(vit_folder).identity
    assert found.transform == backbone_of(vit_folder).transform
