"""The text of an exported model's README.md, a model card as the Hugging Face Hub reads them."""

import json
from collections.abc import Sequence
from pathlib import Path

from clipkal import __version__
from clipkal.data.names import shortened
from clipkal.inference.run import Run
from clipkal.tracking.writing import printable

_CARD = """---
library_name: {library}
pipeline_tag: {task}
license: {licence}
tags:
- clip
- clipkal
- few-shot
---

# {title}

{what}

| | |
|---|---|
| Backbone | `{architecture}`, weights sha256 `{weights}` |
| Learnt on | {dataset}: {shots} image(s) a class, {images} in all, seed {seed}, protocol {protocol}; shots sha256 `{shots_sha}` |
| Method | `{method}` (adapter `{adapter}`, optimiser `{optimizer}`) |
| Classes | {count}: {classes} |
| Logits | scale {scale:.6g} · cosine; {checked} |
| Written by | clipkal {version}, run `{run_id}` |
| Licence | {licence_line} |

## Use

{use}

## What it is worth

Of the point estimate, which is what this folder holds (`plugin`), and of the run's reported predictive. Accuracy and ECE in %,
NLL in nats; ECE with {bins} bins.

{table}

## Limits

* The posterior and its uncertainties are not in this folder; `clipkal-predict` reads them from the run.
* Sets marked OOD were never learnt from; the numbers say nothing about other shifts.
* Whatever the backbone's own model card warns of holds here too, and so do the terms of the data it learnt on.
"""

_USE = """```python
import open_clip, torch
from PIL import Image
from safetensors.torch import load_file

model, preprocess = open_clip.create_model_from_pretrained("local-dir:THIS_FOLDER", return_transform=True)
head = load_file("THIS_FOLDER/class_head.safetensors")
with torch.no_grad():
    feature = model.eval().encode_image(preprocess(Image.open("photo.jpg"))[None], normalize=True)
probabilities = (head["log_scale"].exp() * feature @ head["weight"].T).softmax(-1)  # classes.json has their names
```"""
_ALONE = """`adapter.safetensors` holds what was learnt, by the names of its parameters. `clipkal.load_run(RUN)` builds the model
around it."""


def card(run: Run, licence: str | None, checked: Sequence[str], plain: bool) -> str:
    """The card; `plain`: whether the folder is a whole open_clip checkpoint. `checked`: what was found on writing it."""
    results = run.record.results
    about = {
        key: printable(str(value)) for key, value in results["run"].items() if not isinstance(value, list)
    }
    kind = "open_clip checkpoint with a class head" if plain else "adapter"
    return _CARD.format(
        library="open_clip" if plain else "clipkal",
        task="zero-shot-image-classification",
        licence=json.dumps(licence) if licence else "other",
        title=f"{about['backbone']} fine-tuned on {about['dataset']} by clipkal",
        what=f"A few-shot fine-tuned CLIP: {kind}.",
        architecture=printable(str(run.cfg.backbone.model)),
        weights=(run.weights_digest or "unknown")[:16],
        dataset=about["dataset"],
        shots=about["shots"],
        images=about["train_images"],
        seed=about["seed"],
        protocol=about["protocol"],
        shots_sha=about["shots_sha256"][:16],
        method=about["method"],
        adapter=about["adapter"],
        optimizer=about["optimizer"],
        count=len(run.class_names),
        classes=printable(shortened(run.class_names, 20)),
        scale=run.logit_scale,
        checked="; ".join(checked),
        version=__version__,
        run_id=run.record.run_id,
        licence_line=licence or "**to be filled in**: that of the backbone, of the data, and your choice",
        bins=results["evaluation"]["bins"],
        table=_table(run),
        use=_USE + _tokenizer(run) if plain else _ALONE,
    )


def _tokenizer(run: Run) -> str:
    """How to get a tokenizer with a vocabulary of its own, whose path open_clip does not take from the folder."""
    bpe = (run.backbone.config.get("text_cfg", {}).get("tokenizer_kwargs") or {}).get("bpe_path")
    if not bpe:
        return ""
    folder = "THIS_FOLDER"
    code = f'open_clip.get_tokenizer("local-dir:{folder}", bpe_path="{folder}/{Path(bpe).name}")'
    return f"\n\nThe vocabulary of its tokenizer is its own: `{code}`."


def _table(run: Run) -> str:
    """One row for every set and predictive."""
    rows = ["| set | role | images | predictive | accuracy | NLL | ECE |", "|---|---|--:|---|--:|--:|--:|"]
    wanted = dict.fromkeys(("plugin", run.predictive))
    for name, one in run.record.results["sets"].items():
        for predictive in (p for p in wanted if p in one["predictive"]):
            m = one["predictive"][predictive]
            nll = "∞" if m["nll"] is None else f"{m['nll']:.3f}"
            cells = [
                printable(name).replace("|", r"\|"),
                one["role"].upper() if one["role"] != "transfer" else "transfer",
            ]
            cells += [f"{m['n']:,}", predictive, f"{100 * m['accuracy']:.1f}", nll, f"{100 * m['ece']:.1f}"]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
