"""`clipkal-export`: a finished run as a plain open_clip checkpoint with its class head, or as ONNX."""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from clipkal import files
from clipkal.commandline import command_parser, console, say
from clipkal.errors import ClipkalError
from clipkal.inference.command import EXIT, RUN_HELP, check_run, quiet, run_command
from clipkal.tracking.writing import writing

NAME = "clipkal-export"
HELP = """Merges what a finished run learnt into a plain open_clip checkpoint, and checks that its logits stay what they were.

LoRA goes into the weights of the towers, where it is exact. The linear residual goes into the class head, where it is exact
too: CLIP normalises features after its image projection, which would undo the scale that the residual gives them. What
travels is the point estimate; posterior draws and their uncertainties need the run itself (clipkal-predict)."""
EXAMPLES = f"""examples:
  clipkal-export outputs/rendered/mini/kalman/16shot-seed1 exported       # then: open_clip.create_model("local-dir:exported")
  clipkal-export RUN exported --onnx                                      # and the image tower with the class head as ONNX
  clipkal-export RUN exported --license cc-by-4.0 --overwrite

what it writes into OUT:
  open_clip_model.safetensors, open_clip_config.json   the CLIP, for open_clip.create_model("local-dir:OUT")
  class_head.safetensors    weight [C, d] and log_scale: logits = exp(log_scale) · image feature of unit norm · weightᵀ
  classes.json              the class names in the order of its rows, and their prompts
  model.onnx                with --onnx: preprocessed images [N, 3, H, W] to logits [N, C]
  README.md                 the model card: data, shots, seed, metrics in and out of distribution; the licence is yours to fill

{EXIT}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; exits with 2 after one line on bad input."""
    parser = command_parser(NAME, HELP, EXAMPLES)
    parser.add_argument("run", metavar="RUN", type=Path, help=RUN_HELP)
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument(
        "--onnx", action="store_true", help="write model.onnx too (pip install 'clipkal[onnx]')"
    )
    parser.add_argument(
        "--license", metavar="NAME", help="for the model card, such as apache-2.0 (default: left to fill)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is an earlier export")
    parser.add_argument("--weights", metavar="PATH", type=Path, help="where the backbone's weights are now")
    run_command(parser, export, arguments)


def export(options: argparse.Namespace) -> int:
    """Writes the folder, whole or not at all, and says what is in it."""
    out = files.expanded(options.out)
    check_run(options.run)
    _check_free(out, options.overwrite)
    if options.onnx:
        from clipkal.inference.onnx import require

        require()
    from clipkal.inference.checkpoint import write_export
    from clipkal.inference.run import load_run

    run = load_run(options.run, "cpu", options.weights, "fp32")
    quiet(run.cfg.threads)
    with writing(out, "write to another folder"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name[:40]}.", dir=out.parent) as temporary:
            made = Path(temporary) / "export"
            made.mkdir()
            lines = write_export(run, made, options.onnx, options.license)
            if out.exists():
                shutil.rmtree(out)
            made.rename(out)
    screen = console()
    for line in lines:
        say(screen, line)
    say(screen, f"{out}  {sum(p.stat().st_size for p in out.iterdir()) / 1e6:.1f} MB", "bold")
    return 0


def _check_free(out: Path, overwrite: bool) -> None:
    """Raises ClipkalError where OUT would be lost: something is there that is not to be, or is not, replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ClipkalError(f"{out} is a file; give a folder that does not exist yet")
    ours = (out / "class_head.safetensors").exists() or (out / "adapter.safetensors").exists()
    if any(out.iterdir()) and not (overwrite and ours and (out / "README.md").exists()):
        way_out = (
            "it is no export, so give another folder" if overwrite else "give another folder, or --overwrite"
        )
        raise ClipkalError(f"{out} exists; {way_out}")


if __name__ == "__main__":
    main()
