"""`clipkal-predict`, `clipkal-export`, `clipkal-evaluate` and `clipkal-doctor` as a user types them."""

import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from whole_runs import from_here

import clipkal
from clipkal.data.drawing import draw
from clipkal.inference import doctor, evaluate, export, predict
from clipkal.inference.writers import _Terminal, writer
from clipkal.report.aggregate import aggregate
from clipkal.report.collect import collect


def typed(command, *words):
    """The exit status of a command."""
    with pytest.raises(SystemExit) as stopped:
        command.main([str(word) for word in words])
    return stopped.value.code


# -- predict --


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_predictions_go_to_a_file_of_any_kind(finished, images, tmp_path, ending, capsys):
    out = tmp_path / f"p{ending}"
    run = finished("method=kalman", "predictive=novelty")
    assert typed(predict, run, images / "night", "--out", out, "--top", 2, "--reject", 0.25, "--sets") == 0
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda p: pd.read_json(p, lines=True)}
    frame = read[ending](out)
    expected = clipkal.load_run(run).predict(images / "night", reject=0.25, sets=True).to_pandas(top=2)
    to_list = lambda value: value.split("|") if isinstance(value, str) else [] if value is None else value
    frame["set"] = [
        list(to_list(value)) for value in frame["set"].astype(object).where(frame["set"].notna(), None)
    ]
    pd.testing.assert_frame_equal(frame, expected, check_exact=False, check_dtype=False, atol=1e-9)
    assert {
        "class_2",
        "confidence_2",
        "entropy",
        "aleatoric",
        "epistemic",
        "novelty",
        "set",
        "accepted",
    } < set(frame)
    assert capsys.readouterr().out == f"{out}  18 images\n"


def test_without_a_file_it_prints_csv_where_the_output_is_no_terminal(finished, images, capsys):
    assert typed(predict, finished("method=kalman", "predictive=sampled"), images / "day" / "star") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "image,class,confidence,entropy,aleatoric,epistemic"
    assert len(lines) == 7
    assert lines[1].startswith(f"{images}/day/star/0.png,")


def test_damaged_images_are_reported_and_skipped_or_refused(finished, images, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(images / "day", folder)
    (folder / "circle" / "1.png").write_bytes(b"")
    (folder / "star" / "2.png").write_bytes(b"no image")
    out, run = tmp_path / "p.csv", finished("method=kalman", "predictive=sampled")
    assert typed(predict, run, folder, "--out", out) == 3
    told = capsys.readouterr()
    assert [line.split(":")[1] for line in told.err.splitlines()] == [
        f" skipped {folder}/circle/1.png", f" skipped {folder}/star/2.png",
    ]  # fmt: skip
    assert told.out == f"{out}  16 images, 2 skipped\n"
    assert len(pd.read_csv(out)) == 16
    assert typed(predict, run, folder, "--out", tmp_path / "q.csv", "--on-bad-image", "error") == 2
    assert "circle/1.png: cannot be read as an image (the file is empty)" in capsys.readouterr().err
    assert not (tmp_path / "q.csv").exists()
    assert typed(predict, run, folder / "circle" / "1.png") == 2
    assert "not one of the 1 images can be read" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_what_was_done_before_it_was_stopped_is_kept(tmp_path, ending):
    out = tmp_path / f"p{ending}"
    with pytest.raises(KeyboardInterrupt), writer(out) as rows:
        rows.write({"image": ["a", "b"], "set": [[], ["x", "y"]]})
        rows.write({"image": ["c"], "set": [["z"]]})
        raise KeyboardInterrupt
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda p: pd.read_json(p, lines=True)}
    assert read[ending](out).image.tolist() == ["a", "b", "c"]
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / f"q{ending}"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_the_sheet_shows_the_least_and_the_most_certain(finished, images, tmp_path):
    sheet = tmp_path / "sheet.png"
    assert (
        typed(
            predict,
            finished("method=kalman", "predictive=sampled"),
            images,
            "--sheet",
            sheet,
            "--out",
            tmp_path / "p.csv",
        )
        == 0
    )
    with Image.open(sheet) as picture:
        assert picture.width > 900
        colours = {picture.convert("RGB").getpixel((60 + 124 * i, 150)) for i in range(8)}
    assert len(colours) > 4  # eight images, and no empty paper


