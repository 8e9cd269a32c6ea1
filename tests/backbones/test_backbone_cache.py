"""A cached feature is the computed one, or it is computed again."""

import json
import multiprocessing
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_clip import RESNET, VIT, Forwards, backbone_of, image_set, save_folder

from clipkal.backbones import cache, image_features, text_features
from clipkal.errors import DataError

PROMPTS = [["a photo of a cat.", "a cat"], ["a photo of a dog."]]


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_a_second_call_encodes_nothing_and_gives_the_same_bits(vit, tmp_path):
    visual, text = Forwards(vit.model.visual), Forwards(vit.model.transformer)
    first = image_features(vit, image_set(), tmp_path)[0], text_features(vit, PROMPTS, tmp_path)
    counts = visual.count, text.count
    assert counts == (3, 1) and len(entries(tmp_path)) == 2
    decode = tmp_path / "decoded"
    again = image_features(vit, image_set(log=decode), tmp_path)[0], text_features(vit, PROMPTS, tmp_path)
    assert (visual.count, text.count) == counts and not decode.exists()
    assert torch.equal(first[0].inputs, again[0].inputs) and torch.equal(first[1], again[1])


def test_another_backbone_object_or_path_of_the_same_weights_shares_entries(vit, vit_folder, tmp_path):
    image_features(vit, image_set(), tmp_path / "cache")
    (tmp_path / "moved").symlink_to(vit_folder)
    moved = backbone_of(tmp_path / "moved", batch_size=3)
    visual = Forwards(moved.model.visual)
    image_features(moved, image_set(), tmp_path / "cache")
    assert visual.count == 0


def test_whatever_changes_features_makes_another_entry(vit_folder, resnet_folder, tmp_path):
    folder = tmp_path / "cache"
    quick = save_folder(tmp_path / "quick", VIT, quick_gelu=True)  # the same tensors, another function
    backbones = [
        backbone_of(vit_folder),
        backbone_of(resnet_folder),
        backbone_of(quick),
        backbone_of(vit_folder, precision="bf16"),
        backbone_of(vit_folder, image_mean=[0.1, 0.2, 0.3]),
    ]
    found = [image_features(b, image_set(), folder)[0].inputs for b in backbones]
    found.append(image_features(backbones[0], image_set(seed=1), folder)[0].inputs)
    assert len(entries(folder)) == len(found) == 6
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_the_name_of_a_set_does_not_matter_but_its_order_does(vit, tmp_path):
    images = image_set()
    image_features(vit, images, tmp_path)
    renamed, _ = image_features(vit, replace(images, name="shots"), tmp_path)
    assert renamed.name == "shots" and len(entries(tmp_path)) == 1
    turned, _ = image_features(vit, images.subset(range(9, -1, -1)), tmp_path)
    assert len(entries(tmp_path)) == 2
    torch.testing.assert_close(turned.inputs.flip(0), renamed.inputs, atol=1e-5, rtol=0)


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def damage_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(bytes(data))


def damage_foreign(path: Path) -> None:
    other = backbone_of(save_folder(path.parent / "other", RESNET))
    image_features(other, image_set(), path.parent / "elsewhere")
    entries(path.parent / "elsewhere")[0].replace(path)


@pytest.mark.parametrize("damage", [damage_truncate, damage_half, damage_empty, damage_bit, damage_foreign])
def test_a_damaged_or_foreign_entry_is_reported_and_computed_again(vit, tmp_path, damage, caplog):
    good, _ = image_features(vit, image_set(), tmp_path)
    damage(entries(tmp_path)[0])
    visual = Forwards(vit.model.visual)
    again, _ = image_features(vit, image_set(), tmp_path)
    assert visual.count == 3 and torch.equal(again.inputs, good.inputs)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "computing it again" in record.getMessage()
    caplog.clear()
    image_features(vit, image_set(), tmp_path)
    assert visual.count == 3 and not caplog.records


def test_an_error_stores_nothing(vit, tmp_path):
    with pytest.raises(DataError):
        image_features(vit, image_set(bad={1}), tmp_path)
    assert not entries(tmp_path)
    assert [p.suffix for p in tmp_path.iterdir()] in ([], [".lock"])


def test_skipped_images_are_remembered_unless_they_can_be_read_again(vit, tmp_path):
    bad, visual = {3}, Forwards(vit.model.visual)
    first, skipped = image_features(vit, image_set(bad=bad), tmp_path, on_bad_image="skip")
    again, still = image_features(vit, image_set(bad=bad), tmp_path, on_bad_image="skip")
    assert visual.count == 3 and skipped == still and torch.equal(first.inputs, again.inputs)
    with pytest.raises(DataError, match=r"image3\.jpg"):
        image_features(vit, image_set(bad=bad), tmp_path)
    mended, none = image_features(vit, image_set(), tmp_path, on_bad_image="skip")
    assert none == [] and len(mended) == 10


