"""What the catalogue says of every dataset, and what it finds missing."""

import json
from dataclasses import replace

import pytest
from omegaconf import OmegaConf
from PIL import Image

from clipkal.config import compose
from clipkal.data import load_dataset
from clipkal.data.catalogue import EMBEDDED, OWN, entries, entry, names
from clipkal.data.coop import LAYOUTS
from clipkal.data.spec import read_spec
from clipkal.errors import ConfigError
from clipkal.inventory.check import missing
from clipkal.inventory.facts import FACTS

COOP = {
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "flowers102",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
}


def test_every_dataset_says_what_it_is_where_to_get_it_and_what_it_holds():
    assert set(names()) >= COOP | {"pacs", "office_home", "office_caltech10", "vlcs", "domainnet"}
    for one in entries():
        assert one.about
        assert one.brief
        if one.name in OWN:
            continue
        assert one.name in FACTS
        assert one.name in EMBEDDED or (one.get and one.terms), one.name
    assert set(names()) >= set(FACTS)


@pytest.mark.parametrize("name", ["imagenet_shifts", "features", "pacs", "caltech101"])
def test_the_quick_reading_of_a_file_agrees_with_hydra(name):
    composed, quick = compose([f"dataset={name}"]).dataset, entry(name).config
    for key in quick:
        if key == "shifts":  # Hydra fills in what the schema knows of each
            paths = {shift: at.path for shift, at in quick.shifts.items()}
            assert {shift: at.path for shift, at in composed.shifts.items()} == paths
        else:
            assert composed[key] == quick[key]


def test_domainnet_is_read_with_its_class_called_train(tmp_path):
    pytest.importorskip("clipkal.data.splits", reason="such a class comes with the trees")
    domains = FACTS["domainnet"].domains
    for place in (tmp_path / "domain_net" / domain / name for domain in domains for name in ("bus", "train")):
        place.mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(place / f"{i}.png")
    dataset = load_dataset(compose(["dataset=domainnet"]).dataset, tmp_path)
    assert (dataset.class_names, set(dataset.ood)) == (["bus", "train"], set(domains) - {"real"})
    assert missing(entry("domainnet"), tmp_path) == []
    assert sum(domains.values()) == 586_575, "the cleaned version"


def test_an_unknown_dataset_is_met_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'caltech101'"):
        entry("caltech-101")


def test_checksums_are_those_the_loader_knows():
    known = {layout.sha256 for layout in LAYOUTS.values()} - {None}
    assert {one.config.get("split_sha256") for one in entries()} - {None} == known


def test_prompts_are_coops_own():
    said = {
        name: list(compose([f"dataset={name}"]).dataset.templates) for name in ("dtd", "ucf101", "food101")
    }
    assert said == {
        "dtd": ["{} texture."],
        "ucf101": ["a photo of a person doing {}."],
        "food101": ["a photo of {}, a type of food."],
    }


def test_the_shifts_of_imagenet_are_folders_elsewhere(tmp_path):
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet/classnames.txt").write_text("n01 a fish\nn02 missile\n")
    spec = read_spec(compose(["dataset=imagenet_shifts"]).dataset, tmp_path)
    assert spec.elsewhere["imagenet_a"] == tmp_path / "imagenet-adversarial" / "imagenet-a"
    assert (spec.class_names, len(spec.elsewhere)) == ({"n01": "a fish", "n02": "missile"}, 4)


def test_what_is_missing_is_named_without_looking_at_images(tmp_path):
    assert missing(entry("digits"), tmp_path) == []
    assert missing(entry("dtd"), tmp_path) == [str(tmp_path / "dtd")]
    (tmp_path / "dtd").mkdir()
    assert missing(entry("dtd"), tmp_path) == [f"{tmp_path / 'dtd'}: holds no split_zhou_*.json"]
    (tmp_path / "dtd/split_zhou_DescribableTextures.json").write_text(json.dumps({}))
    assert missing(entry("dtd"), tmp_path) == []
    (tmp_path / "PACS/photo").mkdir(parents=True)
    lacking = [str(tmp_path / "PACS" / domain) for domain in ("art_painting", "cartoon", "sketch")]
    assert missing(entry("pacs"), tmp_path) == lacking
    (tmp_path / "imagenet/images").mkdir(parents=True)
    assert missing(entry("imagenet"), tmp_path) == [str(tmp_path / "imagenet/classnames.txt")]
    (tmp_path / "imagenet/classnames.txt").write_text("n01 a fish\n")
    assert missing(entry("imagenet"), tmp_path) == []
    (tmp_path / "imagenet-sketch/images").mkdir(parents=True)
    elsewhere = (
        "imagenetv2/imagenetv2-matched-frequency-format-val",
        "imagenet-adversarial/imagenet-a",
        "imagenet-rendition/imagenet-r",
    )
    assert missing(entry("imagenet_shifts"), tmp_path) == [str(tmp_path / place) for place in elsewhere]
    (tmp_path / "fgvc_aircraft").mkdir()
    (tmp_path / "fgvc_aircraft/variants.txt").write_text("707\n")
    assert missing(entry("fgvc_aircraft"), tmp_path) == []


def test_the_places_of_ood_sets_from_elsewhere_are_looked_at(tmp_path):
    (tmp_path / "imagenet/images").mkdir(parents=True)
    (tmp_path / "imagenet/classnames.txt").write_text("n01 a fish\n")
    imagenet = entry("imagenet")
    named = OmegaConf.merge(imagenet.config, {"ood": ["far:some/where", "objectnet", "jpeg@3"]})
    places = [tmp_path / "some/where", tmp_path / "objectnet-1.0/images"]
    assert missing(replace(imagenet, config=named), tmp_path) == [str(place) for place in places]
    places[1].mkdir(parents=True)
    assert missing(replace(imagenet, config=named), tmp_path) == [str(places[0])]
