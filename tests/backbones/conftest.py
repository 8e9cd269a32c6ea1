"""Fixtures of the backbone tests."""

import json
from pathlib import Path

import pytest
from tiny_clip import RESNET, VIT, backbone_of, save_folder

from clipkal.backbones import Backbone


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("vit"), VIT)


@pytest.fixture(scope="session")
def resnet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("resnet"), RESNET)


@pytest.fixture
def vit(vit_folder: Path) -> Backbone:
    return backbone_of(vit_folder)


@pytest.fixture(scope="session")
def architecture(vit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same ViT in open_clip's registry, as `tiny-vit` and `tiny-vit-quickgelu`."""
    import open_clip

    config = json.loads((vit_folder / "open_clip_config.json").read_text())["model_cfg"]
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-vit.json").write_text(json.dumps(config))
    (folder / "tiny-vit-quickgelu.json").write_text(json.dumps({**config, "quick_gelu": True}))
    open_clip.add_model_config(folder)
    return "tiny-vit"


@pytest.fixture
def weights(vit_folder: Path, tmp_path: Path) -> Path:
    """The ViT's weights alone, in a folder without a config."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes((vit_folder / "open_clip_model.safetensors").read_bytes())
    return path


@pytest.fixture
def tags(monkeypatch: pytest.MonkeyPatch, architecture: str, vit_folder: Path) -> None:
    """Pretrained tags of the tiny ViT: `quick` was trained with QuickGELU, `plain` was not."""
    from open_clip import pretrained

    file = str(vit_folder / "open_clip_model.safetensors")
    own = {
        "mean": (0.5, 0.5, 0.5),
        "std": (0.4, 0.4, 0.4),
        "interpolation": "bilinear",
        "resize_mode": "shortest",
    }
    table = {"quick": {"file": file, "quick_gelu": True, **own}, "plain": {"file": file, **own}}
    for name in (architecture, f"{architecture}-quickgelu"):
        monkeypatch.setitem(pretrained._PRETRAINED, name, table)
