"""What nnU-Net's predictor does for one scan, with a network of the size of its 3D plans and weights of seed 0.

`PYTHON -m tests.bench.nnunet_infer SCAN FOLDER CLASSES SPACING` runs it on the CPU with one thread; PYTHON belongs
to an environment with `nnunetv2`. It reads NIfTI only, and imports nothing of medssl.
"""

import sys
from pathlib import Path
from typing import Any

TILE = (96, 96, 96)
STAGES = 6


def plans_of(spacing: float) -> dict[str, Any]:
    """Plans as `nnUNetv2_plan_experiment` writes them for a CT, with axes in its order (z, y, x)."""
    arguments = {
        "n_stages": STAGES,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * STAGES,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (STAGES - 1)],
        "n_conv_per_stage": [2] * STAGES,
        "n_conv_per_stage_decoder": [2] * (STAGES - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    resampling = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(TILE),
        "median_image_size_in_voxels": list(TILE),
        "spacing": [spacing] * 3,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **resampling},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    properties = {"max": 1000.0, "mean": 40.0, "median": 40.0, "min": -1000.0, "percentile_00_5": -175.0,
                  "percentile_99_5": 250.0, "std": 100.0}  # fmt: skip
    return {
        "dataset_name": "Dataset001_Bench",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [spacing] * 3,
        "original_median_shape_after_transp": list(TILE),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": properties},
    }


def main(scan: str, folder: str, num_classes: int, spacing: float) -> None:
    """Segment one scan and write its mask."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.set_num_threads(1)
    torch.manual_seed(0)
    plans = PlansManager(plans_of(spacing))
    configuration = plans.get_configuration("3d_fullres")
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        num_classes,
        deep_supervision=False,
    ).eval()
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    labels = {"background": 0, **{f"class_{number}": number for number in range(1, num_classes)}}
    predictor.manual_initialization(
        network,
        plans,
        configuration,
        [network.state_dict()],
        {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii"},
        "nnUNetTrainer",
        None,
    )
    Path(folder).mkdir()
    predictor.predict_from_files_sequential([[scan]], [str(Path(folder) / "mask")])


if __name__ == "__main__":
    scan, folder, num_classes, spacing = sys.argv[1:]
    main(scan, folder, int(num_classes), float(spacing))
