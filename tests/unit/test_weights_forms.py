"""Every published form of weights finds its place in our backbones, whatever its trainer wrapped around it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medssl_cli.base.errors import UsageError
from medssl_cli.engine.weights.forms import Parts, canonical, sort_tensors
from medssl_cli.engine.weights.importing import reverse_axes
from medssl_cli.engine.weights.matching import Match, adapt_channels, match_encoder, skeleton
from medssl_cli.engine.weights.reading import Contents, Order, extract
from medssl_cli.nn.build import build_backbone
from medssl_cli.recipe import Named
from tests import published_weights as published

pytestmark = pytest.mark.usefixtures("children_with_torch")
FS = 12
SWIN = Named(name="swinunetr", feature_size=FS)
PLAIN = ((32, 64, 128, 256, 320, 320), (2, 2, 2, 2, 2, 2))
RESIDUAL = ((32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6))


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def read(document: Any, folder: Path, branch: str = "") -> tuple[Contents, dict[str, Tensor]]:
    """Through a file, as the child reads it."""
    from safetensors.torch import load_file

    torch.save(document, folder / "file.pt")
    contents = extract(Order(folder / "file.pt", folder / "copy", branch))
    if contents.refusal:
        return contents, {}
    distinct = load_file(folder / "copy")
    return contents, distinct | {alias: distinct[name] for alias, name in contents.aliases.items()}


def fit(tensors: dict[str, Tensor], branch: str = "", in_channels: int = 1) -> tuple[Named, Parts, Match]:
    form, parts = sort_tensors(tensors, branch)
    backbone, _ = form.describe(parts)
    return backbone, parts, match_encoder(parts.encoder, backbone, in_channels=in_channels, inputs=form.inputs)


@pytest.fixture(scope="module")
def encoder() -> dict[str, Tensor]:
    return published.filled(published.swinunetr_encoder(FS))


@pytest.mark.parametrize(
    ("fs", "parameters", "encoder_bytes", "whole_bytes"),
    [
        (48, 53_164_146, 220_186_120, 298_581_532),
        (96, 211_999_362, 855_526_984, 1_169_100_316),
        (192, 847_276_194, 3_396_634_312, 4_650_911_260),
    ],
)
def test_published_sizes_are_our_backbones_sizes(
    fs: int, parameters: int, encoder_bytes: int, whole_bytes: int
) -> None:
    shapes = published.swinunetr_encoder(fs)

    assert (len(shapes), published.num_parameters(shapes), published.num_bytes(shapes)) == (
        145,
        parameters,
        encoder_bytes,
    )
    whole = shapes | published.swinunetr_decoder(fs)
    assert (len(whole), published.num_bytes(whole)) == (167, whole_bytes)
    ours = skeleton(Named(name="swinunetr", feature_size=fs), in_channels=1).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == shapes
    assert all(tensor.is_meta for tensor in ours.values() if tensor.is_floating_point())


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        ((), ""),
        (("state_dict",), "module."),
        (("network_weights",), "_orig_mod."),
        (("net",), "backbone."),
        (("student",), "student."),
        (("teacher",), ""),
        (("model",), "teacher."),
        (("state_dict", "model"), "module.backbone."),
        (("model", "state_dict"), "_orig_mod.module.student."),
    ],
)
def test_wrappers_and_prefixes_come_off(
    encoder: dict[str, Tensor], wrapper: tuple[str, ...], prefix: str, tmp_path: Path
) -> None:
    document: Any = prefixed(prefix, encoder)
    for key in reversed(wrapper):
        document = {"global_step": 7, key: document}

    contents, tensors = read(document, tmp_path)
    backbone, parts, match = fit(tensors)

    assert contents.wrappers == wrapper
    assert backbone == SWIN
    assert match.is_complete
    assert match.num_covered == match.num_parameters
    assert len(match.loaded) == 145
    assert (match.unexpected, match.adapted, parts.unexpected) == ((), (), {})
    assert all(torch.equal(match.weights[name], tensor) for name, tensor in encoder.items())


def test_only_leading_prefixes_come_off() -> None:
    assert canonical("module.module.backbone.encoder1.module.weight") == ("", "encoder1.module.weight")
    assert canonical("swin_vit.patch_embed.proj.weight")[1] == "swinViT.patch_embed.proj.weight"
    assert canonical("encoder1.swin_vit.weight")[1] == "encoder1.swin_vit.weight"


def test_the_older_name_of_the_transformer_is_known(encoder: dict[str, Tensor]) -> None:
    older = {name.replace("swinViT.", "swin_vit."): tensor for name, tensor in encoder.items()}

    _, _, match = fit(older)

    assert len(match.loaded) == 145


def test_a_checkpoint_of_voco_2_gives_its_encoder_and_both_projectors(
    encoder: dict[str, Tensor], tmp_path: Path
) -> None:
    heads = published.filled(published.projector("student.layer{}.0") | published.projector("teacher.layer{}.0"))
    state = prefixed("module.", prefixed("backbone.", encoder) | heads)

    contents, tensors = read({"global_step": 20_000, "state_dict": state}, tmp_path)
    _, parts, match = fit(tensors)

    assert contents.wrappers == ("state_dict",)
    assert len(state) == 157
    assert match.is_complete
    assert set(parts.projector) == set(heads)
    assert len(parts.projector) == 12


def test_a_checkpoint_of_voco_omni_has_a_decoder_as_well(encoder: dict[str, Tensor]) -> None:
    decoder = published.filled(published.swinunetr_decoder(FS))
    heads = published.filled(published.projector("student.layer{}.0") | published.projector("teacher.layer{}.0"))
    state = prefixed("backbone.", encoder | decoder) | heads

    _, parts, match = fit(state)

    assert len(state) == 179
    assert match.is_complete
    assert set(parts.decoder) == set(decoder)
    assert len(parts.decoder) == 22


def test_a_checkpoint_of_voco_1_has_two_encoders_and_the_caller_chooses(encoder: dict[str, Tensor]) -> None:
    head = published.filled(published.projector("proj_head.layer{}.0"))
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in encoder.items()}
    state = prefixed("module.student.", encoder | head) | prefixed("module.teacher.", other | head)
    assert len(state) == 302

    with pytest.raises(UsageError, match="E_WEIGHTS_BRANCH"):
        sort_tensors(state)

    for branch, expected in (("student", encoder), ("teacher", other)):
        _, parts, match = fit(state, branch)
        assert all(torch.equal(match.weights[name], tensor) for name, tensor in expected.items())
        assert len(parts.projector) == 12
        assert parts.num_dropped == 145


def test_student_and_teacher_as_wrappers_need_a_choice_too(encoder: dict[str, Tensor], tmp_path: Path) -> None:
    other = {name: -tensor if tensor.is_floating_point() else tensor for name, tensor in encoder.items()}
    document = {"student": prefixed("module.", encoder), "teacher": other, "epoch": 3}

    assert read(document, tmp_path)[0].code == "E_WEIGHTS_BRANCH"

    contents, tensors = read(document, tmp_path, "teacher")
    assert contents.wrappers == ("teacher",)
    name = "swinViT.patch_embed.proj.bias"
    assert torch.equal(fit(tensors, "teacher")[2].weights[name], other[name])


def test_four_channels_adapt_three_tensors_and_answer_alike_to_four_equal_images(encoder: dict[str, Tensor]) -> None:
    _, _, one = fit(encoder)
    backbone, _, four = fit(encoder, in_channels=4)

    assert four.is_complete
    assert sorted(four.adapted) == [
        "encoder1.layer.conv1.conv.weight",
        "encoder1.layer.conv3.conv.weight",
        "swinViT.patch_embed.proj.weight",
    ]
    networks = [build_backbone(backbone, in_channels=channels).eval() for channels in (1, 4)]
    for network, match in zip(networks, (one, four), strict=True):
        network.load_state_dict(match.weights)
    x = torch.rand(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    images = (x, x.expand(-1, 4, -1, -1, -1))
    with torch.no_grad():
        patches = [n.swinViT.patch_embed(image) for n, image in zip(networks, images, strict=True)]
        maps = [n(image) for n, image in zip(networks, images, strict=True)]
    torch.testing.assert_close(*patches)
    torch.testing.assert_close(maps[0][0], maps[1][0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (3, 2), (2, 2)])
def test_kernels_for_other_channels_answer_alike_to_equal_channels(before: int, after: int) -> None:
    kernel = torch.randn(5, before, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(1))

    adapted = adapt_channels(kernel, after)

    assert adapted.shape == (5, after, 3, 3, 3)
    torch.testing.assert_close(
        torch.nn.functional.conv3d(x.expand(-1, after, -1, -1, -1), adapted),
        torch.nn.functional.conv3d(x.expand(-1, before, -1, -1, -1), kernel),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_file_of_version_1_lacks_eight_tensors_of_version_2() -> None:
    tensors = published.filled(published.swinunetr_encoder(FS, use_v2=False))

    backbone, parts, match = fit(tensors)
    as_version_2 = match_encoder(parts.encoder, SWIN, in_channels=1, inputs=())

    assert backbone == Named(name="swinunetr", feature_size=FS, use_v2=False)
    assert match.is_complete
    assert len(as_version_2.missing) == 8
    assert not as_version_2.is_complete
    assert as_version_2.num_covered == match.num_parameters < as_version_2.num_parameters


def test_a_file_of_version_2_has_eight_tensors_more_than_version_1(encoder: dict[str, Tensor]) -> None:
    version_1 = Named(name="swinunetr", feature_size=FS, use_v2=False)

    match = match_encoder(encoder, version_1, in_channels=1, inputs=())

    assert len(match.unexpected) == 8
    assert match.is_complete


def test_other_heads_and_depths_are_told_from_shapes(encoder: dict[str, Tensor]) -> None:
    shapes = {
        name: (*shape[:-1], 2) if name.endswith("bias_table") else shape
        for name, shape in published.swinunetr_encoder(FS).items()
        if "layers3.0.blocks.1." not in name
    }

    backbone, _, match = fit(published.filled(shapes))

    assert backbone == Named(name="swinunetr", feature_size=FS, depths=[2, 2, 1, 2], num_heads=[2, 2, 2, 2])
    assert match.is_complete


def test_the_index_that_follows_from_the_window_is_compared_and_not_trusted(encoder: dict[str, Tensor]) -> None:
    name = "swinViT.layers2.0.blocks.1.attn.relative_position_index"

    without = {key: tensor for key, tensor in encoder.items() if key != name}
    _, _, match = fit(without)
    assert match.is_complete
    assert torch.equal(match.weights[name], published.relative_position_index())

    with pytest.raises(UsageError, match=r"E_WEIGHTS_FORM: swinViT\.layers2.*not what follows"):
        fit({**encoder, name: encoder[name].flip(0)})


def test_missing_misshapen_and_unexpected_tensors_are_told_apart(encoder: dict[str, Tensor]) -> None:
    wrong = {name: tensor for name, tensor in encoder.items() if name != "encoder2.layer.conv1.conv.weight"}
    wrong["encoder3.layer.conv1.conv.weight"] = torch.zeros(1, 2)
    wrong["encoder2.layer.conv9.conv.weight"] = torch.zeros(1)
    wrong["something.else"] = torch.zeros(1)

    _, parts, match = fit(wrong)

    assert match.missing == ("encoder2.layer.conv1.conv.weight",)
    assert match.misshapen == ("encoder3.layer.conv1.conv.weight",)
    assert match.unexpected == ("encoder2.layer.conv9.conv.weight",)
    assert set(parts.unexpected) == {"something.else"}
    absent = FS * FS * 27 + (2 * FS) ** 2 * 27
    assert match.num_parameters - match.num_covered == absent


def test_the_nnunet_file_has_292_names_for_108_tensors() -> None:
    once = published.filled(published.nnunet(*PLAIN))
    names = published.with_nnunet_names(once)
    assert (len(names), len(once)) == (292, 108)
    assert sum(tensor.numel() for tensor in once.values()) == 31_210_889

    backbone, parts, match = fit(names)

    assert backbone == Named(name="plainconv")
    assert len(match.loaded) == 48
    assert match.is_complete
    assert len(parts.decoder) == 60
    assert parts.num_aliases == 292 - 108
    assert not parts.unexpected


def test_residual_encoders_of_nnunet_are_known() -> None:
    once = published.filled(published.nnunet(*RESIDUAL, residual=True))

    backbone, parts, match = fit(prefixed("_orig_mod.", published.with_nnunet_names(once)))

    assert backbone == Named(name="resenc")
    assert match.is_complete
    assert not match.unexpected
    assert not parts.unexpected


def test_other_sizes_of_nnunet_are_told_from_shapes() -> None:
    channels, depths = (4, 6, 8), (1, 2, 1)
    plain, _, match = fit(published.filled(published.nnunet(channels, depths)))
    residual, _, residual_match = fit(published.filled(published.nnunet(channels, depths, residual=True)))

    sizes = {"channels": [4, 6, 8], "strides": [1, 2, 2]}
    assert plain == Named(name="plainconv", **sizes, num_convs=[1, 2, 1])
    assert residual == Named(name="resenc", **sizes, num_blocks=[1, 2, 1])
    assert match.is_complete
    assert residual_match.is_complete


def test_names_of_the_same_tensor_must_agree() -> None:
    names = published.with_nnunet_names(published.filled(published.nnunet((4, 6), (1, 1))))
    alias = "decoder.encoder.stages.1.0.convs.0.all_modules.1.bias"
    same = {**names, alias: names[alias].clone()}
    assert fit(same)[2].is_complete

    with pytest.raises(UsageError, match=r"E_WEIGHTS_FILE: two different tensors claim to be stages\.1"):
        fit({**names, alias: names[alias] + 1})


THICK_STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2))  # of arrays [Z, Y, X], as nnU-Net's plans have them
THICK_KERNELS = ((1, 3, 3), (3, 3, 3), (3, 3, 3))


@pytest.mark.parametrize("residual", [False, True])
def test_strides_and_kernels_that_differ_between_axes_are_told_from_shapes(residual: bool) -> None:
    shapes = published.nnunet((4, 6, 8), (2, 2, 2), residual=residual, strides=THICK_STRIDES, kernels=THICK_KERNELS)

    backbone, parts, match = fit(published.with_nnunet_names(published.filled(shapes)))

    depths = {"num_blocks" if residual else "num_convs": [2, 2, 2]}
    assert backbone == Named(
        name="resenc" if residual else "plainconv",
        channels=[4, 6, 8],
        strides=[1, [1, 2, 2], 2],
        kernel_sizes=[[1, 3, 3], 3, 3],
        **depths,
    )
    assert match.is_complete
    assert not match.unexpected
    assert not parts.unexpected
    assert build_backbone(backbone).strides == ((1, 1, 1), (1, 2, 2), (2, 4, 4))


def test_strides_alone_may_differ_between_axes() -> None:
    backbone, _, match = fit(published.filled(published.nnunet((4, 6), (1, 1), strides=((1, 1, 1), (1, 2, 3)))))

    assert backbone == Named(name="plainconv", channels=[4, 6], strides=[1, [1, 2, 3]], num_convs=[1, 1])
    assert match.is_complete


@pytest.mark.parametrize(("shape", "message"), [((2, 3, 3), "odd"), ((9, 3, 3), "at most 7"), ((3,), "not supported")])
def test_kernels_that_no_network_here_has_are_refused(shape: tuple[int, ...], message: str) -> None:
    tensors = published.filled(published.nnunet((4, 6), (1, 1)))

    with pytest.raises(UsageError, match=rf"E_WEIGHTS_FORM: it has kernels of .*{message}"):
        fit(tensors | {"encoder.stages.1.0.convs.0.conv.weight": torch.zeros(6, 4, *shape)})


def test_an_encoder_of_thick_slices_needs_a_decoder_that_tells_its_strides() -> None:
    tensors = published.filled(published.nnunet((4, 6, 8), (1, 1, 1), strides=THICK_STRIDES, kernels=THICK_KERNELS))
    alone = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}

    with pytest.raises(UsageError, match="E_WEIGHTS_FORM: its kernels differ between axes, and it has no decoder"):
        fit(alone)


def test_kernels_turn_with_the_axes_of_their_arrays() -> None:
    kernel = torch.randn(2, 1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 1, 4, 5, 6, generator=torch.Generator().manual_seed(1))

    turned = torch.nn.functional.conv3d(x.permute(0, 1, 4, 3, 2), reverse_axes(kernel))

    torch.testing.assert_close(turned.permute(0, 1, 4, 3, 2), torch.nn.functional.conv3d(x, kernel))
    assert torch.equal(reverse_axes(reverse_axes(kernel)), kernel)
    table = torch.arange(6).reshape(2, 3)
    assert reverse_axes(table) is table


def test_files_of_unknown_networks_are_refused() -> None:
    with pytest.raises(UsageError, match="E_WEIGHTS_FORM: its 1 tensors have names of no network"):
        sort_tensors({"layers.0.weight": torch.zeros(1)})
    with pytest.raises(UsageError, match=r"E_WEIGHTS_FORM: its encoder has no swinViT\.patch_embed"):
        fit({"swinViT.norm.weight": torch.zeros(1)})
    with pytest.raises(UsageError, match="E_WEIGHTS_FORM: its sizes make no swinunetr"):
        fit({"swinViT.patch_embed.proj.weight": torch.zeros(5, 1, 2, 2, 2)})


def changed(tensors: dict[str, Tensor], random: np.random.Generator) -> dict[str, Tensor]:
    """A few tensors gone, renamed, of another kind or shape: also shapes without numbers, which cost no bytes."""
    names = list(tensors)
    shapes = [(), (0,), (7,), (0, 10**9), (10**9, 0, 3, 3, 3), (10**9, 0, 2, 2, 2), (2197, 0), (2, 2), (3, 5, 3, 3, 3)]
    result = dict(tensors)
    for name in random.choice(names, size=4):
        what = random.integers(4)
        tensor = result.pop(name, torch.zeros(1))
        if what == 1:
            other = str(random.choice(names))
            result[other if random.random() < 0.5 else name.replace("0", "99999999999")] = tensor
        if what == 2:
            result[name] = (tensor * 10).to(random.choice([torch.int32, torch.float16, torch.bool, torch.uint8]))
        if what == 3:
            result[name] = torch.zeros(shapes[random.integers(len(shapes))])
    return result


@pytest.mark.parametrize("kind", ["swinunetr", "plainconv", "resenc"])
def test_whatever_is_changed_there_is_a_match_or_a_refusal(kind: str, encoder: dict[str, Tensor]) -> None:
    nnunet = published.nnunet((4, 6, 8), (1, 2, 1), residual=kind == "resenc")
    tensors = encoder if kind == "swinunetr" else published.with_nnunet_names(published.filled(nnunet))
    leading = {"swinunetr": "swinViT.", "plainconv": "encoder.", "resenc": "encoder."}[kind]
    first = {name: tensor for name, tensor in tensors.items() if name.startswith(leading)}
    random = np.random.default_rng(0)
    outcomes = []
    for turn in range(40):
        pool = {name: tensors[name] for name in list(first)[:8]} if turn % 2 else tensors
        try:
            rest = {name: tensor for name, tensor in tensors.items() if name not in pool}
            _, _, match = fit(rest | changed(pool, random))
            outcomes.append("complete" if match.is_complete else "incomplete")
        except UsageError as error:
            outcomes.append(error.code)

    assert set(outcomes) <= {"complete", "incomplete", "E_WEIGHTS_FORM", "E_WEIGHTS_FILE"}
    assert outcomes.count("complete") < 20


def test_statistics_of_batch_norms_are_no_parameters() -> None:
    """A ResNet-50 of one channel: torchvision's 25,557,032, less its classifier and two of three colours."""
    network = build_backbone(Named(name="resnet", depth=50))
    expected = 25_557_032 - (2048 + 1) * 1000 - 64 * 2 * 7 * 7

    match = match_encoder(
        dict(network.state_dict()), Named(name="resnet", depth=50), in_channels=1, inputs=("conv1.weight",)
    )

    assert (match.num_parameters, match.num_covered) == (expected, expected) == (23_501_760, 23_501_760)
