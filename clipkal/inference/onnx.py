"""The image tower with the class head as ONNX, checked with onnxruntime; an extra: `pip install 'clipkal[onnx]'`."""

import contextlib
import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkal.backbones.openclip import quiet
from clipkal.errors import ClipkalError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Largest difference of a logit that counts as equal, as a cosine (a share of the logit scale)."""


def require() -> None:
    """Raises ClipkalError where a package is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ClipkalError(f"--onnx needs {', '.join(missing)}: pip install 'clipkal[onnx]'")


class Classifier(nn.Module):
    """Preprocessed images [N, 3, H, W] to logits [N, C]."""

    def __init__(self, clip: Any, weight: Tensor, log_scale: Tensor):
        super().__init__()
        self.visual = clip.visual
        self.rows: Tensor
        self.register_buffer("rows", log_scale.exp() * weight)

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.normalize(self.visual(images), dim=-1)
        return features @ self.rows.T


def write_onnx(folder: Path, pixels: Tensor, expected: Tensor) -> str:
    """Writes model.onnx from an exported folder; returns a line that says how far its logits are from `expected` [N, C].

    pixels: preprocessed images [N, 3, H, W]. Raises ClipkalError where the tower cannot be written, or gives other logits.
    """
    import open_clip
    from safetensors.torch import load_file

    require()
    head, path = load_file(folder / "class_head.safetensors"), folder / "model.onnx"
    with quiet(), contextlib.redirect_stdout(io.StringIO()):  # the exporter prints pages
        model = open_clip.create_model(f"local-dir:{folder}").eval()
        classifier = Classifier(model, head["weight"], head["log_scale"]).eval()
        try:
            torch.onnx.export(
                classifier, (pixels[:2],), path, input_names=["images"], output_names=["logits"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}}, dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
        except Exception as error:
            raise ClipkalError(
                f"this tower cannot be written as ONNX ({_first_line(error)}); leave --onnx out"
            ) from error
    off = float((onnx_logits(path, pixels) - expected).abs().max()) / float(head["log_scale"].exp())
    if not off <= TOLERANCE:
        raise ClipkalError(
            f"model.onnx gives other logits: the cosines differ by {off:.1e}; leave --onnx out"
        )
    return f"model.onnx: equal logits by onnxruntime, the cosines differ by at most {off:.1e}"


def onnx_logits(path: Path, pixels: Tensor) -> Tensor:
    """Logits [N, C] by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": pixels.numpy()})[0])


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
