"""What matches what: each anchor must find the right one among its candidates, and nothing else is asked.

Losses are computed in float32 or wider, also under autocast, over the batches of all processes: keys are gathered with
gradients, and the mean of a loss over the processes is the loss of the whole batch.

Shapes: A anchors, N candidates, B images of this process, W processes, E projection.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl_cli.nn.distributed import gather, rank, sum_over_processes, world_size


class Contrast(NamedTuple):
    """How well anchors find what they belong to.

    Args:
        loss: Mean cross entropy of the right candidates, a scalar.
        accuracy: Detached share of the anchors whose best score is that of the right candidate.
        no_information: Detached loss of equal scores: the mean logarithm of the number of candidates.
    """

    loss: Tensor
    accuracy: Tensor
    no_information: Tensor


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., E] of length 1, in float32 or wider, also under autocast."""
    with torch.autocast(vectors.device.type, enabled=False):
        return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def matched(
    scores: Tensor, right: Tensor, is_candidate: Tensor | None = None, *, is_counted: Tensor | None = None
) -> Contrast:
    """Cross entropy of the right one among the candidates of each anchor.

    Args:
        scores: Scores of every anchor with everything, divided by the temperature, [A, N].
        right: Which of them each anchor belongs to, int64 [A].
        is_candidate: What takes part, bool [A, N]; the right ones do in any case. None for everything.
        is_counted: Which anchors count, bool [A]; the mean is that over all that count in any process. None for all.

    Returns:
        The loss is the mean logarithm of the numbers of candidates where all scores are equal.
    """
    counts = torch.full((len(scores),), scores.shape[1], device=scores.device)
    if is_candidate is not None:
        is_candidate = is_candidate.scatter(1, right[:, None], value=True)
        scores = scores.masked_fill(~is_candidate, -torch.inf)
        counts = is_candidate.sum(dim=1)
    losses = F.cross_entropy(scores, right, reduction="none")
    is_found = scores.detach().argmax(dim=1) == right
    terms = (losses, is_found.to(scores.dtype), counts.to(scores.dtype).log())
    if is_counted is None:
        return Contrast(*(term.mean() for term in terms))
    number = sum_over_processes(is_counted.sum()).clamp(min=1) / world_size()
    return Contrast(*((term * is_counted).sum() / number for term in terms))


def view_contrast(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float,
    patients: Tensor | None = None,
    is_present: Tensor | None = None,
) -> Contrast:
    """Both views of an image attract each other, all other views of the batch repel: NT-Xent.

    SimCLR, equation 1: https://arxiv.org/abs/2002.05709. The mean over all 2 W B anchors; the released code adds the
    means of both directions, which is twice as much.

    Args:
        first: Projections of the first view of each image, [B, E], of any length.
        second: Projections of the second view.
        temperature: Divides the cosines.
        patients: Number of each image's patient, int64 [B]: other images of the same one are not repelled. None repels
            all.
        is_present: Which of the images take part, bool [B]. None for all.

    Returns:
        The loss is log(2 W B - 1) where all projections are equal and all patients different.
    """
    own = torch.cat([unit(first), unit(second)])
    keys = torch.cat([gather(part) for part in own.chunk(2)])
    images, number = len(first), len(keys) // 2
    anchors = torch.arange(images, device=own.device) + rank() * images
    anchors = torch.cat([anchors, anchors + number])
    with torch.autocast(own.device.type, enabled=False):
        scores = own @ keys.T / temperature
    is_candidate = torch.ones_like(scores, dtype=torch.bool)
    if patients is not None:
        everyone = gather(patients).repeat(2)
        is_candidate = everyone[anchors][:, None] != everyone
    is_candidate = is_candidate.scatter(1, anchors[:, None], value=False)
    if is_present is not None:
        is_candidate &= gather(is_present).repeat(2)
        is_present = is_present.repeat(2)
    return matched(scores, (anchors + number) % (2 * number), is_candidate, is_counted=is_present)


def key_contrast(queries: Tensor, keys: Tensor, *, temperature: float, patients: Tensor | None = None) -> Contrast:
    """Each query must find the key of its own image among the keys of all processes.

    Args:
        queries: Projections of one view of each image, [B, E], of any length.
        keys: Projections of another view, by another network; as they are in their order.
        temperature: Divides the cosines.
        patients: See `view_contrast`.

    Returns:
        The loss is log(W B) where all keys are equal and all patients different.
    """
    everything = gather(unit(keys))
    right = torch.arange(len(queries), device=keys.device) + rank() * len(queries)
    is_candidate = None
    if patients is not None:
        is_candidate = patients[:, None] != gather(patients)
    with torch.autocast(queries.device.type, enabled=False):
        scores = unit(queries) @ everything.T / temperature
    return matched(scores, right, is_candidate)


def mean_log_candidates(patients: Tensor, batch_size: int, *, per_image: int, num_batches: int = 200) -> float:
    """Mean logarithm of the number of candidates, if images of the anchor's patient are none but for the right one.

    Args:
        patients: Number of the patient of each image of the training set, int64 [N].
        batch_size: Images of all processes together.
        per_image: Candidates that each image of another patient is.
        num_batches: Batches to draw.

    Returns:
        log(1 + per_image (batch_size - 1)) where all patients are different.
    """
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for _ in range(num_batches):
        batch = patients[torch.randperm(len(patients), generator=generator)[:batch_size]].cpu()
        same = (batch[:, None] == batch).sum(dim=1)
        total += float((1 + per_image * (len(batch) - same)).double().log().mean())
    return total / num_batches
