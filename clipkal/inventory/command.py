"""`clipkal-data`: which datasets there are, whether yours are whole, what a run would see of them."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from omegaconf import DictConfig
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from clipkal import files
from clipkal.commandline import (
    Parser,
    command_parser,
    complain,
    console,
    picture_format,
    positive,
    say,
    status_of,
)
from clipkal.config import check, compose, quoted
from clipkal.errors import ClipkalError
from clipkal.inventory.facts import FACTS, Facts

if TYPE_CHECKING:
    from clipkal.data.catalogue import Entry
    from clipkal.inventory.check import SetReport

NAME = "clipkal-data"
HELP = """Looks at datasets before they are used: nothing is trained and nothing is downloaded.

NAME is what you write after dataset= in a run, one of `clipkal-data list`. Any setting of a run can follow it,
such as dataset.path=/my/images or dataset.ood=[sketch]."""

EXAMPLES = """examples:
  clipkal-data list --root /data                        # which there are, and which of them are below /data
  clipkal-data check caltech101 --root /data            # counts, checksum, and every image decoded
  clipkal-data check folder dataset.path=/my/images     # your own images
  clipkal-data shots digits --shots 4 --seed 2 --out shots.json
  clipkal dataset=digits fewshot.shots=4 seed=2 fewshot.shot_list=shots.json   # a run on exactly these shots
  clipkal-data preview rendered --out rendered.png      # a picture of shots, test and OOD images

exit status: 0 when all is well, 2 when something is to be mended (one line each on standard error)"""
STATES = ("embedded", "there", "incomplete", "yours", "absent")  # in the order of the list
NAME_HELP = "a dataset of `clipkal-data list`"
SETTING_HELP = "any setting of a run, such as dataset.path=/my/images"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; exits with 2 after one line on bad input or on a dataset that is not whole."""
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    settings = list(getattr(options, "settings", [])) + more
    for word in settings:
        if word.startswith("-") or "=" not in word:
            parser.error(f"{word!r} is neither an option nor a setting such as dataset.path=/my/images")
    options.settings = settings
    if status := status_of(NAME, options.work, options):
        sys.exit(status)


def _parser() -> Parser:
    parser = command_parser(NAME, HELP, EXAMPLES)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    one = commands.add_parser("list", help="which datasets there are, and which are below the data root")
    one.set_defaults(work=list_datasets)
    _add_root(one)

    one = _named(commands, "check", "whether a dataset is whole: layout, checksum, counts, every image")
    one.set_defaults(work=check_dataset)
    one.add_argument("--no-decode", action="store_true", help="do not decode the images: takes seconds")
    one.add_argument(
        "--workers", metavar="N", type=positive, help="decoding threads (default: one for each core)"
    )

    one = _named(commands, "shots", "the images that a run would learn from, as the run's shots.json")
    one.set_defaults(work=print_shots)
    _add_draw(one)
    one.add_argument("--out", metavar="FILE", type=Path, help="write there instead of standard output")

    one = _named(commands, "preview", "a picture of shots, test and OOD images")
    one.set_defaults(work=preview)
    _add_draw(one)
    one.add_argument(
        "--out", metavar="FILE", type=Path, help="a .png, .jpg or .webp (default: NAME-preview.png)"
    )
    one.add_argument(
        "--classes", metavar="N", type=positive, default=12, help="how many classes to show (default: 12)"
    )
    return parser


def _named(commands: argparse._SubParsersAction, name: str, text: str) -> Parser:
    one: Parser = commands.add_parser(name, help=text, description=f"Shows {text}.")
    if name == "check":
        one.description = f"Finds out {text}."
    one.add_argument("name", metavar="NAME", help=NAME_HELP)
    one.add_argument("settings", metavar="KEY=VALUE", nargs="*", help=SETTING_HELP)
    _add_root(one)
    return one


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="DIR", type=Path, help="where datasets lie (default: data)")
    parser.add_argument(
        *("--config-dir", "-cd"),
        metavar="DIR",
        type=Path,
        help="a folder with more options, DIR/dataset/NAME.yaml among them, as of clipkal --config-dir",
    )


