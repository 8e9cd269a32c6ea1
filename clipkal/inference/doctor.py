"""`clipkal-doctor`: looks a backbone over before anything is learnt with it."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from clipkal.commandline import command_parser, console, positive, say
from clipkal.errors import BackboneError, ClipkalError, ConfigError
from clipkal.inference.command import quiet, run_command

NAME = "clipkal-doctor"
HELP = """Looks a backbone over: its weights, activation, image transform, tokenizer, context length, logit scale, device and
precision, and one zero-shot accuracy that is known, where the images are at hand. Says what to type.

The settings are those of a run: backbone=vit_b16, backbone.model=…, dataset=…, data.root=…, device=…."""
EXAMPLES = """examples:
  clipkal-doctor                                              # the embedded mini-CLIP on its embedded images
  clipkal-doctor backbone=vit_b16 dataset=imagenet data.root=/data
  clipkal-doctor backbone=open_clip backbone.model=ViT-B-32-quickgelu backbone.pretrained=/weights/clip.safetensors
  clipkal-doctor backbone=open_clip backbone.model=local-dir:exported

exit status: 0 when nothing is wrong, 1 when something looks wrong (a line that begins with ✗), 2 when there is no such backbone
or its weights do not fit"""
ALLOWED = ("backbone", "dataset", "data", "device", "threads")
MARKS = {"ok": ("✓", "green"), "note": ("·", "yellow"), "wrong": ("✗", "red")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; exits with 1 where something looks wrong, with 2 after one line on bad input."""
    parser = command_parser(NAME, HELP, EXAMPLES)
    parser.add_argument(
        "settings", metavar="KEY=VALUE", nargs="*", help="backbone=…, dataset=…, data.root=…, device=…"
    )
    parser.add_argument(
        "--images",
        metavar="N",
        type=positive,
        default=1000,
        help="most images of the zero-shot accuracy (default: 1000)",
    )
    parser.add_argument("--no-zero-shot", action="store_true", help="leave the zero-shot accuracy out")
    parser.add_argument(
        "--config-dir",
        metavar="DIR",
        type=Path,
        help="a folder with more options, as of clipkal --config-dir",
    )
    run_command(parser, doctor, arguments)


def doctor(options: argparse.Namespace) -> int:
    """Prints one line for each thing looked at; the exit status."""
    from clipkal.config import check, compose

    for word in options.settings:
        if "=" not in word or word.lstrip("+~").partition("=")[0].partition(".")[0] not in ALLOWED:
            raise ConfigError(
                f"{word!r}: what can be typed here is {', '.join(f'{one}=…' for one in ALLOWED)}"
            )
    cfg = compose(options.settings, options.config_dir)
    check(cfg)
    quiet(cfg.threads)
    from clipkal.inference.checkup import checkup

    screen, wrong = console(), 0
    try:
        for found in checkup(
            cfg, chosen=_chosen(options.settings), most=0 if options.no_zero_shot else options.images
        ):
            mark, style = MARKS[found.state]
            wrong += found.state == "wrong"
            say(screen, f"{mark} {found.about:<14}{found.text}", style if found.state != "ok" else "")
    except BackboneError as error:
        raise ClipkalError(f"{error} (nothing was looked at after that)") from error
    words = [word for word in options.settings if not word.startswith("dataset")]
    say(screen, "")
    if wrong:
        say(screen, f"{wrong} thing{'s' * (wrong != 1)} to mend", "red")
        return 1
    say(
        screen,
        f"nothing is wrong; type: {shlex.join(['clipkal', *words, *_dataset(options.settings)])}",
        "bold",
    )
    return 0


def _chosen(settings: Sequence[str]) -> bool:
    """Whether the user named a dataset."""
    return any(word.startswith("dataset") for word in settings)


def _dataset(settings: Sequence[str]) -> list[str]:
    words = [word for word in settings if word.startswith("dataset")]
    return words or ["dataset=digits", "fewshot.shots=4"]


if __name__ == "__main__":
    main()