def test_what_is_wrong_is_one_line_and_two(finished, images, tmp_path, capsys):
    run = finished("method=kalman", "predictive=sampled")
    for words, message in (
        (["nowhere", images], "nowhere: no such folder; give a run directory"),
        ([run, "absent.jpg"], "absent.jpg: no such file or folder"),
        ([run, images, "--out", "p.xls"], "--out p.xls: must end in .csv, .jsonl, .parquet"),
        ([run, images, "--sheet", "s.gif"], "--sheet s.gif: must end in .png, .jpg or .webp"),
        ([run, images, "--reject", "2"], "'2' is not a share from 0 to below 1"),
        ([run, images, "--predictive", "probit"], "predictive=probit: the run"),
        ([run, images, "--weights", tmp_path], "backbone=mini has no weights that could lie elsewhere"),
        ([run, images, "--device", "quantum"], "device=quantum: no such device"),
        ([run], "the following arguments are required: IMAGE (clipkal-predict --help shows how)"),
    ):
        assert typed(predict, *words) == 2
        told = capsys.readouterr().err
        assert told.startswith("clipkal-predict: ")
        assert message in told
        assert told.count("\n") == 1


@pytest.mark.parametrize("name", ["predict", "evaluate", "export", "doctor"])
def test_help_teaches_and_needs_no_torch(name):
    script = (
        f"import sys, clipkal.inference.{name} as command\n"
        "try: command.main(['--help'])\n"
        "finally: sys.stderr.write(str('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=from_here(), capture_output=True, text=True, check=True
    )
    assert done.stderr == "False"
    for word in ("examples:", "exit status:", f"clipkal-{name}", "--version"):
        assert word in done.stdout


# -- export --

PLAIN = """
import sys, torch, open_clip, numpy as np
from PIL import Image
from safetensors.torch import load_file
image, *folders = sys.argv[1:]
for out in folders:
    model = open_clip.create_model("local-dir:" + out).eval()
    _, preprocess = open_clip.create_model_from_pretrained("local-dir:" + out, return_transform=True)
    head = load_file(out + "/class_head.safetensors")
    with torch.no_grad():
        feature = model.encode_image(preprocess(Image.open(image))[None], normalize=True)
        np.save(out + ".npy", (head["log_scale"].exp() * feature @ head["weight"].T).numpy())
assert "clipkal" not in sys.modules
"""
BOTH_TOWERS = ("method=adamw", "adapter=lora", "adapter.towers=both", "adapter.rank=2")


def test_exports_give_the_runs_logits_in_a_process_that_has_open_clip_alone(finished, images, tmp_path):
    image = images / "night" / "moon" / "3.png"
    runs = {
        "linear": finished("method=kalman", "predictive=sampled"),
        "lora": finished(*BOTH_TOWERS, "optimizer.epochs=2", "optimizer.lr_grid=[0.01]"),
    }
    for name, path in runs.items():
        assert typed(export, path, tmp_path / name, "--license", "apache-2.0") == 0
    words = [sys.executable, "-c", PLAIN, image, *(tmp_path / name for name in runs)]
    subprocess.run(list(map(str, words)), env=from_here(), check=True, capture_output=True, cwd=tmp_path)
    for name, path in runs.items():
        probs = clipkal.load_run(path).predict(image, "plugin").probs
        found = torch.from_numpy(np.load(tmp_path / f"{name}.npy"))
        assert (found.double().log_softmax(1) - probs.log()).abs().max() < 1e-5
        names = json.loads((tmp_path / name / "classes.json").read_text())["class_names"]
        assert names == ["circle", "moon", "star"]
        card = (tmp_path / name / "README.md").read_text()
        for word in (
            'license: "apache-2.0"',
            "| night | OOD | 18 | plugin |",
            "seed 1",
            "2 image(s) a class",
        ):
            assert word in card
        code = re.search(r"`(open_clip.get_tokenizer.*?)`", card)
        assert code is not None
        tokenizer = eval(code[1].replace("THIS_FOLDER", str(tmp_path / name)), {"open_clip": open_clip})
        assert torch.equal(tokenizer(["a star"]), clipkal.load_run(path).backbone.tokenizer(["a star"]))