def _add_draw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shots", metavar="N", help="images a class, or all (default: 16)")
    parser.add_argument("--seed", metavar="N", type=int, help="the seed of the draw (default: 1)")


def _composed(options: argparse.Namespace) -> DictConfig:
    """The checked configuration of a run on the dataset, with the options of the command line put in."""
    from clipkal.data import catalogue

    catalogue.entry(options.name, options.config_dir)  # an unknown name is met with the nearest
    draw = {"fewshot.shots": getattr(options, "shots", None), "seed": getattr(options, "seed", None)}
    given = [f"{key}={value}" for key, value in draw.items() if value is not None]
    cfg = compose([f"dataset={options.name}", *options.settings, *given], options.config_dir)
    if options.root is not None:
        cfg.data.root = str(options.root)
    check(cfg)
    return cfg


# -- list --


def list_datasets(options: argparse.Namespace) -> None:
    """Prints a table of every dataset: what it is, its counts, and whether it is there."""
    from clipkal.data import catalogue

    root = options.root or Path(compose(options.settings, options.config_dir).data.root)
    screen = console()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("dataset", "classes", "ID images: train / val / test", "OOD images", "state"):
        table.add_column(title, justify="left" if title in ("dataset", "state") else "right", no_wrap=True)
    table.add_column("what it is")
    incomplete = []
    found = [(one, *_state(one, root)) for one in catalogue.entries(options.config_dir)]
    for one, state, lacking in sorted(found, key=lambda row: (STATES.index(row[1]), row[0].name)):
        incomplete += [f"{one.name}: {lacking[0]}"] if state == "incomplete" else []
        style = {"embedded": "green", "there": "green", "incomplete": "yellow"}.get(state, "dim")
        cells = _counts(one, FACTS.get(one.name))
        table.add_row(Text(one.name), *cells, Text(state, style), Text(one.brief))
    screen.print(table)
    say(screen, f"data root: {Path(root).absolute()}")
    for line in incomplete:
        say(screen, f"not there: {line}", "yellow")
    say(screen, "where to get one, and whether it is whole: clipkal-data check NAME")


def _state(one: "Entry", root: Path) -> tuple[str, list[str]]:
    """embedded, there, incomplete, absent, or yours (a form for data that you bring); and what is missing."""
    from clipkal.data import catalogue
    from clipkal.inventory.check import missing

    if one.config.source in catalogue.EMBEDDED:
        return "embedded", []
    if one.name in catalogue.OWN:
        return "yours", []
    lacking = missing(one, root)
    if not lacking:
        return "there", []
    return ("incomplete" if one.path(root).exists() else "absent"), lacking


def _counts(one: "Entry", facts: Facts | None) -> list[str]:
    """Cells for classes, ID and OOD images; a single ID number is all of them, where the splits are ours."""
    if facts is None:
        return [""] * 3
    known = facts.counts
    by_split = (known.get("train", known.get("train+val")), known.get("val"), known.get("test"))
    own = " / ".join("–" if count is None else f"{count:,}" for count in by_split)
    if not known:
        own = f"{facts.domains[one.config.id_domain]:,}"
    listed = one.config.get("ood")
    shifts = set(facts.domains) - {one.config.get("id_domain")} if listed is None else set(listed)
    ood = sum(count for name, count in facts.domains.items() if name in shifts)
    return [f"{facts.classes:,}", own, f"{ood:,}" if ood else ""]


# -- check --


