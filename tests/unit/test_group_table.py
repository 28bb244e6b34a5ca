"""How much clusters say of a group: against the definition, and what fades."""

import math

import pytest
import torch

from medssl_cli.nn.clusters.group_table import FADE, GroupTable


def literal(pairs: list[tuple[int, int]]) -> float:
    """Mutual information over the geometric mean of the entropies, by counting pairs of (cluster, group)."""
    number = len(pairs)

    def share(values: list[object], value: object) -> float:
        return values.count(value) / number

    clusters, groups = [cluster for cluster, _ in pairs], [group for _, group in pairs]
    mutual = sum(
        share(pairs, pair) * math.log(share(pairs, pair) / share(clusters, pair[0]) / share(groups, pair[1]))
        for pair in set(pairs)
    )
    entropies = [-sum(share(each, v) * math.log(share(each, v)) for v in set(each)) for each in (clusters, groups)]
    return mutual / math.sqrt(entropies[0] * entropies[1])


def filled(pairs: list[tuple[int, int]], num_clusters: int = 4) -> GroupTable:
    table = GroupTable(num_clusters)
    table.begin(torch.tensor([group for _, group in pairs]))
    codes = torch.nn.functional.one_hot(torch.tensor([cluster for cluster, _ in pairs]), num_clusters).float()
    table.add(torch.arange(len(pairs)), codes)
    return table


@pytest.mark.parametrize("seed", range(4))
def test_information_is_that_of_the_definition(seed: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    pairs = [tuple(torch.randint(0, 3, (2,), generator=numbers).tolist()) for _ in range(30)]

    assert filled(pairs).information() == pytest.approx(literal(pairs), abs=1e-5)


def test_clusters_that_are_the_groups_say_all_and_those_of_one_group_nothing() -> None:
    assert filled([(0, 1), (0, 1), (2, 0), (2, 0)]).information() == pytest.approx(1, abs=1e-6)
    assert filled([(0, 0), (1, 0), (2, 0)]).information() == 0
    assert filled([(0, 0), (0, 1), (1, 0), (1, 1)]).information() == pytest.approx(0, abs=1e-6)
    assert GroupTable(3).information() == 0


def test_old_steps_fade_and_other_clusters_begin_anew() -> None:
    table = filled([(0, 0), (1, 1)])
    table.add(torch.tensor([0, 1]), torch.eye(4)[:2])

    assert table.counts[0, 0].item() == pytest.approx(1 + FADE)
    table.forget()
    assert table.counts.sum() == 0
    assert table.counts.shape == (4, 2)
