"""Weights come in from other projects, are trained on, and go out to MONAI and nnU-Net."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from monai.networks.nets import SwinUNETR

from medssl_cli.base.errors import Exit, GateError, UsageError
from medssl_cli.cache.store import Cache
from medssl_cli.engine.finetune import Choices, finetune
from medssl_cli.engine.runs import Manifest, open_run, start_run
from medssl_cli.engine.weights import Encoder, importing, initialise, load_encoder
from medssl_cli.engine.weights.importing import Report, Wishes, import_weights
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.build import build_backbone
from medssl_cli.recipe import Named, find_recipe, load_recipe
from tests import published_weights as published
from tests.command import medssl
from tests.e2e.test_training import task_recipe
from tests.listener import Listener
from tests.toy_cache import toy_cache

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("children_with_torch")]

FS = 12
CHANNELS, DEPTHS = (4, 6, 8), (2, 2, 2)


def network_of(encoder: Encoder) -> Backbone:
    backbone = build_backbone(encoder.backbone, in_channels=encoder.in_channels).eval()
    initialise(backbone, encoder)
    return backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def swin_file(folder: Path) -> Path:
    """A VoComni of toy size."""
    shapes = published.swinunetr_encoder(FS) | published.swinunetr_decoder(FS)
    tensors = {
        name: tensor * 0.1 if tensor.is_floating_point() else tensor
        for name, tensor in published.filled(shapes).items()
    }
    torch.save(tensors, folder / "toy.pt")
    return folder / "toy.pt"


@pytest.fixture(scope="module")
def swin(swin_file: Path, folder: Path) -> Path:
    done = medssl("weights", "import", swin_file, folder / "swin")
    assert done.exit_code == Exit.OK, done.stderr
    return folder / "swin"


@pytest.fixture(scope="module")
def nnunet_file(folder: Path) -> Path:
    tensors = published.with_nnunet_names(published.filled(published.nnunet(CHANNELS, DEPTHS)))
    torch.save({"network_weights": tensors, "current_epoch": 1000}, folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth"


@pytest.fixture(scope="module")
def nnunet(nnunet_file: Path, folder: Path) -> Path:
    import_weights(nnunet_file, folder / "nnunet", Wishes("nnunet-plain", axes="zyx"), show=lambda _: None)
    return folder / "nnunet"


def test_voco_b_of_its_real_size_is_imported(tmp_path: Path) -> None:
    tensors = published.filled(published.swinunetr_encoder(48))
    torch.save(tensors, tmp_path / "VoCo_B_SSL_head.pt")

    done = medssl("weights", "import", tmp_path / "VoCo_B_SSL_head.pt", tmp_path / "b", "--as", "voco-b", "--json")

    assert done.exit_code == Exit.OK
    report = json.loads(done.stdout)
    assert (len(report["loaded"]), report["num_parameters"], report["coverage"]) == (145, 53_164_146, 1.0)
    assert report["published_as"] == ""
    encoder = load_encoder(tmp_path / "b")
    assert encoder.backbone == Named(name="swinunetr", feature_size=48)
    assert encoder.patients is None
    assert encoder.weights.keys() == tensors.keys()
    assert all(torch.equal(encoder.weights[name], tensor) for name, tensor in tensors.items())
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["encoder.safetensors", "weights.json"]


def test_the_report_is_a_table_and_says_where_the_decoder_went(swin_file: Path, swin: Path, tmp_path: Path) -> None:
    done = medssl("weights", "import", swin_file, tmp_path / "again", "--as", "swinunetr")

    assert done.exit_code == Exit.OK
    for text in ("loaded", "145", "decoder, kept apart", "22", "100.00 %", "sha256", "note: the decoder is kept"):
        assert text in done.stdout
    assert f"next: medssl finetune --task TASK --init {tmp_path / 'again'}" in done.stderr
    assert {path.name for path in swin.iterdir()} == {"encoder.safetensors", "decoder.safetensors", "weights.json"}
    record = json.loads((swin / "weights.json").read_text())
    assert record["file"] == "toy.pt"
    assert record["encoder_sha256"] == load_encoder(swin).sha256


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("voco-b", "E_WEIGHTS_FORM: it holds a swinunetr of feature_size 12, not voco-b"),
        ("nnunet-plain", "E_WEIGHTS_FORM: it holds a swinunetr of feature_size 12, not nnunet-plain"),
        ("vocco", "E_USAGE: --as vocco is not among"),
    ],
)
def test_a_file_of_another_kind_is_refused(swin_file: Path, tmp_path: Path, kind: str, message: str) -> None:
    done = medssl("weights", "import", swin_file, tmp_path / "out", "--as", kind)

    assert done.exit_code == Exit.USAGE
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_vocomni_has_a_decoder_and_voco_is_of_version_2(tmp_path: Path) -> None:
    version_1 = published.filled(published.swinunetr_encoder(48, use_v2=False))
    torch.save(version_1, tmp_path / "old.pt")

    with pytest.raises(UsageError, match="E_WEIGHTS_FORM: it has no decoder, which vocomni-b has"):
        import_weights(tmp_path / "old.pt", tmp_path / "out", Wishes("vocomni-b"), show=lambda _: None)

    shown: list[Report] = []
    with pytest.raises(GateError, match=r"E_WEIGHTS_COVERAGE: .* 8 tensors are absent or of another shape"):
        import_weights(tmp_path / "old.pt", tmp_path / "out", Wishes("voco-b"), show=shown.append)
    (report,) = shown
    assert len(report.missing) == 8
    absent = 2 * 27 * sum(width**2 for width in (48, 96, 192, 384))
    assert (report.num_parameters, report.num_covered) == (53_164_146, 53_164_146 - absent)
    assert any("use_v2=False" in note for note in report.notes)
    assert not (tmp_path / "out").exists()


def test_an_incomplete_file_is_refused_unless_that_is_allowed(swin_file: Path, tmp_path: Path) -> None:
    tensors = torch.load(swin_file, weights_only=True)
    del tensors["encoder10.layer.conv2.conv.weight"]
    torch.save(tensors, tmp_path / "part.pt")

    refused = medssl("weights", "import", tmp_path / "part.pt", tmp_path / "out")
    allowed = medssl("weights", "import", tmp_path / "part.pt", tmp_path / "out", "--allow-partial", "--json")

    assert refused.exit_code == Exit.GATE
    assert "missing: encoder10.layer.conv2.conv.weight" in refused.stdout
    assert "E_WEIGHTS_COVERAGE" in refused.stderr
    assert "--allow-partial" in refused.stderr
    assert allowed.exit_code == Exit.OK
    assert json.loads(allowed.stdout)["missing"] == ["encoder10.layer.conv2.conv.weight"]
    network_of(load_encoder(tmp_path / "out"))  # every tensor has a value


def test_nothing_is_overwritten(swin_file: Path, swin: Path) -> None:
    with pytest.raises(UsageError, match="E_OUTPUT_EXISTS"):
        import_weights(swin_file, swin, Wishes(), show=lambda _: None)


def test_a_hostile_file_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"PK" + b"\0" * 100)

    done = medssl("weights", "import", tmp_path / "bad.pt", tmp_path / "out")

    assert done.exit_code == Exit.USAGE
    assert "E_WEIGHTS_FILE" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt"]


def test_axes_of_monai_weights_cannot_be_turned(swin_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E_USAGE: --axes"):
        import_weights(swin_file, tmp_path / "out", Wishes(axes="zyx"), show=lambda _: None)
    with pytest.raises(UsageError, match="E_USAGE: --axes yxz"):
        import_weights(swin_file, tmp_path / "out", Wishes(axes="yxz"), show=lambda _: None)
    with pytest.raises(UsageError, match="E_USAGE: --branch pupil"):
        import_weights(swin_file, tmp_path / "out", Wishes(branch="pupil"), show=lambda _: None)


def test_vocomni_nnunet_is_known_by_its_digest_and_comes_with_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels, depths = (32, 64, 128, 256, 320, 320), (2,) * 6
    torch.save(published.with_nnunet_names(published.filled(published.nnunet(channels, depths))), tmp_path / "file.pt")
    digest = hashlib.md5((tmp_path / "file.pt").read_bytes()).hexdigest()
    monkeypatch.setitem(importing.PUBLISHED, digest, "published.pt")
    shown: list[Report] = []

    import_weights(tmp_path / "file.pt", tmp_path / "out", Wishes(), show=shown.append)

    (report,) = shown
    assert report.published_as == "published.pt"
    assert report.num_aliases == 292 - 108
    assert any("corrupt intensity statistics" in note for note in report.notes)
    assert any("transpconvs.0 may be untrained" in note for note in report.notes)


def test_a_task_starts_from_imported_weights(nnunet: Path, tmp_path: Path) -> None:
    cache: Cache = toy_cache(tmp_path / "cache", num_patients=7, size=16)
    recipe = task_recipe(1).model_copy(update={"backbone": Named(name="plainconv", use_checkpoint=True)})
    data = recipe.data.model_copy(update={"crop_size": (16, 16, 16), "batch_size": 1})
    talk = Listener()

    finetune(
        recipe.model_copy(update={"data": data}),
        cache,
        tmp_path / "run",
        Choices(encoder=load_encoder(nnunet)),
        device="cpu",
        talk=talk,
    )

    assert any(note.startswith("from --init: 24 tensors") for note in talk.notes)
    assert any(note.startswith("W_WEIGHTS_ORIGIN") for note in talk.notes)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["arguments"]["test_patients_seen_in_pretraining"] is None
    assert manifest["arguments"]["encoder_sha256"] == load_encoder(nnunet).sha256
    assert open_run(tmp_path / "run").recipe.backbone.options == {
        "channels": [4, 6, 8],
        "strides": [1, 2, 2],
        "num_convs": [2, 2, 2],
        "use_checkpoint": True,
    }


def test_an_encoder_file_alone_will_do_and_other_files_will_not(swin: Path, swin_file: Path, tmp_path: Path) -> None:
    assert load_encoder(swin / "encoder.safetensors").sha256 == load_encoder(swin).sha256

    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "bare.safetensors")
    for file, message in ((swin_file, "no intact safetensors"), (tmp_path / "bare.safetensors", "does not say which")):
        with pytest.raises(UsageError, match=f"E_WEIGHTS_FILE: .*{message}"):
            load_encoder(file)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_monai_loads_what_we_export_and_computes_what_we_compute(swin: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"monai.{suffix}"

    done = medssl("weights", "export", swin, path, "--as", "monai-swinunetr", "--out-channels", 3, "--json")

    assert done.exit_code == Exit.OK, done.stderr
    assert json.loads(done.stdout)["num_tensors"] == 167
    assert json.loads(done.stdout)["num_fresh"] == 2  # the last layer has 3 classes, not 21; the decoder was imported
    network = SwinUNETR(1, 3, feature_size=FS, use_v2=True).double().eval()
    load: Callable[[Path], Any] = safetensors.torch.load_file if suffix == "safetensors" else torch.load
    network.load_state_dict(load(path), strict=True)
    x = torch.rand(1, 1, 64, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = network_of(load_encoder(swin)).double()(x)
        hidden = network.swinViT(x, True)
        theirs = [
            network.encoder1(x),
            network.encoder2(hidden[0]),
            network.encoder3(hidden[1]),
            network.encoder4(hidden[2]),
            hidden[3],
            network.encoder10(hidden[4]),
        ]
    for ours, reference in zip(maps, theirs, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


def test_vocomni_goes_out_as_it_came_in(swin: Path, swin_file: Path, tmp_path: Path) -> None:
    done = medssl("weights", "export", swin, tmp_path / "back.pt", "--out-channels", 21, "--json")

    before, after = torch.load(swin_file, weights_only=True), torch.load(tmp_path / "back.pt", weights_only=True)
    assert json.loads(done.stdout)["num_fresh"] == 0
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_nnunet_goes_out_as_it_came_in(nnunet: Path, nnunet_file: Path, tmp_path: Path) -> None:
    done = medssl("weights", "export", nnunet, tmp_path / "back.pth", "--as", "nnunet", "--out-channels", 21)

    assert done.exit_code == Exit.OK, done.stderr
    before = torch.load(nnunet_file, weights_only=True)["network_weights"]
    after = torch.load(tmp_path / "back.pth", weights_only=True)["network_weights"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("name", "depths"), [("plainconv", "num_convs"), ("resenc", "num_blocks")])
def test_a_plan_for_thick_slices_comes_in_and_goes_out_as_it_came(name: str, depths: str, tmp_path: Path) -> None:
    """Its arrays are [Z, Y, X]: the first level looks at one slice at a time, and z is halved last."""
    strides, kernels = [[1, 1, 1], [1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    shapes = published.nnunet(
        CHANNELS,
        DEPTHS,
        residual=name == "resenc",
        strides=tuple(map(tuple, strides)),
        kernels=tuple(map(tuple, kernels)),
    )
    tensors = published.with_nnunet_names(published.filled(shapes))
    torch.save({"network_weights": tensors}, tmp_path / "thick.pth")

    for axes in ("zyx", "xyz"):
        done = medssl("weights", "import", tmp_path / "thick.pth", tmp_path / axes, "--axes", axes)
        assert done.exit_code == Exit.OK, done.stderr
    back = medssl("weights", "export", tmp_path / "zyx", tmp_path / "back.pth", "--as", "nnunet", "--out-channels", 21)

    encoder = load_encoder(tmp_path / "zyx")
    assert encoder.backbone.options == {
        "channels": [4, 6, 8],
        "strides": [1, [2, 2, 1], 2],
        "kernel_sizes": [[3, 3, 1], 3, 3],
        depths: [2, 2, 2],
    }
    x = torch.rand(1, 1, 8, 12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        ours = network_of(encoder).double()(x)
        theirs = network_of(load_encoder(tmp_path / "xyz")).double()(x.permute(0, 1, 4, 3, 2))
    assert [tuple(level.shape[2:]) for level in ours] == [(8, 12, 6), (4, 6, 6), (2, 3, 3)]
    for level, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(level, reference.permute(0, 1, 4, 3, 2), rtol=1e-9, atol=1e-9)

    assert back.exit_code == Exit.OK, back.stderr
    after = torch.load(tmp_path / "back.pth", weights_only=True)["network_weights"]
    assert tensors.keys() == after.keys()
    assert all(torch.equal(tensors[key], after[key]) for key in tensors)
    plan = json.loads((tmp_path / "back.plan.json").read_text())["configurations"]["3d_fullres"]["architecture"]
    assert (plan["arch_kwargs"]["strides"], plan["arch_kwargs"]["kernel_sizes"]) == (strides, kernels)


def run_with(backbone: Named, root: Path) -> Path:
    """A finished pre-training run, but for the training."""
    recipe = load_recipe(
        find_recipe("voco"),
        ["data.spacing_mm=[1.0, 1.5, 2.0]", "data.window_hu=[-150, 250]", "data.crop_size=[64, 48, 32]"],
    )
    run = start_run(root, "pretrain", recipe.model_copy(update={"backbone": backbone}), Manifest({"train": []}, {}))
    torch.manual_seed(0)
    state = dict(build_backbone(backbone).state_dict())
    safetensors.torch.save_file(state, run.encoder_path, {"backbone": json.dumps(backbone.model_dump())})
    return root


@pytest.mark.parametrize(("name", "depths"), [("plainconv", "num_convs"), ("resenc", "num_blocks")])
def test_a_run_goes_out_to_nnunet_with_all_its_names_and_a_plan(name: str, depths: str, tmp_path: Path) -> None:
    sizes = {"channels": [4, 6, 8], "strides": [1, 2, 2], depths: [2, 2, 2]}
    run = run_with(Named(name=name, **sizes), tmp_path / "run")

    done = medssl("weights", "export", run, tmp_path / "out.pth", "--as", "nnunet", "--out-channels", 21)

    assert done.exit_code == Exit.OK, done.stderr
    written = torch.load(tmp_path / "out.pth", weights_only=True)["network_weights"]
    literal = published.nnunet(CHANNELS, DEPTHS, residual=name == "resenc")
    expected = {alias: shape for one, shape in literal.items() for alias in published.nnunet_names(one)}
    assert {key: tuple(tensor.shape) for key, tensor in written.items()} == expected
    ours = load_encoder(run).weights
    kernel = next(key for key in ours if key.endswith("conv.weight"))
    assert torch.equal(written[f"encoder.{kernel}"], ours[kernel].permute(0, 1, 4, 3, 2))

    plan = json.loads((tmp_path / "out.plan.json").read_text())
    configuration = plan["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [2.0, 1.5, 1.0]
    assert configuration["patch_size"] == [32, 48, 64]
    assert configuration["normalization_schemes"] == ["CTNormalization"]
    architecture = configuration["architecture"]
    assert (
        architecture["network_class_name"].rpartition(".")[2]
        == {
            "plainconv": "PlainConvUNet",
            "resenc": "ResidualEncoderUNet",
        }[name]
    )
    assert architecture["arch_kwargs"]["strides"] == [[1] * 3, [2] * 3, [2] * 3]
    assert architecture["arch_kwargs"]["kernel_sizes"] == [[3] * 3] * 3
    assert architecture["arch_kwargs"]["features_per_stage"] == [4, 6, 8]
    # nnU-Net: clip to the percentiles, subtract the mean, divide by the deviation
    numbers = plan["foreground_intensity_properties_per_channel"]["0"]
    for hu, value in ((-1000, 0.0), (-150, 0.0), (50, 0.5), (250, 1.0), (3000, 1.0)):
        clipped = min(max(hu, numbers["percentile_00_5"]), numbers["percentile_99_5"])
        assert (clipped - numbers["mean"]) / numbers["std"] == pytest.approx(value)


def test_what_cannot_go_out_is_refused(swin: Path, nnunet: Path, tmp_path: Path) -> None:
    (tmp_path / "there.pt").touch()
    cases = {
        "E_WEIGHTS_FORM: swinunetr is no encoder of nnU-Net": (swin, tmp_path / "x.pth", "nnunet"),
        "E_WEIGHTS_FORM: plainconv is no encoder of a SwinUNETR": (nnunet, tmp_path / "x.pt", "monai-swinunetr"),
        "E_USAGE: --as tensorflow is not among": (swin, tmp_path / "x.pt", "tensorflow"),
        "E_USAGE: the file's name must end in one of": (nnunet, tmp_path / "x.safetensors", "nnunet"),
        "E_OUTPUT_EXISTS": (swin, tmp_path / "there.pt", "monai-swinunetr"),
        "E_NO_RUN": (tmp_path, tmp_path / "x.pt", "monai-swinunetr"),
    }
    for message, (source, path, target) in cases.items():
        done = medssl("weights", "export", source, path, "--as", target)
        assert done.exit_code == Exit.USAGE
        assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt"]
