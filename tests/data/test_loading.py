"""From config to dataset: what every source shares, and what a misspelling is met with."""

import ast
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import clipkal.data
from clipkal.data import load_dataset
from clipkal.data.names import fill_templates, renamed
from clipkal.data.spec import read_spec
from clipkal.errors import ConfigError, DataError


def test_unknown_sources_name_the_nearest(config, tmp_path):
    with pytest.raises(DataError, match="'folders' is unknown; did you mean 'folder'"):
        load_dataset(config("folders"), tmp_path)


def test_omegaconf_nodes_are_read_like_namespaces(tmp_path):
    node = OmegaConf.create(
        {"name": "a", "source": "folder", "ood": ["x", "gaussian_noise@3"], "class_names": {"k": "v"}}
    )
    OmegaConf.set_struct(node, True)
    spec = read_spec(node, tmp_path)
    assert (spec.domains, spec.corruptions, spec.class_names) == (["x"], [("gaussian_noise", 3)], {"k": "v"})
    assert (spec.path, spec.val_fraction, spec.test_fraction) == (tmp_path / "a", 0.1, 0.4)


def test_ood_lists_mix_domains_folders_and_corruptions_and_keep_their_order(config, tmp_path):
    spec = read_spec(config("folder", ood=["jpeg@1", "far:/else/where", "near", "some/sketches"]), tmp_path)
    assert spec.order == ["jpeg@1", "far", "near", "sketches"]
    assert spec.elsewhere == {"far": tmp_path / "/else/where", "sketches": tmp_path / "some/sketches"}
    assert read_spec(config("folder"), tmp_path).domains is None
    assert read_spec(config("folder", ood=[]), tmp_path).domains == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ood": ["gausian_noise@3"]}, "did you mean 'gaussian_noise'"),
        ({"ood": ["jpeg@6"]}, "severity after @ must be"),
        ({"ood": ["a", "a"]}, "lists a name twice"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"test_fraction": "half"}, "test_fraction=half"),
        ({"name": None}, "must be set"),
        ({"class_names": "absent.txt"}, "no class names can be read"),
    ],
)
def test_bad_settings_are_refused(config, tmp_path, fields, said):
    with pytest.raises((ConfigError, DataError), match=said):
        read_spec(config("folder", **fields), tmp_path)


def test_class_names_come_from_a_mapping_a_list_or_a_file(config, tmp_path):
    assert renamed(["a", "b"], None) == ["a", "b"]
    assert renamed(["a", "b"], {"b": "bee"}) == ["a", "bee"]
    assert renamed(["a", "b"], ["x", "y"]) == ["x", "y"]
    (tmp_path / "names.txt").write_text("n01 great white shark\nn02 cat\n")
    (tmp_path / "names.json").write_text('{"n01": "shark"}')
    assert read_spec(config("folder", class_names="names.txt"), tmp_path).class_names == {
        "n01": "great white shark",
        "n02": "cat",
    }
    assert read_spec(config("folder", class_names="names.json"), tmp_path).class_names == {"n01": "shark"}
    assert renamed(["a", "b"], {"a": "x", "b": "y", "c": "z"}) == ["x", "y"]
    with pytest.raises(DataError, match="lists 1 names but the dataset has 2"):
        renamed(["a", "b"], ["x"])
    with pytest.raises(DataError, match="'mugs' is unknown; did you mean 'mug'"):
        renamed(["mug"], {"mugs": "cup"})


def test_prompts_are_every_template_with_every_phrase():
    prompts = fill_templates(["a {}.", "the {}"], [["car_side"], ["zero", "digit zero"]])
    assert prompts == [
        ["a car side.", "the car side"],
        ["a zero.", "a digit zero.", "the zero", "the digit zero"],
    ]
    for templates in ([], ["a photo"], ["{} and {}"]):
        with pytest.raises(ConfigError, match="templates"):
            fill_templates(templates, [["x"]])


def test_corrupted_sets_are_copies_of_the_test_set(config, make_tree, tmp_path):
    make_tree(tmp_path / "toy", {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1, "shift/b": 1})
    dataset = load_dataset(config("folder", ood=["contrast@2", "shift", "jpeg@1"]), tmp_path)
    assert list(dataset.ood) == ["contrast@2", "shift", "jpeg@1"]
    assert dataset.ood["jpeg@1"].ids == dataset.test.ids
    digests = {s.digest for s in dataset.sets().values()}
    assert len(digests) == len(dataset.sets())


@pytest.mark.parametrize(
    ("names", "warned"),
    [("1 2 10", True), ("n01440764 n01443537", True), ("1 two", False), ("zero one", False)],
)
def test_folders_called_by_numbers_are_warned_of(config, make_tree, tmp_path, caplog, names, warned):
    make_tree(tmp_path / "toy", {f"{part}/{name}": 1 for part in ("train", "test") for name in names.split()})
    load_dataset(config("folder", val_fraction=0.0), tmp_path)
    assert (
        "means nothing to a text tower; name them in this order: 'dataset.class_names=[" in caplog.text
    ) == warned
    caplog.clear()
    shown = {name: f"kind {name}" for name in names.split()}
    load_dataset(config("folder", val_fraction=0.0, class_names=shown), tmp_path)
    assert not caplog.records


@pytest.mark.parametrize(
    ("source", "setting", "said"),
    [
        (
            "digits",
            {"path": "scans"},
            "dataset.path='scans'.*source digits.* does not read it; it is for folder, table",
        ),
        ("folder", {"columns": {"label": "kind"}}, "dataset.columns=.* it is for table, huggingface"),
        ("folder", {"repository": "org/name"}, "dataset.repository=.* it is for huggingface"),
        ("coop", {"id_domain": "photo"}, "dataset.id_domain='photo'"),
    ],
)
def test_a_setting_that_a_source_would_pass_over_is_refused(config, tmp_path, source, setting, said):
    with pytest.raises(ConfigError, match=said):
        load_dataset(config(source, **setting), tmp_path)


def test_the_domain_that_is_learnt_from_is_no_ood_set(config, make_tree, tmp_path):
    """A sweep over dataset.id_domain may list all domains in dataset.ood."""
    images = {f"{domain}/{name}": 4 for domain in ("photo", "sketch", "art") for name in ("a", "b")}
    make_tree(tmp_path / "toy", images)
    for domain, others in (("photo", ["sketch"]), ("sketch", ["photo"])):
        dataset = load_dataset(config("folder", id_domain=domain, ood=["photo", "sketch"]), tmp_path)
        assert list(dataset.ood) == others


def test_importing_the_room_is_cheap():
    """What is heavy, the world among it, is imported where it is used."""
    heavy = {"sklearn", "scipy", "torchvision", "matplotlib", "open_clip", "pandas"}
    for file in Path(clipkal.data.__file__).parent.glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & heavy, file
            assert not any(n.startswith("clipkal.data.world") for n in names), file


@pytest.mark.parametrize("fields", [{"path": "birds"}, {"path": "there", "ood": ["far/birds"]}])
def test_a_path_that_is_there_from_the_current_folder_only_is_told(config, tmp_path, monkeypatch, fields):
    """Relative paths start at data.root; who types one from where he stands learns which to type."""
    (tmp_path / "birds").mkdir()
    (tmp_path / "far/birds").mkdir(parents=True)
    (tmp_path / "data/there/crow").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    typed = fields.get("ood", [fields["path"]])[0]
    with pytest.raises(ConfigError, match=rf"start at data.root=data; .* give {tmp_path}/{typed}$"):
        load_dataset(config("folder", **fields), "data")