@pytest.mark.parametrize("where", ["file", "denied"])
def test_a_cache_that_cannot_be_written_is_a_warning(vit, tmp_path, where, caplog, monkeypatch):
    folder = tmp_path / "cache"
    if where == "file":
        folder.write_text("not a folder")
    else:
        deny(monkeypatch)
    seen, _ = image_features(vit, image_set(), folder)
    assert len(seen) == 10
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "going on without" in record.getMessage()


def deny(monkeypatch) -> None:
    """As for a user without the right to write; tests may run as root, who has it everywhere."""

    def refuse(path, timeout=0.0):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(cache.files, "locked", refuse)


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(122, "Disk quota exceeded"),
        OSError(30, "Read-only file system"),
    ],
)
def test_a_disk_that_takes_no_more_is_one_warning_and_leaves_no_file(
    vit, tmp_path, caplog, monkeypatch, error
):
    def fail(entry, path, metadata):
        Path(path).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    assert len(image_features(vit, image_set(), tmp_path)[0]) == 10
    assert text_features(vit, PROMPTS, tmp_path).shape[0] == 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "data.cache or CLIPKAL_CACHE" in record.getMessage()
    assert str(error).split(": ")[-1] in record.getMessage() and "\n" not in record.getMessage()


def test_without_a_home_there_is_no_cache_and_one_warning(vit, monkeypatch, caplog):
    import pwd

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for variable in ("CLIPKAL_CACHE", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(cache, "_given_up", set())
    for _ in range(2):
        assert len(image_features(vit, image_set())[0]) == 10
    (record,) = caplog.records
    assert "home directory" in record.getMessage() and "CLIPKAL_CACHE" in record.getMessage()


def test_the_same_file_name_size_and_time_with_other_weights_is_another_entry(vit_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(vit_folder, folder)
    file = folder / "open_clip_model.safetensors"
    first, stat = backbone_of(folder), file.stat()
    state = load_file(file)
    state["visual.proj"] = state["visual.proj"].flip(0).contiguous()
    save_file(state, file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    found = [
        image_features(one, image_set(), tmp_path / "cache")[0].inputs for one in (first, backbone_of(folder))
    ]
    assert not torch.equal(*found) and len(entries(tmp_path / "cache")) == 2


def test_every_word_of_the_preprocessing_is_in_the_key(vit_folder, tmp_path):
    folder = shutil.copytree(vit_folder, tmp_path / "model")
    config = json.loads((folder / "open_clip_config.json").read_text())
    own, seen = config["preprocess_cfg"], set()
    for change in [
        {},
        {"mean": [0.1, 0.2, 0.3]},
        {"std": [0.9, 0.9, 0.9]},
        {"interpolation": "bicubic"},
        {"resize_mode": "squash"},
        {"resize_mode": "longest"},
        {"resize_mode": "longest", "fill_color": 9},
    ]:
        config["preprocess_cfg"] = own | change
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        seen.add(backbone_of(folder).transform)
    assert len(seen) == 7


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPKAL_CACHE", str(tmp_path))
    assert cache.directory() == tmp_path
    monkeypatch.delenv("CLIPKAL_CACHE")
    assert cache.directory() == Path.home() / ".cache" / "clipkal"
    assert cache.directory("~/x") == Path.home() / "x"
    assert cache.directory(False) is None and cache.directory("off") is None


def _compute(folder: Path, log: Path, results) -> None:
    torch.set_num_threads(1)

    def compute() -> dict[str, torch.Tensor]:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return {"features": torch.arange(6.0).reshape(2, 3)}

    entry = cache.load_or_compute(folder, {"kind": "test"}, compute)
    results.put(entry["features"].tolist())


def test_two_processes_share_one_computation(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    log = tmp_path / "computed"
    workers = [context.Process(target=_compute, args=(tmp_path / "cache", log, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join(30)
    assert len(log.read_text().split()) == 1
    assert found[0] == found[1] == [[0, 1, 2], [3, 4, 5]]


def test_a_process_that_dies_leaves_no_lock_behind(tmp_path):
    def die() -> dict[str, torch.Tensor]:
        os._exit(1)

    context = multiprocessing.get_context("fork")
    worker = context.Process(target=cache.load_or_compute, args=(tmp_path, {"kind": "test"}, die))
    worker.start()
    worker.join(30)
    assert worker.exitcode == 1
    found = cache.load_or_compute(tmp_path, {"kind": "test"}, lambda: {"features": torch.ones(1)})
    assert found["features"].tolist() == [1]
