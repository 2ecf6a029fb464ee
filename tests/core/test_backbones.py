"""Backbones: loaded from the bundle or a file, frozen, fingerprinted, and refused by name where prompts cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import ParallelScalingBlock

from bpt_core.backbones import freeze, load_backbone
from bpt_core.catalog import CATALOG, DEFAULT_BACKBONE, Pooling, local_weights
from bpt_core.errors import BackboneError

BUNDLED_FINGERPRINT = "6ef03ac75a4ee99ddf3638b5908062249affec213cdc515bfd014e31a4c20b77"


def test_the_bundled_backbone_loads_without_a_network() -> None:
    backbone = load_backbone(DEFAULT_BACKBONE)
    spec = CATALOG[DEFAULT_BACKBONE]
    assert (backbone.image_size, backbone.patch_size) == (spec.image_size, spec.patch_size)
    assert (backbone.embed_dim, backbone.depth) == (spec.embed_dim, spec.depth)
    assert backbone.pooling is Pooling.MEAN_ALL


def test_the_bundled_fingerprint_never_changes() -> None:
    """It is part of every artifact: a better file must get a new name."""
    assert load_backbone(DEFAULT_BACKBONE).fingerprint == BUNDLED_FINGERPRINT


def test_nothing_in_a_backbone_takes_a_gradient_and_it_is_in_eval_mode() -> None:
    model = load_backbone(DEFAULT_BACKBONE).model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_are_used_and_give_the_same_fingerprint(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    path = tmp_path / f"vit_tiny_patch16_224{suffix}"
    if suffix == ".pth":
        # As masked-autoencoder checkpoints come: wrapped, with a decoder and a head that do not belong.
        extra = {"decoder_pos_embed": torch.zeros(3), "mask_token": torch.zeros(3), "head.weight": torch.zeros(3)}
        torch.save({"model": {**model.state_dict(), **extra}}, path)
    else:
        save_file(model.state_dict(), path)
    found = local_weights(tmp_path, "vit_tiny_patch16_224")
    assert found == path
    assert load_backbone("vit_tiny_patch16_224", weights=found).fingerprint == freeze(model, "same").fingerprint


def test_weights_that_do_not_fit_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    save_file({"cls_token": torch.zeros(1, 1, 5)}, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match="does not fit") as caught:
        load_backbone("vit_tiny_patch16_224", weights=tmp_path / "w.safetensors")
    assert caught.value.code == "weights_mismatch"


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Evil()}, tmp_path / "w.pth")
    with pytest.raises(BackboneError):
        load_backbone("vit_tiny_patch16_224", weights=tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_without_file_and_hub_the_error_says_what_to_bring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(BackboneError, match=r"vit_base_patch16_224\.mae\.safetensors") as caught:
        load_backbone("vit_base_patch16_224.mae")
    assert caught.value.code == "weights_unavailable"


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"gone\.safetensors"):
        load_backbone("vit_tiny_patch16_224", weights=tmp_path / "gone.safetensors")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(BackboneError, match="no_such_model") as caught:
        load_backbone("no_such_model")
    assert caught.value.code == "backbone_unknown"


@pytest.mark.parametrize(
    ("name", "named"),
    [("swin_tiny_patch4_window7_224", "SwinTransformer"), ("vit_tiny_patch16_224", "ParallelScalingBlock")],
)
def test_what_cannot_take_prompts_is_refused_by_name(name: str, named: str) -> None:
    arguments: dict[str, Any] = {"block_fn": ParallelScalingBlock} if "Parallel" in named else {}
    model = timm.create_model(name, num_classes=0, **arguments)
    with pytest.raises(BackboneError, match=named) as caught:
        freeze(model, name)
    assert caught.value.code == "backbone_unsupported"


def test_pooling_a_class_token_that_is_not_there_is_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, class_token=False, global_pool="avg")
    with pytest.raises(BackboneError, match="class token"):
        freeze(model, "no class token", pooling=Pooling.CLS)
