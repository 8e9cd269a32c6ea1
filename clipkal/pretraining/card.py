"""The text of MODEL_CARD.md."""

from __future__ import annotations

from clipkal.data.world.captions import TEMPLATES
from clipkal.data.world.shapes import SEEN, TARGET_CLASSES, UNSEEN, phrases
from clipkal.data.world.styles import HELD_OUT_STYLES, PRETRAINING_STYLES, STYLES
from clipkal.pretraining.training import Trainer

_CARD = """# The embedded mini-CLIP of clipkal

A very small CLIP, so that every part of clipkal can be tried, tested and demonstrated without a download. It
is a teaching and testing model: it knows the drawn world described below and is of no use on photographs.

| | |
|---|---|
| Kind | open_clip: ResNet tower (four blocks, width 24, 64 x 64 pixels), text transformer (two layers) |
| Size | {parameters:,} parameters, embedding of 128 numbers, float16 weights |
| Vocabulary | {vocabulary} tokens: letters, and those of CLIP's merges that the captions need |
| Data | {samples:,} image-caption pairs drawn by `clipkal.data.world`, nothing else |
| Training | {steps:,} steps of {batch} pairs; CLIP's loss, and an auxiliary loss on the class noun |
| Time | {minutes:.0f} minutes of one processor core, and about a third of a second core that renders |
| Command | `clipkal-pretrain --samples {samples} --batch-size {batch} --seed {seed}` |
| Licence | Apache-2.0 |

The same command draws the same pairs in the same order everywhere, also after an interruption; pixels and
weights can differ with the floating-point rounding of processor and torch version. Load it through clipkal,
or with open_clip as `local-dir:FOLDER`; the tokenizer's `bpe_path` in `open_clip_config.json` is relative to
this folder, which open_clip itself does not resolve.

## What it has seen

{seen} shapes and the digits zero to nine in the fonts that matplotlib bundles, in the styles
{pretraining_styles}. Never seen: the styles {held_out_styles}; any
handwriting; the shapes {unseen_names}, which no caption names.

## Zero-shot accuracy

{zero_shot}

* seen: the {seen} shapes of pretraining; unseen: the {unseen} others.
* target: the {target} classes of the few-shot task `rendered`, {target_seen} seen and {unseen} unseen.
* digits: in fonts; handwritten: scikit-learn's scans of real digits, drawn in each style.

## Limits

* Captions also mention colour, material, background, size and place; how well it knows those was not
  measured.
* Unseen shapes are recognised by description only in part, and are often taken for the most similar seen one;
  their names mean nothing to it.
* Its probabilities are not calibrated; the logit scale is the one that training left.
* One seed, one run: differences of a few percent in the table mean little.
"""

_MEASURED = """\
In percent, {per_class} test images a class and style from a pool of their own, each group among its
own classes. Prompts are {templates} templates. Prompts of unseen shapes say what the shape looks like
("{example}"); those words were chosen on the val pool of the unseen shapes. Held-out styles
carry an asterisk. `clipkal-pretrain --evaluate --per-class {per_class}` prints this table as JSON.

{table}"""


def _table(table: dict[str, dict[str, float]]) -> str:
    """The zero-shot table in Markdown, one row a style."""
    groups = list(table)
    heads = [f"{group} ({int(table[group]['classes'])})" for group in groups]
    rows = [["style", *heads], ["---", *("---:" for _ in groups)]]
    rows.append(["*chance*", *(f"*{table[group]['chance']:.1f}*" for group in groups)])
    for style in (style for style in STYLES if style in table[groups[0]]):
        name = f"{style} \\*" if style in HELD_OUT_STYLES else style
        rows.append([name, *(f"{table[group][style]:.1f}" for group in groups)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def model_card(trainer: Trainer, table: dict[str, dict[str, float]], per_class: int) -> str:
    """The card of a trained model; `table` was measured on `per_class` images a class and style."""
    plan = trainer.plan
    measured = "Not measured."
    if per_class:
        example = phrases(UNSEEN[0])[0]
        measured = _MEASURED.format(
            per_class=per_class, templates=len(TEMPLATES), example=example, table=_table(table)
        )
    return _CARD.format(
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        vocabulary=trainer.tokenizer.vocab_size,
        samples=trainer.step * plan.batch_size,
        steps=trainer.step,
        batch=plan.batch_size,
        seed=plan.seed,
        minutes=trainer.seconds / 60,
        seen=len(SEEN),
        unseen=len(UNSEEN),
        unseen_names=", ".join(UNSEEN[:4]) + ",\n" + ", ".join(UNSEEN[4:]),
        target=len(TARGET_CLASSES),
        target_seen=len(set(TARGET_CLASSES) & set(SEEN)),
        pretraining_styles=", ".join(PRETRAINING_STYLES),
        held_out_styles=", ".join(HELD_OUT_STYLES),
        zero_shot=measured,
    )
