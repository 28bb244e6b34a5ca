"""What MONAI's tutorials do for one scan: dictionary transforms, an eager sliding window, inverted transforms, a file.

`python -m tests.bench.eager_infer SCAN FOLDER NETWORK CLASSES SPACING` runs it on the CPU with one thread.
"""

import sys
from pathlib import Path
from typing import Any, Literal, get_args

TILE = (96, 96, 96)
WINDOW_HU = (-175.0, 250.0)
OVERLAP = 0.5
NetworkName = Literal["unet", "plainconv", "swinunetr", "pointwise"]


def bench_network(name: NetworkName, num_classes: int) -> Any:
    """A network with weights from seed 0: the same for both sides.

    Args:
        name: `unet`, a small residual U-Net; `plainconv`, nnU-Net's plain convolutions in the size of its 3D plans;
            `swinunetr`, 48 features; `pointwise`, one convolution, beside which everything else can be seen.
        num_classes: Outputs, background included.
    """
    import torch
    from monai.networks.nets import DynUNet, SwinUNETR, UNet

    torch.manual_seed(0)
    if name == "pointwise":
        return torch.nn.Conv3d(1, num_classes, 1).eval()
    if name == "plainconv":
        strides = (1, 2, 2, 2, 2, 2)
        filters = (32, 64, 128, 256, 320, 320)
        kernels = (3,) * len(strides)
        return DynUNet(3, 1, num_classes, kernels, strides, strides[1:], filters=filters).eval()
    if name == "swinunetr":
        return SwinUNETR(in_channels=1, out_channels=num_classes, feature_size=48).eval()
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=num_classes,
        channels=(16, 32, 64, 128),
        strides=(2, 2, 2),
        num_res_units=2,
    ).eval()


def main(scan: str, folder: str, network_name: NetworkName, num_classes: int, spacing: float) -> None:
    """Segment one scan and write its mask."""
    import torch
    from monai.data import Dataset, decollate_batch, list_data_collate
    from monai.inferers import sliding_window_inference
    from monai.transforms import (
        AsDiscreted,
        Compose,
        EnsureChannelFirstd,
        Invertd,
        LoadImaged,
        Orientationd,
        SaveImaged,
        ScaleIntensityRanged,
        Spacingd,
    )

    torch.set_num_threads(1)
    low, high = WINDOW_HU
    before = Compose(
        [
            LoadImaged("image", reader="PydicomReader" if Path(scan).is_dir() else None),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS"),
            Spacingd("image", pixdim=(spacing,) * 3, mode="bilinear"),
            ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
        ]
    )
    after = Compose(
        [
            Invertd("logits", transform=before, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("logits", argmax=True),
            SaveImaged("logits", output_dir=folder, output_postfix="mask", separate_folder=False, dtype="uint8"),
        ]
    )
    network = bench_network(network_name, num_classes)
    batch = list_data_collate([Dataset([{"image": scan}], before)[0]])
    with torch.inference_mode():
        batch["logits"] = sliding_window_inference(batch["image"], TILE, 1, network, overlap=OVERLAP, mode="gaussian")
    for one in decollate_batch(batch):
        after(one)


if __name__ == "__main__":
    scan, folder, name, num_classes, spacing = sys.argv[1:]
    main(scan, folder, next(each for each in get_args(NetworkName) if each == name), int(num_classes), float(spacing))