def test_the_linear_map_is_in_the_head_and_the_tower_is_untouched(finished, tmp_path):
    """CLIP normalises after its projection, so the map itself cannot go there: the rows of the head are not of unit norm."""
    assert typed(export, finished("method=kalman", "predictive=sampled"), tmp_path / "out") == 0
    run = clipkal.load_run(finished("method=kalman", "predictive=sampled"))
    weights = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in run.backbone.model.state_dict().items())
    head = load_file(tmp_path / "out" / "class_head.safetensors")["weight"]
    adapter = run.adapter
    left, _ = adapter.jacobian_factors(torch.zeros(1, head.shape[1]))
    expected = adapter.text + left @ adapter.weight / adapter.log_scale.exp()
    assert torch.allclose(head, expected, atol=1e-6)
    assert ((head.norm(dim=1) - 1).abs() > 1e-3).any()


def test_an_export_loads_as_a_backbone_and_as_onnx(finished, images, tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="pip install 'clipkal[onnx]'")
    from clipkal.inference.checkpoint import some_images
    from clipkal.inference.onnx import onnx_logits

    path, out = finished("method=loko", "adapter.rank=2"), tmp_path / "out"
    assert typed(export, path, out, "--onnx") == 0
    run = clipkal.load_run(path)
    test = some_images(run)
    # Another number than was traced
    pixels = torch.stack([run.backbone.preprocess(test.decode(i)) for i in range(5)])
    expected = run.predict(test, "plugin").probs[:5]
    assert (onnx_logits(out / "model.onnx", pixels).double().softmax(1) - expected).abs().max() < 1e-4
    assert typed(doctor, "backbone=open_clip", f"backbone.model=local-dir:{out}", "--no-zero-shot") == 0


def test_an_export_overwrites_nothing_that_is_not_its_own(finished, tmp_path, capsys):
    run = finished("method=zeroshot")
    out, other = tmp_path / "out", tmp_path / "other"
    assert typed(export, run, out) == 0
    capsys.readouterr()
    assert typed(export, run, out) == 2
    assert "out exists; give another folder, or --overwrite" in capsys.readouterr().err
    assert typed(export, run, out, "--overwrite") == 0
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert typed(export, run, other, "--overwrite") == 2
    assert "it is no export" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_what_merging_would_change_is_exported_alone(finished, tmp_path, monkeypatch, capsys):
    from clipkal.adapters import LinearAdapter

    # An adapter that forgets its own map
    monkeypatch.setattr(LinearAdapter, "head", lambda self: self.text)
    assert typed(export, finished("method=kalman", "predictive=sampled"), tmp_path / "out") == 0
    assert "the adapter alone: merged, its cosines would differ by" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"adapter.safetensors", "README.md"}


