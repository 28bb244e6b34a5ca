"""A network on many images in little memory: chunk by chunk, each computed again when its gradient is needed.

The loss sees all embeddings at once, and only one chunk's activations are kept at a time. That is gradient caching, Gao
et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, https://arxiv.org/abs/2101.06983: the
first pass keeps embeddings, the second computes each chunk anew, with the same random numbers, and sends it its share
of the gradient.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def in_chunks(network: nn.Module, embed: Callable[[Tensor], Tensor], images: Tensor, size: int | None) -> Tensor:
    """Embeddings of images; the gradients are those of one pass, but for batch norms that learn statistics.

    Args:
        network: That `embed` calls.
        embed: Images [n, ...] to embeddings [n, E]; called again in the backward pass: modes by `in_mode`.
        images: [N, ...].
        size: Images per chunk; None for all at once, keeping all activations.

    Returns:
        [N, E].
    """
    if size is None or not torch.is_grad_enabled():
        return torch.cat([embed(chunk) for chunk in images.split(size or max(1, len(images)))])

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), _keeping_statistics(network)

    parts = [checkpoint(embed, chunk, use_reentrant=False, context_fn=contexts) for chunk in images.split(size)]
    return torch.cat(parts)


@contextlib.contextmanager
def _keeping_statistics(network: nn.Module) -> Iterator[None]:
    """Computing a chunk again must not count its statistics again."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
