"""Runs that learn from one domain of a dataset each: told apart, and averaged over the domains."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from synthetic_runs import write_run

from clipkal.report.aggregate import ID, MEAN_OOD, Row, aggregate
from clipkal.report.averages import averages, over_domains
from clipkal.report.collect import collect
from clipkal.report.section import sections

DOMAINS = ("art", "cartoon", "photo")


def pacs(root: Path, domain: str, **choices: Any) -> None:
    others = [name for name in DOMAINS if name != domain]
    choices = {"id_domain": domain, "folder": f"{domain}-{choices.get('seed')}"} | choices
    write_run(root, dataset="pacs", sets=["test", *others], n=60, **choices)


def rows_of(root: Path) -> list[Row]:
    return [row for row in aggregate(collect([root]).runs) if row.reported]


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    for domain in DOMAINS:
        for seed in (1, 2):
            for method in ("adamw", "kalman"):
                pacs(tmp_path, domain, method=method, seed=seed)
    return rows_of(tmp_path)


def accuracies(row: Row, name: str) -> tuple[float, ...]:
    return row.values[name, "accuracy"].values


def test_each_domain_has_rows_of_its_own_with_a_mean_over_its_ood_sets(rows: list[Row]) -> None:
    assert {row.dataset for row in rows} == {f"pacs from {domain}" for domain in DOMAINS}
    assert {row.label for row in rows} == {"adamw", "kalman"}
    assert all((MEAN_OOD, "accuracy") in row.values for row in rows)


def test_the_average_is_over_the_domains_seed_by_seed_and_each_target_over_those_tested_on_it(
    rows: list[Row],
) -> None:
    kalman = next(row for row in over_domains(rows) if row.label == "kalman")
    assert kalman.dataset == "pacs, average of 3 source domains" and kalman.seeds == [1, 2]
    mine = {row.dataset.removeprefix("pacs from "): row for row in rows if row.label == "kalman"}
    for name in (ID, MEAN_OOD):
        wanted = [fmean(accuracies(one, name)[seed] for one in mine.values()) for seed in (0, 1)]
        assert accuracies(kalman, name) == pytest.approx(wanted)
    for name in DOMAINS:
        others = [mine[domain] for domain in DOMAINS if domain != name]
        wanted = [fmean(accuracies(one, name)[seed] for one in others) for seed in (0, 1)]
        assert accuracies(kalman, name) == pytest.approx(wanted)
    (part,) = (one for one in sections(averages(rows)) if "source domains" in one.title)
    assert part.tables[0].header[4:] == [ID, "cartoon", "photo", "art", MEAN_OOD]
    assert "mean over the source domains" in part.note


def test_a_method_that_lacks_a_domain_has_no_average(tmp_path: Path) -> None:
    for domain in DOMAINS:
        pacs(tmp_path, domain, method="adamw", seed=1)
    pacs(tmp_path, "art", method="kalman", seed=1)
    assert [row.label for row in over_domains(rows_of(tmp_path))] == ["adamw"]


def test_among_other_datasets_the_domains_count_as_one(rows: list[Row], tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, dataset="digits", method="kalman", seed=seed)
    mine = [row for row in rows_of(tmp_path) if row.label == "kalman"]
    over, domains = averages(mine)
    assert over.dataset == "average of 2 datasets" and over.parts_are == "datasets"
    (digits,) = (row for row in mine if row.dataset == "digits")
    wanted = [fmean(pair) for pair in zip(accuracies(domains, ID), accuracies(digits, ID), strict=True)]
    assert accuracies(over, ID) == pytest.approx(wanted)


def test_a_domain_that_was_typed_is_named_and_one_that_was_not_is_left_out(tmp_path: Path) -> None:
    pacs(tmp_path / "one", "photo", method="kalman", seed=1)
    assert [row.dataset for row in rows_of(tmp_path / "one")] == ["pacs"]
    older = {
        "id_domain": None,
        "overrides": ["dataset.id_domain=photo"],
    }  # results of an earlier 0.2 had only this
    pacs(tmp_path / "two", "photo", method="kalman", seed=1, **older)
    assert [(row.dataset, row.label) for row in rows_of(tmp_path / "two")] == [("pacs from photo", "kalman")]
