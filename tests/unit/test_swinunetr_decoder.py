"""With the decoder of SwinUNETR a segmentation is MONAI's network, so that whole published networks start it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import SwinUNETR
from torch import Tensor

from medssl_cli.base.errors import UsageError
from medssl_cli.engine.tensor_files import tensor_bytes
from medssl_cli.engine.weights import DECODER, ENCODER, RECORD, initialise_task, load_encoder
from medssl_cli.engine.weights.importing import VOCOMNI_CLASSES
from medssl_cli.nn.backbones import swinunetr, unet
from medssl_cli.nn.decoder import Decoder
from medssl_cli.nn.swinunetr_decoder import SwinUNETRDecoder
from medssl_cli.recipe import Named
from medssl_cli.tasks.segmentation.network import SegmentationNetwork, SegmentationOptions
from tests import published_weights as published
from tests.traced import require_the_same_logits, segmenting

FS = 12
SMALL = (64, 32, 32)
STRIDES = (1, 2, 4, 8, 16, 32)
WIDTHS = (1, 1, 2, 4, 8, 16)


def whole_network(classes: tuple[str, ...] = VOCOMNI_CLASSES, **options: Any) -> SegmentationNetwork:
    torch.manual_seed(0)
    wanted = {"classes": list(classes), "decoder": {"name": "swinunetr"}, **options}
    return SegmentationNetwork(swinunetr.build(1, feature_size=FS), SegmentationOptions.model_validate(wanted))


def imported(
    folder: Path, decoder: dict[str, Tensor], *, classes: tuple[str, ...] = VOCOMNI_CLASSES, description: str = ""
) -> tuple[Path, dict[str, Tensor]]:
    """What `medssl weights import` writes of a VoComni of toy size; and its 145 tensors of the encoder."""
    encoder = published.filled(published.swinunetr_encoder(FS), seed=1)
    backbone = {"backbone": json.dumps(Named(name="swinunetr", feature_size=FS).model_dump()), "in_channels": "1"}
    folder.mkdir()
    (folder / ENCODER).write_bytes(tensor_bytes(encoder, backbone))
    (folder / DECODER).write_bytes(tensor_bytes(decoder, {"classes": description or json.dumps(classes)}))
    (folder / RECORD).write_text("{}")
    return folder, encoder


@pytest.mark.parametrize("feature_size", [48, 96, 192])
def test_the_decoder_has_the_published_names_and_shapes(feature_size: int) -> None:
    with torch.device("meta"):
        decoder = SwinUNETRDecoder([width * feature_size for width in WIDTHS], STRIDES, out_channels=21)

    literal = published.swinunetr_decoder(feature_size)
    assert {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()} == literal
    assert len(literal) + len(published.swinunetr_encoder(feature_size)) == 167
    # Of the published sizes of whole networks: 72,762,999 / 290,392,695 / 1,160,845,431 parameters.
    encoder = {48: 53_164_146, 96: 211_999_362, 192: 847_276_194}[feature_size]
    whole = {48: 72_762_999, 96: 290_392_695, 192: 1_160_845_431}[feature_size]
    assert published.num_parameters(literal) + encoder == whole


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_network_answers_as_monais_does(spatial_dims: int) -> None:
    torch.manual_seed(1)
    theirs = SwinUNETR(1, 3, feature_size=FS, use_v2=True, spatial_dims=spatial_dims).eval().double()
    backbone = swinunetr.build(1, spatial_dims, feature_size=FS)
    options = SegmentationOptions.model_validate({"classes": ["a", "b"], "decoder": {"name": "swinunetr"}})
    ours = SegmentationNetwork(backbone, options).eval().double()
    state = theirs.state_dict()

    ours.load_state_dict(
        {f"{'decoder' if name.startswith(('decoder', 'out.')) else 'backbone'}.{name}": state[name] for name in state}
    )

    x = torch.rand(1, 1, *SMALL[:spatial_dims], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        found = ours(x if spatial_dims == 3 else x[..., None])
        torch.testing.assert_close(found.view(1, 3, *x.shape[2:]), theirs(x), rtol=1e-9, atol=1e-9)


def test_all_167_tensors_start_a_task_of_the_same_classes(tmp_path: Path) -> None:
    decoder = published.filled(published.swinunetr_decoder(FS), seed=2)
    folder, encoder = imported(tmp_path / "vocomni", decoder)
    task = whole_network()

    said = initialise_task(task, load_encoder(folder), classes=VOCOMNI_CLASSES)

    wanted = {f"backbone.{name}": tensor for name, tensor in encoder.items()}
    wanted |= {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    assert len(wanted) == 167
    assert task.state_dict().keys() == wanted.keys()
    assert all(torch.equal(task.state_dict()[name], tensor) for name, tensor in wanted.items())
    assert said.endswith("the whole encoder; 22 tensors of its decoder: the whole network, for the same classes")


@pytest.mark.parametrize("classes", [VOCOMNI_CLASSES[::-1], ("spleen", "liver")], ids=["another order", "fewer"])
def test_the_last_layer_of_other_classes_starts_anew(classes: tuple[str, ...], tmp_path: Path) -> None:
    decoder = published.filled(published.swinunetr_decoder(FS), seed=2)
    folder, _ = imported(tmp_path / "vocomni", decoder)
    task = whole_network(classes)
    before = {name: tensor.clone() for name, tensor in task.decoder.state_dict().items()}

    said = initialise_task(task, load_encoder(folder), classes=classes)

    for name, tensor in task.decoder.state_dict().items():
        assert torch.equal(tensor, (before if name.startswith("out.") else decoder)[name])
    assert "20 tensors of its decoder; the last layer starts anew: its classes are spleen, " in said


def test_weights_for_a_decoder_of_our_own_leave_it_alone(tmp_path: Path) -> None:
    folder, _ = imported(tmp_path / "vocomni", published.filled(published.swinunetr_decoder(FS)))
    task = whole_network(decoder={})

    said = initialise_task(task, load_encoder(folder), classes=VOCOMNI_CLASSES)

    assert said.endswith("the whole encoder; the rest of the task starts anew")


def test_a_decoder_of_another_form_is_left_out(tmp_path: Path) -> None:
    folder, _ = imported(tmp_path / "other", {"decoder.transpconvs.0.weight": torch.zeros(1)}, classes=())
    task = whole_network()

    said = initialise_task(task, load_encoder(folder), classes=VOCOMNI_CLASSES)

    assert said.endswith("its decoder is of another form than the task's, which starts anew")


def test_a_decoder_that_does_not_fit_is_refused_with_counts(tmp_path: Path) -> None:
    decoder = published.filled(published.swinunetr_decoder(FS))
    decoder["decoder1.more"] = decoder.pop("decoder1.transp_conv.conv.weight")
    decoder["decoder2.conv_block.conv1.conv.weight"] = torch.zeros(1)
    folder, _ = imported(tmp_path / "damaged", decoder)

    with pytest.raises(UsageError, match="E_WEIGHTS_MISMATCH: 1 tensors missing, 1 unexpected, 1 of another shape"):
        initialise_task(whole_network(), load_encoder(folder), classes=VOCOMNI_CLASSES)


@pytest.mark.parametrize("description", ["{}", "[1", '["a", 2]'])
def test_damaged_words_about_classes_are_refused(description: str, tmp_path: Path) -> None:
    decoder = published.filled(published.swinunetr_decoder(FS))
    folder, _ = imported(tmp_path / "damaged", decoder, description=description)

    with pytest.raises(
        UsageError, match=r"E_WEIGHTS_FILE: what decoder\.safetensors says about its classes is damaged"
    ):
        initialise_task(whole_network(), load_encoder(folder), classes=VOCOMNI_CLASSES)


def test_the_decoder_goes_with_other_backbones_of_full_resolution() -> None:
    options = SegmentationOptions.model_validate({"classes": ["a"], "decoder": {"name": "swinunetr"}})
    thick = unet.build(1, channels=(4, 6, 8), strides=(1, (2, 2, 1), 2))

    assert SegmentationNetwork(thick, options)(torch.rand(1, 1, 8, 12, 4)).shape == (1, 2, 8, 12, 4)
    with pytest.raises(ValueError, match="strides that begin with 1"):
        SegmentationNetwork(unet.build(1, channels=(4, 6), strides=(2, 2)), options)


def test_a_published_shape_takes_no_options() -> None:
    assert Decoder(name="swinunetr").name == "swinunetr"
    with pytest.raises(ValueError, match="give its name alone"):
        Decoder(name="swinunetr", num_res_units=2)


def test_onnx_gives_torchs_logits() -> None:
    """Of the decoder on small feature maps: the encoder of SwinUNETR takes a minute of its own to export."""
    torch.manual_seed(0)
    backbone = unet.build(1, channels=(4, 6, 8), strides=(1, 2, 2))
    require_the_same_logits(segmenting(backbone, decoder={"name": "swinunetr"}), (16, 8, 16))