def test_a_run_on_features_has_no_tower_so_its_adapter_is_exported_alone(finished, tmp_path, capsys):
    rows = np.eye(6, dtype=np.float32)
    np.savez(
        tmp_path / "f.npz", image_features=np.tile(rows, (3, 1)), text_features=rows, logit_scale=10.0,
        label=np.tile(np.arange(6), 3), split=np.repeat([0, 1, 2], 6), domain=np.zeros(18, int), classes=list("abcdef"),
        domains=["x"], splits=["train", "val", "test"],
    )  # fmt: skip
    words = [
        "dataset=features",
        f"dataset.path={tmp_path / 'f.npz'}",
        "backbone=precomputed",
        "method=kalman",
    ]
    path, out = finished(*words, "fewshot.shots=1", own=False), tmp_path / "out"
    assert typed(export, path, out) == 0
    assert (
        "the adapter alone: the run learnt from features that were computed elsewhere"
        in capsys.readouterr().out
    )
    assert {file.name for file in out.iterdir()} == {
        "adapter.safetensors", "class_head.safetensors", "classes.json", "README.md",
    }  # fmt: skip
    head = load_file(out / "class_head.safetensors")
    logits = head["log_scale"].exp() * torch.from_numpy(rows) @ head["weight"].T
    expected = clipkal.load_run(path).predict_features(rows, "plugin").probs
    assert torch.allclose(logits.double().softmax(1), expected, atol=1e-6)
    assert typed(export, path, tmp_path / "with", "--onnx") == 2
    assert "leave --onnx out to have the adapter alone" in capsys.readouterr().err


# -- evaluate --


def results(path):
    return json.loads((path / "results.json").read_text())


@pytest.mark.parametrize(
    "settings",
    [
        ("method=kalman", "predictive=sampled"),
        ("method=adamw", "predictive=novelty", "optimizer.epochs=2", "optimizer.lr_grid=[0.01]"),
        ("method=loko", "adapter.rank=2"),
    ],
    ids=["kalman", "novelty", "lora"],
)
def test_evaluating_the_runs_own_ood_set_gives_the_runs_own_numbers(finished, tmp_path, settings):
    path = shutil.copytree(finished(*settings), tmp_path / "run")
    assert typed(evaluate, path, "--name", "again") == 0
    there, here = results(path), json.loads((path / "evaluations" / "again.json").read_text())
    assert here["sets"] == {"night": there["sets"]["night"]}
    assert here["detection"] == there["detection"]
    assert here["evaluation"] == there["evaluation"]
    columns = ["id", "predictive", "entropy"]
    old, new = (
        pd.read_parquet(p) for p in (path / "predictions.parquet", path / "evaluations" / "again.parquet")
    )
    pd.testing.assert_frame_equal(
        old[old.set == "night"][columns].reset_index(drop=True), new[columns].reset_index(drop=True)
    )


def test_without_the_runs_own_images_detection_compares_with_its_stored_predictions(
    finished, images, tmp_path, caplog, capsys
):
    path = shutil.copytree(finished("method=kalman", "predictive=sampled"), tmp_path / "run")
    words = [
        *other_dataset(tmp_path, images, {name: name for name in ("circle", "moon", "star")}),
        f"data.root={tmp_path}",
    ]
    cfg = clipkal.load_run(path).cfg
    moved = images.parent / "moved"
    images.rename(moved)
    try:
        assert typed(evaluate, path, *words, "--name", "other") == 0
        assert typed(evaluate, path, f"dataset.ood=[new:{tmp_path}/other]") == 2
    finally:
        moved.rename(images)
    assert "put it back, or name the new images alone" in capsys.readouterr().err
    assert re.search(
        r"other: its \d+ test images are evaluated, and its \d+ train and validation images are not",
        caplog.text,
    )
    assert "the run's own images are not at hand" in caplog.text
    found, there = json.loads((path / "evaluations" / "other.json").read_text()), results(path)
    for score in ("msp", "entropy", "mutual_information", "plugin_msp"):
        assert found["detection"]["other"][score]["auroc"] == pytest.approx(
            there["detection"]["night"][score]["auroc"]
        )
    assert cfg.dataset.path == str(images)


