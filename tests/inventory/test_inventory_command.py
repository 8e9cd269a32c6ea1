"""`clipkal-data`: list, check, shots and preview, on whole and on broken datasets."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from PIL import Image

from clipkal import __version__
from clipkal.config import compose, conf_dir
from clipkal.data.drawing import draw
from clipkal.inventory.command import main
from clipkal.inventory.facts import FACTS, Facts
from clipkal.report.command import main as report_main
from clipkal.tracking import RunDirectory


def write_image(path: Path, seed: int = 0) -> Path:
    """A small noise image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def tree(tmp_path):
    """A folder set with two classes of ten images."""
    for name in ("cup", "hat"):
        for i in range(10):
            write_image(tmp_path / "own" / name / f"{i}.png", i)
    return tmp_path / "own"


@pytest.fixture
def coop(tmp_path):
    """A tiny dataset in CoOp's layout under Food-101's name, whose split file has no known checksum."""
    rows = {
        part: [
            [f"{name}/{part}{i}.jpg", label, name]
            for label, name in enumerate(("pie", "soup"))
            for i in (1, 2)
        ]
        for part in ("train", "val", "test")
    }
    for listed in rows.values():
        for path, _, _ in listed:
            write_image(tmp_path / "food-101" / "images" / path)
    (tmp_path / "food-101/split_zhou_Food101.json").write_text(json.dumps(rows))
    return tmp_path


