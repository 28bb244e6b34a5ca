"""ResNets of other projects: every form of file gives the trunk, and says what else it holds.

Made up from the published names; no published file was at hand.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.engine.weights import Encoder, initialise
from medssl_cli.engine.weights.forms import sort_tensors
from medssl_cli.engine.weights.importing import Report, Wishes, import_weights
from medssl_cli.engine.weights.matching import match_encoder
from medssl_cli.nn.backbones import resnet
from medssl_cli.recipe import Named

Tensors = dict[str, Tensor]
pytestmark = pytest.mark.usefixtures("children_with_torch")
HEAD = {"projection_head.0.weight": (8, 64), "projection_head.3.bias": (4,), "prototypes.weight": (6, 4)}


@pytest.fixture(scope="module")
def trunk() -> Tensors:
    """A narrow ResNet-50 for three colours, with norms that have seen something."""
    torch.manual_seed(0)
    network = resnet.build(3, depth=50, width=4)
    network.train()(torch.rand(2, 3, 64, 64))
    return dict(network.state_dict())


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def filled(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    return {name: torch.rand(shape) for name, shape in shapes.items()}


def hugging_face(trunk: Tensors) -> Tensors:
    """The names of Hugging Face for torchvision's."""
    found = {}
    for name, tensor in trunk.items():
        name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
        name = re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)
        name = re.sub(r"^layer(\d)\.", lambda match: f"encoder.stages.{int(match[1]) - 1}.layers.", name)
        name = re.sub(r"\.conv(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.convolution.", name)
        name = re.sub(r"(?<=\d)\.bn(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.normalization.", name)
        name = name.replace("downsample.0.", "shortcut.convolution.").replace(
            "downsample.1.", "shortcut.normalization."
        )
        found[name] = tensor
    return found


def documents(trunk: Tensors) -> dict[str, Any]:
    """A file's content of every known form."""
    head = filled(HEAD)
    joint = filled({"intra.deconv.weight": (9, 4, 1), "inter.encoder.layers.0.norm1.weight": (4,)})
    old = {name: tensor for name, tensor in trunk.items() if not name.endswith("num_batches_tracked")}
    vissl = {"trunk": prefixed("_feature_blocks.", trunk), "heads": filled({"0.projection_head.0.weight": (4, 4)})}
    return {
        "swav": prefixed("module.", trunk | head),
        "deepcluster": prefixed("module.", trunk | filled({"prototypes.prototypes0.weight": (6, 4)})),
        "checkpoint": {"epoch": 3, "state_dict": prefixed("module.", trunk | head), "optimizer": {"lr": 0.1}},
        "vissl": {"classy_state_dict": {"base_model": {"model": vissl}}},
        "torchvision": trunk | filled({"fc.weight": (10, 128), "fc.bias": (10,)}),
        "old": old,
        "joint": {"epoch": 1, "state_dict": prefixed("module.intra.", trunk) | prefixed("module.", joint)},
        "hugging face": prefixed("resnet.", hugging_face(trunk)),
        "solo-learn": {"state_dict": prefixed("backbone.", trunk) | filled({"projector.0.weight": (4, 4)})},
    }


FORMS = ("swav", "deepcluster", "checkpoint", "vissl", "torchvision", "old", "joint", "hugging face", "solo-learn")


def imported(document: Any, folder: Path, **wishes: Any) -> Report:
    found: list[Report] = []
    torch.save(document, folder / "weights.pth")
    import_weights(folder / "weights.pth", folder / "out", Wishes(**wishes), show=found.append)
    return found[0]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_whole_trunk(form: str, trunk: Tensors, tmp_path: Path) -> None:
    import safetensors.torch

    report = imported(documents(trunk)[form], tmp_path, kind="resnet", in_channels=3)

    assert report.coverage == 1
    assert (report.missing, report.misshapen) == ((), ())
    assert report.backbone == {"name": "resnet", "depth": 50, "width": 4, "spatial_dims": 2}
    assert len(report.loaded) == (318 if form != "old" else 265)
    written = safetensors.torch.load_file(tmp_path / "out" / "encoder.safetensors")
    assert all(torch.equal(written[name], trunk[name]) for name in trunk if not name.endswith("num_batches_tracked"))