def check_dataset(options: argparse.Namespace) -> None:
    """Prints what was found; exits with 2 after one line for each problem."""
    from clipkal.backbones.progress import progress_bar
    from clipkal.data import catalogue, load_dataset
    from clipkal.inventory.check import inspect, to_decode

    about, cfg = catalogue.entry(options.name, options.config_dir), _composed(options)
    try:
        dataset = load_dataset(cfg.dataset, cfg.data.root)
    except ClipkalError as error:
        _problems([str(error)], about)
    own_split = cfg.dataset.split_sha256 != about.config.get("split_sha256")  # so other images are right
    facts = None if own_split else FACTS.get(options.name)
    total = 0 if options.no_decode else sum(map(len, to_decode(dataset).values()))
    with progress_bar(escape(f"decoding {dataset.name}"), total, cfg.data.progress) as advance:
        found = inspect(
            dataset,
            facts,
            cfg.dataset.id_domain,
            decode=not options.no_decode,
            workers=options.workers,
            advance=advance,
        )
    screen = console()
    screen.print(_sets_table(found.sets))
    for note in found.notes:
        say(screen, f"· {note}")
    if found.problems:
        screen.file.flush()
        _problems(found.problems, about)
    known = " and as many images as are known" if facts else ""
    done = f"all {total:,} decoded" if total else "not decoded" if options.no_decode else "no image to decode"
    say(screen, f"{found.name} is whole: {found.classes} classes{known}, {done}", "green")


def _sets_table(sets: "Sequence[SetReport]") -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("set", no_wrap=True)
    seen = any(one.decoded is not None for one in sets)
    for title in ("images", "classes", *(("decoded", "smallest", "largest") if seen else ())):
        table.add_column(title, justify="right", no_wrap=True)
    for one in sets:
        decoded = "on the fly" if "@" in one.role else "–" if one.decoded is None else f"{one.decoded:,}"
        sizes = ["–" if size is None else f"{size[0]} × {size[1]}" for size in (one.smallest, one.largest)]
        cells: list[str | Text] = [Text(one.role), f"{one.images:,}", str(one.classes), decoded, *sizes]
        table.add_row(*cells[: len(table.columns)])
    return table


def _problems(problems: Sequence[str], about: "Entry") -> NoReturn:
    """One line each, then where to get the dataset; exits with 2."""
    for problem in problems:
        complain(NAME, problem)
    for title, text in (("where to get it", about.get), ("terms", about.terms)):
        if text:
            print(f"  {title}: {text}", file=sys.stderr)
    sys.exit(2)


# -- shots and preview --


def print_shots(options: argparse.Namespace) -> None:
    """Prints the shot list, or writes it to a file."""
    from clipkal.data.drawing import draw

    cfg = _composed(options)
    task = draw(cfg, config_dir=options.config_dir)
    if options.out is None:
        sys.stdout.write(files.json_text(task.record))
        return
    files.write_json(options.out, task.record)
    val = 0 if task.val is None else len(task.val)
    print(f"{options.out}: {len(task.shots)} images to learn from, {val} to validate on")
    print(f"to learn from them: {_run_on(options, cfg)}")


def _run_on(options: argparse.Namespace, cfg: DictConfig) -> str:
    """The command line of a run on the written shots, quoted for the shell and for Hydra."""
    words = [] if options.config_dir is None else ["--config-dir", str(options.config_dir)]
    words += [f"dataset={options.name}", *options.settings]
    words += [] if options.root is None else [f"data.root={quoted(str(options.root))}"]
    words += [f"fewshot.shots={cfg.fewshot.shots}", f"seed={cfg.seed}"]
    return shlex.join(["clipkal", *words, f"fewshot.shot_list={quoted(str(options.out))}"])


def preview(options: argparse.Namespace) -> None:
    """Writes the contact sheet; an image on it that cannot be read gives one line on standard error."""
    from clipkal.data.drawing import draw
    from clipkal.inventory.sheet import contact_sheet

    out = options.out or Path(f"{options.name}-preview.png")
    form = picture_format("--out", out)
    cfg = _composed(options)
    cfg.fewshot.short_class = "keep"  # there is something to see of classes that are too small for a run
    sheet, broken = contact_sheet(draw(cfg, config_dir=options.config_dir), options.classes)
    with files.atomic_path(out) as temporary:
        sheet.save(temporary, form)
    for line in broken:
        complain(NAME, line)
    print(f"{out}  {sheet.width} x {sheet.height} pixels, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