def refused(capsys, *words: object) -> str:
    """Standard error of a command that must exit with 2."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_list_tells_what_is_there(capsys, coop):
    main(["list", "--root", str(coop)])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "embedded" in lines["digits"]
    assert "there" in lines["food101"]
    assert "absent" in lines["caltech101"]
    assert "4,128 / 1,649 / 2,465" in lines["caltech101"]
    assert "98,389" in lines["imagenet_shifts"]
    assert "42,023" in lines["fmow"]
    assert list(lines)[1:4] == ["digits", "rendered", "food101"]  # what can be used at once comes first


def test_list_names_what_an_incomplete_dataset_lacks(capsys, tmp_path):
    (tmp_path / "dtd").mkdir()
    main(["list", f"data.root={tmp_path}"])
    said = capsys.readouterr().out
    assert "incomplete" in said
    assert "holds no split_zhou_*.json" in said


def test_check_of_the_digits_compares_counts_and_decodes_all(capsys):
    main(["check", "digits", "dataset.ood=[contrast@3]", "--workers", "2"])
    said = capsys.readouterr().out
    assert "digits is whole: 10 classes and as many images as are known, all 1,797 decoded" in said
    assert "on the fly" in said


def test_check_of_the_rendered_world_counts_without_decoding(capsys):
    main(["check", "rendered", "--no-decode"])
    said = capsys.readouterr().out
    assert "at most 32 shots a class" in said
    assert "rendered is whole: 24 classes and as many images as are known, not decoded" in said


def test_check_of_a_folder_that_is_whole(capsys, tree):
    main(["check", "folder", "--root", str(tree.parent), "dataset.path=own"])
    said = capsys.readouterr().out
    assert "folder is whole: 2 classes, all 20 decoded" in said
    assert "9 × 7" in said


def test_check_names_broken_images_and_exits_with_2(capsys, tree):
    (tree / "cup/3.png").write_bytes(b"")
    whole = (tree / "hat/4.png").read_bytes()
    (tree / "hat/4.png").write_bytes(whole[: len(whole) // 2])
    said = refused(capsys, "check", "folder", f"dataset.path={tree}")
    assert f"clipkal-data: {tree / 'cup/3.png'}: cannot be read as an image (the file is empty)" in said
    assert str(tree / "hat/4.png") in said
    assert len(said.splitlines()) == 2


def test_check_cuts_a_long_list_of_broken_images(capsys, tree):
    for path in tree.rglob("*.png"):
        path.write_bytes(b"")
    said = refused(capsys, "check", "folder", f"dataset.path={tree}", "dataset.val_fraction=0")
    assert "train: 7 more of its 12 images cannot be read" in said


def test_check_of_an_absent_dataset_says_where_to_get_it(capsys, tmp_path):
    said = refused(capsys, "check", "oxford_pets", "--root", tmp_path)
    assert f"{tmp_path / 'oxford_pets'}: no such folder" in said
    assert "where to get it: www.robots.ox.ac.uk" in said
    assert "terms: CC BY-SA 4.0." in said


def test_check_of_a_coop_dataset_without_its_split_file(capsys, coop):
    (coop / "food-101/split_zhou_Food101.json").unlink()
    said = refused(capsys, "check", "food101", "--root", coop)
    assert "holds no split_zhou_*.json" in said
    assert "where to get it: data.vision.ee.ethz.ch" in said


def test_check_names_the_first_missing_image(capsys, coop):
    (coop / "food-101/images/pie/train2.jpg").unlink()
    said = refused(capsys, "check", "food101", "--root", coop)
    assert "1 of the 4 images of food101/train are missing: pie/train2.jpg" in said


def test_check_compares_with_the_known_counts(capsys, coop, monkeypatch):
    said = refused(capsys, "check", "food101", "--root", coop)
    assert "clipkal-data: 2 classes where 101 are known" in said
    assert "clipkal-data: train: 4 images where 50,500 are known" in said
    monkeypatch.setitem(FACTS, "food101", Facts(2, {"train+val": 8, "test": 4}))
    main(["check", "food101", "--root", str(coop)])
    assert "food101 is whole" in capsys.readouterr().out


def test_check_counts_a_domain_over_all_its_splits(capsys, tmp_path, monkeypatch):
    domains = {"photo": 10, "art_painting": 3, "cartoon": 3, "sketch": 2}
    for domain, count in domains.items():
        for i in range(count):
            write_image(tmp_path / "PACS" / domain / ("dog" if i else "cat") / f"{i}.png")
    monkeypatch.setitem(FACTS, "pacs", Facts(2, domains={**domains, "sketch": 3}))
    said = refused(capsys, "check", "pacs", "--root", tmp_path)
    assert said.splitlines()[0] == "clipkal-data: sketch: 2 images where 3 are known"
    main(["check", "pacs", "--root", str(tmp_path), "dataset.ood=[photo]", "dataset.id_domain=cartoon"])
    assert "pacs is whole" in capsys.readouterr().out


def test_check_refuses_a_split_file_with_another_checksum(capsys, coop):
    said = refused(capsys, "check", "food101", "--root", coop, f"dataset.split_sha256={'0' * 64}")
    assert "not dataset.split_sha256=000" in said


def test_check_of_a_split_file_of_your_own_compares_with_nothing(capsys, coop):
    home = coop / "food-101"
    (home / "split_zhou_Food101.json").rename(home / "split_zhou_Soups.json")
    main(["check", "caltech101", f"dataset.path={home}", "dataset.split_sha256=null"])
    assert "caltech101 is whole: 2 classes, all 12 decoded" in capsys.readouterr().out


def test_shots_are_byte_for_byte_those_of_a_run(capsys, tmp_path):
    main(["shots", "digits", "--shots", "2", "--seed", "3", "--out", str(tmp_path / "shots.json")])
    assert "20 images to learn from, 20 to validate on" in capsys.readouterr().out
    main(["shots", "digits", "fewshot.shots=2", "seed=3"])
    printed = capsys.readouterr().out
    with RunDirectory(tmp_path / "run") as run:
        run.write_shots(draw(compose(["dataset=digits", "fewshot.shots=2", "seed=3"])).record)
    written = (tmp_path / "run/shots.json").read_text(encoding="utf-8")
    assert printed == written == (tmp_path / "shots.json").read_text(encoding="utf-8")


def test_anothers_shot_list_is_taken_over(capsys, tmp_path):
    out = tmp_path / "shots.json"
    main(["shots", "digits", "--shots", "1", "--seed", "5", "--out", str(out)])
    capsys.readouterr()
    main(["shots", "digits", f"fewshot.shot_list={out}"])
    assert json.loads(capsys.readouterr().out)["train"] == json.loads(out.read_text())["train"]


@pytest.fixture
def own_options(tmp_path):
    """A folder for --config-dir that describes a dataset called [mine], and its images below data [1]."""
    folder = tmp_path / "my conf"
    (folder / "dataset").mkdir(parents=True)
    (folder / "dataset/mine.yaml").write_text("# Birds [red].\nname: '[mine]'\nsource: folder\npath: birds\n")
    for name in ("crow", "duck"):
        for i in range(10):
            write_image(tmp_path / "data [1]/birds" / name / f"{i}.png", i)
    return ["--config-dir", str(folder), "--root", str(tmp_path / "data [1]")]


def test_options_of_your_own_are_known_and_no_bracket_is_taken_for_markup(capsys, own_options):
    main(["list", *own_options])
    said = capsys.readouterr().out
    assert re.search(r"mine .*there +Birds \[red\]", said)
    assert "data [1]" in said
    main(["check", "mine", *own_options])
    assert "[mine] is whole: 2 classes, all 20 decoded" in capsys.readouterr().out
    main(["shots", "digits", "--shots", "1", "fewshot.transfer=[mine]", *own_options])
    assert json.loads(capsys.readouterr().out)["transfer"] == {"mine": {"images": 8, "classes": 2}}


def test_a_run_finds_transfer_sets_among_your_own_options(own_options, monkeypatch):
    folder, root = own_options[1], own_options[3]
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        words = ["dataset=digits", "fewshot.transfer=[mine]", f'hydra.searchpath=["file://{folder}"]']
        HydraConfig.instance().set_config(hydra_compose("config", words, return_hydra_config=True))
    cfg = compose(words[:2], folder)
    cfg.data.root = root
    assert list(draw(cfg).transfer) == ["mine"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a list", "does not describe a dataset"),
        ("a: [", "does not describe a dataset"),
        ("defaults: [folders]\nname: x", "defaults: dataset 'folders' is unknown; did you mean 'folder'?"),
        ("defaults: [mine]", "does not describe a dataset"),
        ("\ufffe", None),
    ],
)
def test_a_broken_option_of_your_own_is_one_line(capsys, own_options, content, said):
    path = Path(own_options[1]) / "dataset/mine.yaml"
    path.write_bytes(content.encode("utf-8" if said else "utf-16-le"))
    line = refused(capsys, "list", *own_options)
    assert line.startswith(f"clipkal-data: {path}: {said or 'no dataset can be read there'}")
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["plain.json", "a=b, [1].json", "it's (1) {x}.json", 'say "it".json', "a b\\.json"]
)
def test_the_command_that_is_printed_finds_the_shots_again(capsys, tmp_path, name):
    main(
        [
            "shots",
            "digits",
            "--shots",
            "1",
            "--seed",
            "3",
            "dataset.ood=[neon]",
            "--out",
            str(tmp_path / name),
        ]
    )
    told, command = capsys.readouterr().out.splitlines()
    assert told.startswith(str(tmp_path / name))
    program, *words = shlex.split(command.removeprefix("to learn from them: "))
    cfg = compose(words)
    assert (program, cfg.fewshot.shot_list, cfg.seed) == ("clipkal", str(tmp_path / name), 3)
    assert draw(cfg).record["train"] == json.loads((tmp_path / name).read_text(encoding="utf-8"))["train"]


def test_preview_draws_shots_test_and_shifts(capsys, tmp_path):
    out = tmp_path / "sheet.png"
    main(["preview", "rendered", "--out", str(out), "--classes", "3", "--shots", "2", "dataset.ood=[neon]"])
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.format == "PNG"
        assert len(sheet.convert("RGB").getcolors(sheet.width * sheet.height)) > 500


def test_preview_of_a_folder_shows_a_broken_image_and_names_it(capsys, tree, tmp_path):
    for path in (tree / "hat").iterdir():
        path.write_bytes(b"no image")
    main(["preview", "folder", f"dataset.path={tree}", "--shots", "1", "--out", str(tmp_path / "a.jpg")])
    assert f"clipkal-data: {tree / 'hat'}" in capsys.readouterr().err
    assert (tmp_path / "a.jpg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "digit"], "did you mean 'digits'?"),
        (["check", "digits", "dataset.odd=[neon]"], "did you mean 'dataset.ood'?"),
        (["check", "digits", "dataset.ood=[neno]"], "did you mean 'neon'?"),
        (["check", "digits", "neon"], "neither an option nor a setting"),
        (["check", "digits", "--worker-count=3"], "neither an option nor a setting"),
        (["check", "digits", "--workers", "0"], "not a number from 1 to 99999"),
        (["shots", "digits", "--shots", "0"], "should be a whole number from 1 on or 'all'"),
        (["shots", "digits", "--shots", "many"], "should be a whole number from 1 on or 'all'"),
        (["shots", "digits", "--shots", "--5"], "expected one argument"),
        (["shots", "digits", "--shots=--5"], "should be a whole number from 1 on or 'all'"),
        (["shots", "digits", "--shots=-3"], "should be a whole number from 1 on or 'all'"),
        (["shots", "digits", "--shots", "2.0"], "should be a whole number from 1 on or 'all'"),
        (["shots", "digits", "--seed", "-1"], "seed should be greater than or equal to 0, not -1"),
        (["shots", "digits", "--seed", "one"], "invalid int value: 'one'"),
        (["check", "digits", "--config-dir", "/nowhere"], "--config-dir /nowhere: no such folder"),
        (["checks", "digits"], "invalid choice: 'checks'"),
        (["check"], "the following arguments are required: NAME"),
        (["shots", "digits", "--shots", "500"], "fewer than fewshot.shots=500"),
        (["preview", "digits", "--out", "sheet.pdf"], "must end in .png, .jpg or .webp"),
        (["check", "archive"], "dataset=archive needs a place: type dataset.path="),
    ],
)
def test_bad_input_is_met_with_one_clear_line(capsys, words, said):
    line = refused(capsys, *words)
    assert said in line
    assert len(line.splitlines()) == 1


def test_help_teaches_with_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "clipkal-data check folder dataset.path=/my/images" in capsys.readouterr().out


def test_check_and_preview_of_a_real_archive(capsys, shared_data, tmp_path):
    words = ["archive", "--root", str(shared_data), "dataset.path=officecaltech10_96.npz"]
    main(["check", *words])
    assert "archive is whole: 10 classes, all 1,587 decoded" in capsys.readouterr().out
    main(["preview", *words, "--out", str(tmp_path / "sheet.png")])
    assert (tmp_path / "sheet.png").stat().st_size > 100_000


def test_features_are_checked_but_cannot_be_previewed(capsys, shared_data):
    words = ["features", "--root", str(shared_data / "features"), "dataset.path=officecaltech10.npz"]
    main(["check", *words])
    assert "features is whole: 10 classes, no image to decode" in capsys.readouterr().out
    assert "holds features, not images" in refused(capsys, "preview", *words)


@pytest.mark.parametrize("command", [main, report_main])
def test_the_version_is_printed(capsys, command):
    with pytest.raises(SystemExit) as caught:
        command(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"clipkal {__version__}\n"