def test_what_is_not_the_trunk_is_listed(trunk: Tensors) -> None:
    _, swav = sort_tensors(documents(trunk)["swav"])
    _, joint = sort_tensors(documents(trunk)["joint"]["state_dict"])
    _, torchvision = sort_tensors(documents(trunk)["torchvision"])

    assert set(swav.projector) == set(HEAD)
    assert set(joint.unexpected) == {"deconv.weight", "inter.encoder.layers.0.norm1.weight"}
    assert set(torchvision.unexpected) == {"fc.weight", "fc.bias"}


def test_a_grey_picture_gets_the_answer_of_three_equal_colours(trunk: Tensors, tmp_path: Path) -> None:
    import safetensors.torch

    report = imported(trunk, tmp_path)
    coloured, grey = resnet.build(3, depth=50, width=4).eval(), resnet.build(1, depth=50, width=4).eval()
    coloured.load_state_dict(trunk)
    grey.load_state_dict(safetensors.torch.load_file(tmp_path / "out" / "encoder.safetensors"))
    picture = torch.rand(1, 1, 64, 64)

    torch.testing.assert_close(grey.embed(picture), coloured.embed(picture.expand(-1, 3, -1, -1)))
    assert report.adapted == ("conv1.weight",)
    assert any("colours" in note for note in report.notes)


def test_turned_kernels_answer_alike_to_turned_pictures(trunk: Tensors, tmp_path: Path) -> None:
    import safetensors.torch

    imported(trunk, tmp_path, axes="zyx", in_channels=3)
    theirs, ours = resnet.build(3, depth=50, width=4).eval(), resnet.build(3, depth=50, width=4).eval()
    theirs.load_state_dict(trunk)
    ours.load_state_dict(safetensors.torch.load_file(tmp_path / "out" / "encoder.safetensors"))
    picture = torch.rand(1, 3, 64, 64)

    torch.testing.assert_close(ours.embed(picture.mT), theirs.embed(picture))


def test_a_trunk_that_lacks_a_block_is_refused(trunk: Tensors, tmp_path: Path) -> None:
    lacking = {name: tensor for name, tensor in trunk.items() if not name.startswith("layer3.5.conv2")}
    with pytest.raises(GateError, match="E_WEIGHTS_COVERAGE"):
        imported(lacking, tmp_path)
    shorter = {name: tensor for name, tensor in trunk.items() if not name.startswith("layer3.5.")}
    with pytest.raises(UsageError, match="E_WEIGHTS_FORM"):
        imported(shorter, tmp_path)


def test_the_trunk_of_the_paper_has_318_tensors() -> None:
    whole = dict(resnet.build(3).state_dict())
    form, parts = sort_tensors(whole)
    backbone, channels = form.describe(parts)

    match = match_encoder(parts.encoder, backbone, in_channels=1, inputs=form.inputs)

    assert (len(whole), channels, len(match.loaded) + len(match.adapted)) == (318, 3, 318)
    assert backbone.options == {"depth": 50, "spatial_dims": 2}
    counted = [name for name in whole if whole[name].is_floating_point() and "running" not in name]
    assert sum(whole[name].numel() for name in counted) == 23_508_032


@pytest.mark.parametrize("how", ["mean", "centre"])
def test_an_inflated_trunk_answers_to_equal_slices_as_to_one(how: Any) -> None:
    torch.manual_seed(0)
    flat = resnet.build(1, depth=18, width=4)
    flat.train()(torch.rand(2, 1, 64, 64))
    deep = resnet.build(1, 3, depth=18, width=4)
    encoder = Encoder(Named(name="resnet", depth=18, width=4), dict(flat.state_dict()), "", None)
    picture = torch.rand(1, 1, 64, 64)
    volume = picture[..., None].expand(-1, -1, -1, -1, 256)

    said = initialise(deep, encoder, how=how)

    assert f"20 convolutions inflated from 2D to 3D by {how}" in said
    with torch.no_grad():
        expected, found = flat.eval()(picture), deep.eval()(volume)
    for one, other in zip(found[:3], expected[:3], strict=True):  # the last level sees the padding at both ends
        middle = one[..., one.shape[-1] // 2]
        torch.testing.assert_close(middle, other, rtol=1e-4, atol=1e-5)


def test_a_3d_resnet_is_wanted_by_saying_so() -> None:
    encoder = Encoder(Named(name="resnet", depth=18), {}, "", None)

    flat = encoder.backbone_for(Named(name="resnet", depth=50))
    deep = encoder.backbone_for(Named(name="resnet", depth=50, spatial_dims=3, inflation="centre"))

    assert flat.options == {"depth": 18}
    assert deep.options == {"depth": 18, "spatial_dims": 3, "inflation": "centre"}
