"""LoRA on CLIP's towers: exactly zero-shot at the start, right derivatives, and a frozen model that stays the same bits."""

import copy

import pytest
import torch
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from clipkal.adapters.lora import LoRAAdapter, LoRASettings
from clipkal.errors import ConfigError

TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
VISION = {
    "vit": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "custom": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    | {"block_type": "custom"},
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    "timm": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
}
EVERYTHING = ("q", "k", "v", "out", "fc1", "fc2", "conv")


def clip_of(kind, dtype=torch.float32):
    from open_clip.model import CLIP, CustomTextCLIP

    with torch.random.fork_rng():
        torch.manual_seed(3)
        make = CustomTextCLIP if kind == "timm" else CLIP
        model = make(24, dict(VISION[kind]), dict(TEXT))
    return model.to(dtype).eval().requires_grad_(False)


def images_of(kind, n=3, dtype=torch.float32):
    side = VISION[kind]["image_size"]
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


def tokens_of_classes():
    """Four classes of one, two, three and one sentences."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(1, 50, (n, 8), generator=generator) for n in (1, 2, 3, 1)]


def class_features(model, tokens):
    means = [F.normalize(model.encode_text(t), dim=-1).mean(0) for t in tokens]
    return F.normalize(torch.stack(means), dim=-1)


def zero_shot(model, images, tokens):
    return 50.0 * F.normalize(model.encode_image(images), dim=-1) @ class_features(model, tokens).T


def adapter_of(model, **settings):
    settings = LoRASettings(**{"rank": 2, "targets": EVERYTHING, **settings})
    tokens = tokens_of_classes()
    text = None if settings.adapts("text") else class_features(model, tokens)
    return LoRAAdapter(model, text, 50.0, settings, tokens)


def disturb(adapter, size=0.05):
    """Random factors: somewhere away from the start."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            if name != "log_scale":
                p.add_(size * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))


@pytest.mark.parametrize("kind", VISION)
@pytest.mark.parametrize("towers", ["vision", "both"])
def test_it_starts_at_zero_shot(kind, towers):
    model, tokens = clip_of(kind, torch.float64), tokens_of_classes()
    adapter = adapter_of(model, towers=towers)
    images = images_of(kind, dtype=torch.float64)
    for name, weight in adapter.merge().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    torch.testing.assert_close(adapter(images), zero_shot(model, images, tokens), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", VISION)
def test_merged_weights_give_the_same_output_and_the_frozen_ones_come_back(kind):
    model, tokens = clip_of(kind), tokens_of_classes()
    before = copy.deepcopy(model.state_dict())
    adapter, images = adapter_of(model, towers="both"), images_of(kind)
    disturb(adapter)
    plain = copy.deepcopy(model)
    plain.load_state_dict(adapter.merge())
    merged = plain.encode_image(images)
    torch.testing.assert_close(zero_shot(plain, images, tokens), adapter(images), rtol=1e-4, atol=1e-4)
    assert (merged - model.encode_image(images)).abs().max() > 1e-4
    torch.testing.assert_close(class_features(plain, tokens), adapter.class_features(), rtol=1e-5, atol=1e-6)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.encode_image(images), model.encode_image(images))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_a_fused_weight_changes_only_in_the_rows_asked_for(kind):
    model = clip_of(kind)
    adapter = adapter_of(model, targets=["k"], blocks="last:1")
    disturb(adapter)
    (target,), merged = adapter.targets, adapter.merge()
    changed = (merged[target.name] != model.state_dict()[target.name]).any(1)
    third = len(changed) // 3
    assert changed.tolist() == [False] * third + [True] * third + [False] * third


