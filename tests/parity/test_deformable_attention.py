"""Deformable attention by tensors against its equation written out place by place."""

import torch

from tests.parity import deformable_literal as literal
from tests.unit.test_deformable_attention import attention, random


def test_attention_is_its_equation() -> None:
    module, queries, slices = attention(is_trained=True), random(2, 6, 8), random(2, 6, 8, seed=1)
    is_present = torch.arange(6) < torch.tensor([[6], [4]])

    found = module(queries, slices, is_present)

    for volume, num_present in enumerate((6, 4)):
        expected = literal.attend(module, queries[volume], slices[volume], num_present)
        torch.testing.assert_close(found[volume], torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-12)