def test_new_sets_stand_in_the_report_beside_the_old_ones(finished, images, tmp_path, capsys):
    path = shutil.copytree(finished("method=kalman", "predictive=sampled"), tmp_path / "run")
    before, before_names = aggregate(collect([path]).runs), clipkal.load_run(path).predictives
    assert typed(evaluate, path, "dataset.ood=[gaussian_noise@5]", f"data.root={images}") == 0
    assert re.search(r"gaussian_noise@5 +ood +\d+ +3 +sampled", capsys.readouterr().out)
    after = aggregate(collect([path]).runs)
    for old, new in zip(before, after, strict=True):
        assert new.named("ood") == ["night", "gaussian_noise@5"]
        assert 0 <= new.values["gaussian_noise@5", "accuracy"].mean <= 1
        # Other runs must be able to have the same mean, so it does not count the new set
        assert new.values["mean OOD", "nll"] == old.values["mean OOD", "nll"]
        assert new.values["ID", "nll"] == old.values["ID", "nll"]
    assert clipkal.load_run(path).predictives == before_names  # the run is still whole


def other_dataset(tmp_path, images, names):
    """The night images as a dataset of their own, with classes of other names in another order."""
    for there, here in names.items():
        for split in ("train", "test"):
            shutil.copytree(images / "night" / there, tmp_path / "other" / split / here)
    return [
        "dataset=folder", "dataset.name=other", f"dataset.path={tmp_path}/other", "dataset.id_domain=null", "dataset.ood=[]",
    ]  # fmt: skip


def test_another_dataset_is_matched_by_the_names_of_its_classes(finished, images, tmp_path):
    path = shutil.copytree(finished("method=kalman", "predictive=sampled"), tmp_path / "run")
    words = other_dataset(tmp_path, images, {"star": "STAR", "circle": "circle"})
    assert typed(evaluate, path, *words, "--name", "other") == 0
    found = json.loads((path / "evaluations" / "other.json").read_text())["sets"]["other"]
    assert found["label_space"] == [0, 2]
    frame, night = (
        pd.read_parquet(p) for p in (path / "evaluations/other.parquet", path / "predictions.parquet")
    )
    night = night[(night.set == "night") & (night.predictive == "plugin") & (night.label != 1)]
    # STAR comes before circle there
    frame = frame[frame.predictive == "plugin"].sort_values("label", kind="stable")
    assert frame.label.tolist() == night.label.tolist()
    three = np.stack(night.probs)[:, [0, 2]]
    assert np.allclose(np.stack(frame.probs), three / three.sum(1, keepdims=True), atol=1e-5)


def test_a_dataset_with_other_classes_needs_to_be_called_a_transfer(finished, images, tmp_path, capsys):
    path = shutil.copytree(finished("method=kalman", "predictive=sampled"), tmp_path / "run")
    words = other_dataset(tmp_path, images, {"star": "spaceship", "circle": "circle"})
    assert typed(evaluate, path, *words) == 2
    told = capsys.readouterr().err
    assert (
        "dataset other has classes that the run did not learn: spaceship (it learnt circle, moon, star)"
        in told
    )
    assert "type fewshot.transfer=[other]" in told
    assert not (path / "evaluations").exists()
    assert typed(evaluate, path, f"fewshot.transfer=[folder:{tmp_path}/other]", "--name", "t") == 0
    sets = json.loads((path / "evaluations" / "t.json").read_text())["sets"]
    assert sets["other"]["class_names"] == ["circle", "spaceship"]
    assert sets["other"]["role"] == "transfer"


def test_only_sets_can_be_typed(finished, capsys):
    for word, message in (
        (
            "optimizer.prior=1",
            "a finished run is evaluated as it is; what can be typed here is dataset, data, fewshot",
        ),
        ("dataset.odd=[x]", "unknown setting 'dataset.odd': did you mean 'dataset.ood'?"),
        ("dataset=digit", "unknown dataset 'digit': did you mean 'digits'?"),
        ("dataset.ood=[]", "there is no set to evaluate"),
    ):
        assert typed(evaluate, finished("method=kalman", "predictive=sampled"), word) == 2
        assert message in capsys.readouterr().err