@pytest.mark.parametrize("kind", VISION)
def test_every_target_is_read_by_the_model(kind):
    """No change may silently be without effect: each has a gradient that is not zero."""
    adapter = adapter_of(clip_of(kind, torch.float64), towers="both")
    disturb(adapter, 0.2)
    if kind == "resnet":  # its last normalisations start at zero, which hides the residual branches
        for name, p in adapter.frozen.parameters.items():
            if name.endswith("bn3.weight"):
                p.fill_(1.0)
    adapter(images_of(kind, dtype=torch.float64)).square().sum().backward()
    assert [n for n, p in adapter.named_parameters() if p.requires_grad and not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize(
    ("kind", "towers", "blocks"),
    [
        ("vit", "both", "all"),
        ("custom", "vision", "all"),
        ("resnet", "vision", "last:2"),
        ("timm", "vision", "last:1"),
    ],
)
def test_vmap_of_jacrev_is_autograd(kind, towers, blocks):
    adapter = adapter_of(clip_of(kind, torch.float64), towers=towers, blocks=blocks)
    disturb(adapter)
    images = images_of(kind, 2, torch.float64)
    theta = {n: p.detach() for n, p in adapter.named_parameters() if p.requires_grad}
    of_image = lambda theta, image: functional_call(adapter, theta, (image[None],))[0]
    with torch.no_grad():
        fast = vmap(jacrev(of_image), in_dims=(None, 0))(theta, images)
    logits = adapter(images)
    for i in range(2):
        for c in range(4):
            wanted = torch.autograd.grad(
                logits[i, c], [dict(adapter.named_parameters())[n] for n in theta], retain_graph=True
            )
            for name, gradient in zip(theta, wanted, strict=True):
                torch.testing.assert_close(fast[name][i, c], gradient, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", VISION)
def test_the_jacobian_by_hooks_is_that_of_jacrev(kind):
    """q, k, v, out, MLP and convolutions of every architecture, and as many images as tokens."""
    from clipkal.optim.model import make_route
    from clipkal.optim.model.jacobian import ParameterVector
    from clipkal.optim.model.layers import HookJacobian

    adapter = adapter_of(clip_of(kind, torch.float64), blocks="last:2")
    disturb(adapter)
    images = images_of(kind, 5 if kind in ("vit", "custom") else 2, torch.float64)
    vector = ParameterVector(adapter)
    rows = []
    for route in ("hooks", "func"):
        jacobian = make_route(adapter, vector, route).linearise(images)
        assert isinstance(jacobian, HookJacobian) == (route == "hooks")
        rows.append(jacobian.pull(torch.eye(4, dtype=torch.float64).expand(len(images), 4, 4)))
    torch.testing.assert_close(*rows, rtol=1e-9, atol=1e-10)


def test_at_the_start_the_gradient_of_the_downward_factors_is_zero():
    adapter = adapter_of(clip_of("vit", torch.float64), rank=4, targets=["q", "k", "v"])
    adapter(images_of("vit", dtype=torch.float64))[:, 0].sum().backward()
    squares = dict.fromkeys(("down", "up"), 0.0)
    for name, p in adapter.named_parameters():
        if p.requires_grad:
            squares[name.split(".")[-2]] += float(p.grad.square().sum())
    assert squares["down"] == 0 and squares["up"] > 0


def test_state_holds_the_factors_alone_and_comes_back_exactly(tmp_path):
    from safetensors.torch import load_file, save_file

    model, images = clip_of("vit"), images_of("vit")
    adapter = adapter_of(model, towers="both")
    disturb(adapter)
    state = adapter.state_dict()
    assert {name.rsplit(".", 2)[-2] for name in state if name != "log_scale"} == {"down", "up"}
    save_file(state, tmp_path / "adapter.safetensors")
    other = adapter_of(model, towers="both", seed=5)
    assert not torch.equal(other(images), adapter(images))
    other.load_state_dict(load_file(tmp_path / "adapter.safetensors"))
    assert torch.equal(other(images), adapter(images))


def test_a_copy_shares_the_frozen_model_but_not_the_factors():
    adapter = adapter_of(clip_of("vit"))
    twin = copy.deepcopy(adapter)
    disturb(adapter)
    assert twin.frozen is adapter.frozen
    assert all(torch.equal(w, twin.frozen.parameters[name]) for name, w in twin.merge().items())
    assert not all(torch.equal(w, twin.frozen.parameters[name]) for name, w in adapter.merge().items())


def test_what_is_trainable():
    adapter = adapter_of(clip_of("vit"), rank=4, targets=["q", "v"])
    assert adapter.describe()["trainable"] == 2 * 2 * 4 * (32 + 32)
    assert not adapter.log_scale.requires_grad
    assert all(not p.requires_grad for p in adapter.frozen.clip.parameters())
    assert "trainable=1024" in repr(adapter)


def test_alpha_scales_the_change():
    model = clip_of("vit", torch.float64)
    one, four = adapter_of(model), adapter_of(model, alpha=8.0)
    disturb(one), disturb(four)
    for target in one.targets:
        frozen = model.state_dict()[target.name]
        once, four_times = one.merge()[target.name] - frozen, four.merge()[target.name] - frozen
        torch.testing.assert_close(four_times, 4 * once)


def test_dropout_is_there_in_training_only():
    adapter = adapter_of(clip_of("vit", torch.float64), dropout=0.5, rank=8, targets=["fc1"])
    images = images_of("vit", dtype=torch.float64)
    torch.testing.assert_close(adapter(images), adapter.eval()(images))  # zero-shot in both modes
    disturb(adapter, 0.01)
    whole = adapter(images)
    assert torch.equal(adapter(images), whole)
    adapter.train()
    with torch.no_grad():
        draws = torch.stack([adapter(images) for _ in range(200)])
    assert not torch.equal(draws[0], draws[1])
    assert (draws.mean(0) - whole).abs().max() < 0.5 * draws.std(0).max()


def test_half_precision_weights_get_float32_factors():
    model = clip_of("vit", torch.bfloat16)
    adapter = adapter_of(model)
    disturb(adapter)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert {w.dtype for w in adapter.merge().values()} == {torch.bfloat16}
    assert adapter(images_of("vit", dtype=torch.bfloat16)).dtype == torch.float32


def test_a_model_that_is_not_frozen_is_refused():
    for spoil in (lambda m: m.train(), lambda m: m.requires_grad_(True)):
        model = clip_of("vit")
        text = class_features(model, tokens_of_classes())
        spoil(model)
        with pytest.raises(ConfigError, match="frozen backbone"):
            LoRAAdapter(model, text, 50.0)


def test_missing_classes_are_refused():
    model = clip_of("vit")
    with pytest.raises(ConfigError, match="text features"):
        LoRAAdapter(model, None, 50.0)
    for tokens in (None, [], [torch.ones(0, 8, dtype=torch.int64)]):
        with pytest.raises(ConfigError, match="token ids"):
            LoRAAdapter(model, None, 50.0, LoRASettings(towers="both"), tokens)
