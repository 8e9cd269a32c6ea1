"""The release folder: a model that open_clip loads as `local-dir:`, its merges and its card."""

from __future__ import annotations

from pathlib import Path

import open_clip
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file

from clipkal.errors import BackboneError
from clipkal.files import atomic_path, write_json, write_text
from clipkal.pretraining.card import model_card
from clipkal.pretraining.evaluation import zero_shot
from clipkal.pretraining.model import (
    MERGES_NAME,
    build_model,
    load_tokenizer,
    model_config,
    preprocess_config,
)
from clipkal.pretraining.training import Trainer

PACKAGED = Path(__file__).resolve().parent.parent / "backbones" / "mini"
CONFIG_NAME, WEIGHTS_NAME, CARD_NAME = "open_clip_config.json", "open_clip_model.safetensors", "MODEL_CARD.md"


def load_release(folder: Path) -> tuple[open_clip.CLIP, SimpleTokenizer]:
    """The released model in float32, ready for evaluation, and its tokenizer.

    Raises:
        BackboneError: a file is missing or the weights do not fit.
    """
    try:
        tokenizer = load_tokenizer(folder / MERGES_NAME)
        model = build_model(tokenizer.vocab_size)
        model.load_state_dict({k: v.float() for k, v in load_file(folder / WEIGHTS_NAME).items()})
    except (OSError, RuntimeError) as error:
        raise BackboneError(f"{folder}: not a complete release of the embedded model ({error})") from error
    return model.eval(), tokenizer


def write_release(trainer: Trainer, merges: Path, folder: Path, *, per_class: int) -> None:
    """Write the four files of the release.

    The card's table is measured on the weights as released, with `per_class` images a class and style;
    0 leaves it out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(trainer.tokenizer.vocab_size)
    config["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": MERGES_NAME}
    write_json(folder / CONFIG_NAME, {"model_cfg": config, "preprocess_cfg": preprocess_config()})
    with atomic_path(folder / MERGES_NAME) as temporary:
        temporary.write_bytes(merges.read_bytes())
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in trainer.model.state_dict().items()
    }
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    model, tokenizer = load_release(folder)
    table = zero_shot(model, tokenizer, per_class=per_class) if per_class else {}
    write_text(folder / CARD_NAME, model_card(trainer, table, per_class))