def test_a_damaged_evaluation_is_named_and_left_out(finished, tmp_path):
    path = shutil.copytree(finished("method=kalman", "predictive=sampled"), tmp_path / "run")
    assert typed(evaluate, path, "--name", "again") == 0
    content = json.loads((path / "evaluations" / "again.json").read_text())
    for spoilt in (
        "{",
        json.dumps(content | {"run_id": "f" * 16}),
        json.dumps(content | {"sets": {"x": {}}}),
    ):
        (path / "evaluations" / "again.json").write_text(spoilt)
        found = collect([path])
        assert len(found.runs) == len(found.damaged) == 1
        assert "again.json" in found.damaged[0]


# -- doctor --


def test_the_doctor_finds_the_embedded_backbone_well_and_knows_its_figure(capsys):
    assert typed(doctor, "dataset=digits", "data.progress=false") == 0
    told = capsys.readouterr().out
    for word in ("weights", "activation", "transform", "tokenizer", "logit scale", "features", "precision"):
        assert f"✓ {word}" in told
    assert "zero-shot     59.1 % on 723 of 723 test images of digits; known: 59.1 %" in told
    assert told.splitlines()[-1] == "nothing is wrong; type: clipkal data.progress=false dataset=digits"


def test_the_doctor_says_what_is_wrong(tmp_path, capsys):
    spoilt = ["backbone.image_mean=[40,40,40]", "dataset=digits", "data.progress=false"]
    assert typed(doctor, *spoilt) == 1
    told = capsys.readouterr().out
    assert "· transform     backbone.image_mean replace the model's own" in told
    assert "✗ zero-shot" in told
    assert "but 59.1 % is known (clipkal's README): is it the right transform" in told
    assert typed(doctor, "backbone=vit_b17") == 2
    assert typed(doctor, "seed=1") == 2
    assert typed(doctor, "backbone=precomputed") == 2
    assert typed(doctor, "backbone=open_clip", f"backbone.model=local-dir:{tmp_path}/none") == 2
    assert "no such folder" in capsys.readouterr().err


# -- real images --


@pytest.mark.slow
def test_real_images_from_end_to_end(shared_data, tmp_path):
    """Office-Caltech's photographs: fine-tune, predict, evaluate on a domain left out, export."""
    from clipkal.app import run
    from clipkal.config import compose

    archive = f"dataset.path={shared_data / 'officecaltech10_96.npz'}"
    words = ["dataset=archive", archive, "dataset.id_domain=amazon", "dataset.ood=[dslr]", "fewshot.shots=4"]
    words += ["method=kalman", "tracking=disabled", "data.progress=false", f"output_dir={tmp_path}"]
    run(compose(words))
    (marker,) = tmp_path.rglob("finished.json")
    path = marker.parent
    loaded, frame = clipkal.load_run(path), pd.read_parquet(path / "predictions.parquet")
    for name, images in {"test": (task := draw(loaded.cfg)).test, **task.ood}.items():
        there = frame[(frame.set == name) & (frame.predictive == loaded.predictive)]
        assert np.abs(loaded.predict(images).probs.numpy() - np.stack(there.probs)).max() < 1e-6
    assert typed(evaluate, path, "dataset.ood=[webcam]", "--name", "webcam") == 0
    assert json.loads((path / "evaluations" / "webcam.json").read_text())["sets"]["webcam"]["role"] == "ood"
    assert typed(export, path, tmp_path / "out") == 0


@pytest.mark.parametrize("width", [30, 40, 56, 80])
def test_a_narrow_terminal_shows_numbers_whole(width):
    """The names give way, and then the lines: a probability of "0.8…" says nothing."""
    screen = io.StringIO()
    table = _Terminal(Console(file=screen, width=width))
    numbers = {name: [0.123] for name in ("confidence", "entropy", "aleatoric", "epistemic", "novelty")}
    table.write({"image": ["photos of last summer/img.jpg"], "class": ["a crow in winter"]} | numbers)
    table.close()
    assert screen.getvalue().count("0.123") == len(numbers)
    assert max(map(len, screen.getvalue().splitlines())) <= max(width, 65)
