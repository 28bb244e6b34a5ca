"""What export finds out about the images of a training, for the model to know them by.

Shapes: B batch, S slices of a stack, E embedding.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.splits import shuffled
from medssl_cli.cache.store import Cache
from medssl_cli.data.selection import examples_of, read_images
from medssl_cli.deploy.parity import Comparison, faults_are_the_files
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.deploy.surprise import EmbeddingSummary
from medssl_cli.deploy.training_images import Extent, TrainingImages, ValueSpan, sizes_mm, value_ends
from medssl_cli.heads import Head
from medssl_cli.imaging.placement import ChannelImages
from medssl_cli.imaging.preprocessing import channel_images, network_input
from medssl_cli.imaging.tiling import centre_tile
from medssl_cli.imaging.volume import Volume
from medssl_cli.imaging.whole import whole_input
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.slices.encoder import mean_pool
from medssl_cli.preprocessing import Preprocessing

MOST_IMAGES: Final = 128
"""Images of the training, and as many of validation patients, whose voxels are looked at."""
LEAST_PATIENTS: Final = 10
"""With fewer nothing can be said of how far images lie from each other."""


class WithEmbedding(nn.Module):
    """A network that also gives the embedding `[B, E]` of its backbone, from the maps that it computes anyway.

    Args:
        network: Network as it is exported; of several the first one's backbone counts.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._backbone = [backbone_of(network)]

    def forward(self, image: Tensor, is_present: Tensor | None = None, positions_mm: Tensor | None = None) -> Any:
        """The network's answer, and the mean over space of the coarsest maps; of slices the mean of those there."""
        backbone, maps = self._backbone[0], []
        inputs = [each for each in (image, is_present, positions_mm) if each is not None]
        assert backbone is not None
        handle = backbone.register_forward_hook(lambda module, given, found: maps.append(found))
        answer = self.network(*inputs)
        handle.remove()
        embedding = backbone.pool(maps[0]).float()
        if image.ndim == backbone.spatial_dims + 3:
            slices = embedding.unflatten(0, (-1, image.shape[-1]))
            embedding = slices.mean(dim=1) if is_present is None else mean_pool(slices, is_present)
        return answer, embedding


def backbone_of(network: nn.Module) -> Backbone | None:
    """The first backbone of a network; None where it has none."""
    return next((module for module in network.modules() if isinstance(module, Backbone)), None)


def summary_of(
    run: Any, network: nn.Module, head: Head, preprocessing: Preprocessing, cache: Cache
) -> TrainingImages | None:
    """What the training images of a run were like, by the cache's records and a fixed choice of images.

    None if the cache has none of them.

    Args:
        run: See `deploy.parity.TrainedRun`.
        network: Network as it is exported, on the CPU.
        head: How its answers are read.
        preprocessing: What it sees of an image.
        cache: The cache of the run; what it has lost does not count.
    """
    known = {record.item_id: record for record in cache.records()}
    train, val = (_present(run.manifest, known, part) for part in ("train", "val"))
    if not train:
        return None
    learnt = {record.patient_key for record in train}
    sampled = _chosen(train)
    others = _chosen([record for record in val if record.patient_key not in learnt])
    ends: list[list[tuple[float, float]]] = [[] for _ in preprocessing.rules]
    has_embeddings = backbone_of(network) is not None and len(learnt) >= LEAST_PATIENTS
    embed = _embedder(network, head, preprocessing) if has_embeddings else None
    embedded = []
    for example in examples_of(cache, sampled, preprocessing):
        images = read_images(cache, example)
        for own, image in zip(ends, images, strict=True):
            own.append(value_ends(image.voxels))
        embedded += [] if embed is None else [embed(images)]
    embeddings = None
    if embed is not None:
        apart = [embed(read_images(cache, example)) for example in examples_of(cache, others, preprocessing)]
        patients = [record.patient_key for record in sampled]
        embeddings = EmbeddingSummary.of(np.array(embedded), patients, np.array(apart))
    with_spacing = [sizes_mm(each.affine_array, each.shape) for each in train if each.spacing_kind != "unknown"]
    spacings, views = zip(*with_spacing, strict=True) if with_spacing else ((), ())
    return TrainingImages(
        num_patients=len(learnt),
        num_images=len(train),
        modalities=dict(sorted(Counter(record.modality for record in train).items())),
        spacing_mm=Extent.of(spacings) if spacings else None,
        field_of_view_mm=Extent.of(views) if views else None,
        values=tuple(ValueSpan.of(own) for own in ends),
        num_sampled=len(sampled),
        embeddings=embeddings,
    )


def centre_input(images: Volume | ChannelImages, preprocessing: Preprocessing, head: Head) -> tuple[NDArray[Any], ...]:
    """What a network gets whose embedding stands for an image: the image, or the tile nearest to its middle."""
    tile = getattr(head, "tile_size", None)
    if tile is None:
        return whole_input(images, preprocessing, num_slices=getattr(head, "num_slices", None)).arrays
    seen = network_input(channel_images(images), preprocessing)
    return (centre_tile(seen.voxels, tile, getattr(head, "overlap", 0.0))[None],)


@torch.inference_mode()
def compare_embeddings(
    expected: nn.Module,
    model: OnnxModel,
    head: Head,
    preprocessing: Preprocessing,
    examples: Sequence[ChannelImages],
    found: Comparison,
) -> None:
    """Take the embeddings of whole images into account, those of the run against those of the file.

    Args:
        expected: The run's network with its embedding.
        model: The file.
        head: The run's.
        preprocessing: The run's.
        examples: Real images, of each example one per channel.
        found: Comparison of the answers.

    Raises:
        GateError: `E_PARITY`.
    """
    expected.eval()
    for images in examples:
        inputs = centre_input(images, preprocessing, head)
        with faults_are_the_files():
            answers = model.compute(*inputs)
        found.measure(expected(*map(torch.from_numpy, inputs))[1].numpy(), answers[-1])


def _embedder(network: nn.Module, head: Head, preprocessing: Preprocessing) -> Any:
    whole = WithEmbedding(network).eval()

    @torch.inference_mode()
    def embed(images: Sequence[Volume]) -> NDArray[np.float64]:
        inputs = centre_input(images, preprocessing, head)
        embedding: NDArray[np.float64] = whole(*map(torch.from_numpy, inputs))[1][0].double().numpy()
        return embedding

    return embed


def _present(manifest: dict[str, Any], known: dict[str, ItemRecord], part: str) -> list[ItemRecord]:
    entries = manifest["splits"].get(part, ())
    return [known[entry["item"]] for entry in entries if entry["item"] in known]


def _chosen(records: Sequence[ItemRecord]) -> list[ItemRecord]:
    by_id = {record.item_id: record for record in records}
    return [by_id[item] for item in shuffled(sorted(by_id), 0)[:MOST_IMAGES]]
