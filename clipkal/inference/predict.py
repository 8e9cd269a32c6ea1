"""`clipkal-predict`: what a finished run says about images."""

import argparse
import heapq
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipkal.commandline import command_parser, complain, console, picture_format, positive, say, share
from clipkal.inference.command import EXIT, RUN_HELP, SKIPPED, add_model_options, load, run_command

NAME = "clipkal-predict"
HELP = """Predicts images with a finished run: class, probability, and how uncertain it is and why.

Nothing is learnt and the run is not changed. Files are decoded as in the run, its model is rebuilt from its directory, and
weights that are not those it learnt on are refused."""
EXAMPLES = f"""examples:
  clipkal-predict outputs/rendered/mini/kalman/16shot-seed1 photo.jpg        # a table
  clipkal-predict RUN photos/ 'more/*.png' --out predictions.csv             # a folder and a pattern, to a file
  clipkal-predict RUN photos/ --reject 0.1 --sheet sheet.png                 # abstain on the most uncertain; look at them
  clipkal-predict RUN photos/ --top 5 --out predictions.parquet              # the five most probable classes
  clipkal-predict RUN photos/ | cut -d, -f1-3                                # CSV where the output is no terminal

columns (uncertainties in nats):
  class, confidence     the most probable class and its probability; with --top also class_2, confidence_2, …
  entropy               total uncertainty: of the predicted label
  aleatoric, epistemic  its parts: what more shots would not remove, and what they would (0 without a posterior)
  novelty               how unlike the shots an image is, 0 to 1, where the run's predictive measures it
  set                   with --sets: the classes that cannot be ruled out at the run's level, 90 % for images like its own
  accepted              with --reject: False where the run abstains

{EXIT}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; exits with 3 where images were skipped, with 2 after one line on bad input."""
    parser = command_parser(NAME, HELP, EXAMPLES)
    parser.add_argument("run", metavar="RUN", type=Path, help=RUN_HELP)
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="a file, a folder (searched downwards) or a pattern"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="a .csv, .jsonl or .parquet instead of a table"
    )
    parser.add_argument(
        "--top", metavar="K", type=positive, default=1, help="how many classes to list (default: 1)"
    )
    parser.add_argument(
        "--predictive", metavar="NAME", help="how probabilities are read out (default: as the run reports)"
    )
    parser.add_argument(
        "--reject",
        metavar="SHARE",
        type=share,
        help="abstain as on this share of the run's own test images, such as 0.1",
    )
    parser.add_argument(
        "--sets", action="store_true", help="list the classes that cannot be ruled out (conformal sets)"
    )
    parser.add_argument(
        "--sheet", metavar="FILE", type=Path, help="a picture of the least and the most certain images"
    )
    parser.add_argument(
        "--on-bad-image", choices=("skip", "error"), default="skip",
        help="report and skip what cannot be read (the default), or stop there",
    )  # fmt: skip
    add_model_options(parser)
    run_command(parser, predict, arguments)


def predict(options: argparse.Namespace) -> int:
    """Predicts, and writes what was asked for; the exit status."""
    from clipkal.inference.writers import check_ending, writer

    if options.sheet is not None:
        picture_format("--sheet", options.sheet)
    if options.out is not None:
        check_ending(options.out)
    run = load(options)  # before the images are looked for: a wrong folder is told at once
    from clipkal.inference.images import gather

    images = gather(options.images)
    extremes, read, skipped = _Extremes(), 0, 0
    portions = run.stream(
        images,
        options.predictive,
        on_bad_image=options.on_bad_image,
        reject=options.reject,
        sets=options.sets,
        workers=options.workers,
        progress=not options.no_progress,
    )
    stopped = False
    try:
        with writer(options.out) as rows:
            for portion in portions:
                for name, reason in portion.skipped:
                    complain(NAME, f"skipped {reason if name in reason else f'{name}: {reason}'}")
                skipped += len(portion.skipped)
                if len(portion):
                    rows.write(portion.columns(options.top))
                    extremes.add(portion)
                read += len(portion)
    except KeyboardInterrupt:
        stopped = True
        complain(NAME, f"stopped after {read:,} of {len(images):,} images")
    _close(options, run, images, extremes, read, skipped)
    return 130 if stopped else SKIPPED if skipped else 0


def _close(
    options: argparse.Namespace, run: Any, images: Any, extremes: "_Extremes", read: int, skipped: int
) -> None:
    """The sheet, and the last lines: how many there were, and where they are."""
    out = console(stderr=options.out is None and not sys.stdout.isatty())
    if options.sheet is not None:
        from clipkal.inference.sheet import certainty_sheet, save

        save(
            certainty_sheet(
                f"{read:,} images, {options.predictive or run.predictive}", extremes.cards(images)
            ),
            options.sheet,
        )
        say(out, f"{options.sheet}  the least and the most certain images")
    if options.out is not None:
        left = f", {skipped} skipped" if skipped else ""
        say(out, f"{options.out}  {read:,} images{left}")


class _Extremes:
    """The least and the most certain images of a stream, by entropy; the others are forgotten."""

    MOST = 24

    def __init__(self) -> None:
        self.heaps: dict[str, list[tuple[float, str, str]]] = {"least certain": [], "most certain": []}

    def add(self, portion: Any) -> None:
        """Looks at one more portion."""
        lines = (
            (entropy, name, f"{found}  {confidence:.0%}")
            for entropy, name, found, confidence in zip(
                portion.entropy.tolist(),
                portion.ids,
                portion.classes,
                portion.confidence.tolist(),
                strict=True,
            )
        )
        for entropy, name, caption in lines:
            for heap, key in ((self.heaps["least certain"], entropy), (self.heaps["most certain"], -entropy)):
                (heapq.heappush if len(heap) < self.MOST else heapq.heappushpop)(heap, (key, name, caption))

    def cards(self, images: Any) -> Any:
        """By heading the cards of the sheet, the most extreme first; no image stands under both."""
        from clipkal.inference.sheet import Card

        places = {name: i for i, name in reversed(list(enumerate(images.ids)))}
        least, most = (sorted(heap, reverse=True) for heap in self.heaps.values())
        half = min(self.MOST, -(-len({name for _, name, _ in least + most}) // 2))
        shown = {name for _, name, _ in least[:half]}
        chosen = {
            "least certain": least[:half],
            "most certain": [one for one in most if one[1] not in shown][:half],
        }
        found: dict[str, list[Card]] = {heading: [] for heading in chosen}
        for heading, listed in chosen.items():
            for key, name, caption in listed:
                with suppress(Exception):  # gone since it was predicted
                    card = Card(images.decode(places[name]), caption, f"{abs(key):.2f} nats", Path(name).name)
                    found[heading].append(card)
        return found


if __name__ == "__main__":
    main()
