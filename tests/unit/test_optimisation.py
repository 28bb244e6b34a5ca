"""Learning rate, weight decay and averaged weights, against their closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medssl_cli.base.errors import UsageError
from medssl_cli.engine import optimisation
from medssl_cli.engine.optimisation import AveragedWeights, Budget, build_optimizer, learning_rate, set_learning_rate
from medssl_cli.engine.randomness import Purpose, generator, implicit_randomness, stream_seed
from medssl_cli.nn.backbones import Backbone, unet
from medssl_cli.recipe import Optimizer, Schedule, Transfer

PEAK = 2.0
shares = st.floats(0, 1)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 0.0),
        (0.05, 1.0),  # half of the warm-up of one tenth
        (0.1, 2.0),  # its end: the peak
        (
            0.1 + 0.9 / 3,
            0.5 + 1.5 * 0.75,
        ),  # a third of the cosine: (1 + cos 60 deg) / 2 = 3/4 of the way above the floor
        (0.55, 0.5 + 1.5 * 0.5),  # half of it
        (1.0, 0.5),  # the floor: a quarter of the peak
    ],
)
def test_warm_up_then_cosine_to_the_floor(progress: float, expected: float) -> None:
    schedule = Schedule(warmup_fraction=0.1, final_fraction=0.25)

    assert learning_rate(progress, PEAK, schedule) == pytest.approx(expected)


@given(progress=shares, warmup=st.floats(0, 0.99), final=shares)
def test_the_rate_stays_between_nothing_and_the_peak(progress: float, warmup: float, final: float) -> None:
    rate = learning_rate(progress, PEAK, Schedule(warmup_fraction=warmup, final_fraction=final))

    assert 0 <= rate <= PEAK * (1 + 1e-12)
    if progress >= warmup:
        assert rate >= PEAK * final * (1 - 1e-12)


@given(first=shares, second=shares)
def test_the_rate_rises_before_the_peak_and_falls_after_it(first: float, second: float) -> None:
    schedule = Schedule(warmup_fraction=0.3)
    early, late = sorted((first, second))

    rates = learning_rate(early, PEAK, schedule), learning_rate(late, PEAK, schedule)

    if late <= 0.3:
        assert rates[0] <= rates[1] + 1e-12
    if early >= 0.3:
        assert rates[0] >= rates[1] - 1e-12


def test_without_warm_up_training_begins_at_the_peak() -> None:
    assert learning_rate(0, PEAK, Schedule(warmup_fraction=0)) == PEAK


@pytest.mark.parametrize(("step", "share"), [(0, 0), (1, 0.0002), (2500, 0.5), (5000, 1), (127_500, 0.5), (250_000, 0)])
def test_a_warm_up_in_steps_gives_the_published_rates(step: int, share: float) -> None:
    # 5,000 steps up; down over 245,000, half of which are over at 127,500, where the cosine is at a half.
    schedule = Schedule(warmup_steps=5000)

    assert learning_rate(step / 250_000, PEAK, schedule, steps=250_000) == pytest.approx(PEAK * share, abs=1e-12)


def test_amsgrad_divides_by_the_largest_second_moment() -> None:
    def moved(amsgrad: bool) -> list[float]:
        module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(module.weight)
        optimizer = build_optimizer(module, Optimizer(learning_rate=0.1, weight_decay=0, amsgrad=amsgrad))
        places = [0.0]
        for gradient in (10.0, *[0.1] * 300):
            module.weight.grad = torch.full((1, 1), gradient)
            optimizer.step()
            places.append(module.weight.item())
        return places

    # After one large gradient the plain second moment decays by 0.999 a step and steps grow again; amsgrad keeps its
    # largest value, so with bias correction (it grows) its last step is the smaller one.
    plain, kept = moved(amsgrad=False), moved(amsgrad=True)
    assert plain[1] == pytest.approx(kept[1])
    assert abs(kept[-1] - kept[-2]) < 0.95 * abs(plain[-1] - plain[-2])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.PReLU(), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_matrices_and_kernels_decay(name: str) -> None:
    module = network()
    module[4].bias.requires_grad_(False)

    optimizer = build_optimizer(module, Optimizer(name=name, learning_rate=0.1, weight_decay=0.3))  # type: ignore[arg-type]

    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decay.get(id(parameter)) for name, parameter in module.named_parameters()}
    assert names == {
        "0.weight": 0.3,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.0,
        "4.weight": 0.3,
        "4.bias": None,  # not trained at all
    }


def test_decay_alone_shrinks_weights_by_rate_times_decay() -> None:
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone(), module.bias.detach().clone()
    optimizer = build_optimizer(module, Optimizer(learning_rate=0.1, weight_decay=0.5))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)

    optimizer.step()

    # AdamW, Loshchilov and Hutter: w <- w - lr * decay * w; the gradient's part is zero.
    torch.testing.assert_close(module.weight.detach(), before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(module.bias.detach(), before[1])


def test_sgd_is_nesterovs_where_it_has_momentum() -> None:
    def moved(momentum: float) -> float:
        module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(module.weight)
        options = Optimizer(name="sgd", learning_rate=0.1, momentum=momentum, weight_decay=0)
        optimizer = build_optimizer(module, options)
        for _ in range(2):
            module.weight.grad = torch.ones(1, 1)
            optimizer.step()
        return -module.weight.item()

    # Gradient 1, rate 0.1. Plain: 2 steps of 0.1. Nesterov: velocities 1 and 1 + m, steps 0.1 * (1 + m v).
    assert moved(0.0) == pytest.approx(0.2)
    assert moved(0.9) == pytest.approx(0.1 * (1 + 0.9 * 1) + 0.1 * (1 + 0.9 * 1.9))


def test_all_groups_get_the_rate() -> None:
    optimizer = build_optimizer(network(), Optimizer(learning_rate=0.1))

    set_learning_rate(optimizer, 0.025)

    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]


def test_averaged_weights_follow_the_closed_form() -> None:
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(module.weight)
    average = AveragedWeights(module, decay=0.5)
    nn.init.ones_(module.weight)

    # The gap to a network at rest shrinks by the decay of each step: (1 + step) / (10 + step) until that exceeds 0.5,
    # which it does from step 8 on (9/18).
    gap = 1.0
    for step in range(12):
        average.update(module, step)
        gap *= min(0.5, (1 + step) / (10 + step))
        assert average.network.weight.item() == pytest.approx(1 - gap, rel=1e-12)


def test_averaged_weights_are_a_copy_without_gradients_whose_statistics_follow() -> None:
    module = network()
    average = AveragedWeights(module, decay=0.9)
    module(torch.randn(2, 1, 3, 3, 3, generator=torch.Generator().manual_seed(0)))

    average.update(module, step=100)

    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(average.network[1].running_mean, module[1].running_mean)
    assert module[1].running_mean.abs().sum() > 0


def test_a_budget_of_steps_is_spent_step_by_step() -> None:
    budget = Budget(steps=4)

    assert [budget.progress(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert budget.last_step == 4


def test_a_budget_of_minutes_counts_earlier_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(optimisation, "monotonic", lambda: now)
    budget = Budget(steps=4, max_minutes=2, elapsed_s=30)
    assert budget.progress(10**6) == 0.25  # 30 s of 120 s, whatever the step

    now = 1030.0

    assert (budget.spent_s, budget.progress(0)) == (60, 0.5)
    now = 5000.0
    assert budget.progress(0) == 1


def test_streams_differ_by_seed_purpose_step_and_rank_and_by_nothing_else() -> None:
    seeds = {
        stream_seed(seed, purpose, step, rank)
        for seed in range(3)
        for purpose in Purpose
        for step in range(20)
        for rank in range(2)
    }

    assert len(seeds) == 3 * len(Purpose) * 20 * 2
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream_seed(1, Purpose.LOSS, 2, 3) == stream_seed(1, Purpose.LOSS, 2, 3)
    assert torch.equal(
        torch.rand(3, generator=generator(0, Purpose.LOSS, 5)), torch.rand(3, generator=generator(0, Purpose.LOSS, 5))
    )


def test_implicit_randomness_is_a_function_of_the_stream_and_leaves_no_trace() -> None:
    torch.manual_seed(99)
    expected = torch.rand(2)
    torch.manual_seed(99)

    with implicit_randomness(0, Purpose.NETWORK, step=3):
        first = torch.rand(4)
    after = torch.rand(2)
    with implicit_randomness(0, Purpose.NETWORK, step=3):
        again = torch.rand(4)

    assert torch.equal(first, again)
    assert torch.equal(after, expected)
    assert math.isfinite(float(first.sum()))


def test_within_a_time_limit_a_warm_up_in_steps_counts_steps_and_the_cosine_spans_the_time() -> None:
    schedule = Schedule(warmup_steps=4)

    rising = [learning_rate(0.1 * step, 2.0, schedule, step=step) for step in range(4)]

    assert rising == pytest.approx([0.0, 0.5, 1.0, 1.5])
    assert learning_rate(0.5, 2.0, schedule, step=4) == pytest.approx(1.0)
    assert learning_rate(1.0, 2.0, schedule, step=9) == pytest.approx(0.0)


class TinyTask(nn.Module):
    """A backbone and a head, each with a matrix and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)


def trained(options: Optimizer, transfer: Transfer | None, *, steps: int) -> list[dict[str, torch.Tensor]]:
    """Weights before and after each step at rate 0.1; every gradient is 1."""
    torch.manual_seed(0)
    module = TinyTask()
    optimizer = build_optimizer(module, options, transfer=transfer)
    states = [{name: tensor.clone() for name, tensor in module.state_dict().items()}]
    for step in range(steps):
        set_learning_rate(optimizer, 0.1, step=step)
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    return states


SGD = Optimizer(name="sgd", learning_rate=0.1, weight_decay=0, momentum=0)
ADAMW = Optimizer(learning_rate=0.1, weight_decay=0.1)


def test_the_encoder_moves_by_its_share_of_the_rate() -> None:
    before, after = trained(SGD, Transfer(encoder_scale=0.25), steps=1)

    for name, tensor in after.items():
        share = 0.25 if name.startswith("backbone.") else 1.0
        torch.testing.assert_close(before[name] - tensor, torch.full_like(tensor, 0.1 * share))


@pytest.mark.parametrize("options", [SGD, ADAMW, Optimizer(name="lars", learning_rate=0.1)], ids=lambda o: o.name)
def test_a_frozen_encoder_keeps_its_weights_and_then_learns(options: Optimizer) -> None:
    states = trained(options, Transfer(freeze_steps=2), steps=3)

    for name, first in states[0].items():
        moved = [not torch.equal(first, state[name]) for state in states[1:]]
        assert moved == ([False, False, True] if name.startswith("backbone.") else [True, True, True])


def levelled(backbone: nn.Module, transfer: Transfer) -> dict[str, float]:
    """Share of the rate of each parameter of a task with this backbone."""
    module = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(2, 2)})
    optimizer = build_optimizer(module, ADAMW, transfer=transfer)
    set_learning_rate(optimizer, 1.0)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    return {name: rates[id(parameter)] for name, parameter in module.named_parameters()}


def test_each_finer_level_has_its_share_of_the_next_ones_rate() -> None:
    backbone = unet.build(1, 2, channels=(2, 2, 2), strides=(1, 2, 2), num_res_units=0)

    rates = levelled(backbone, Transfer(encoder_scale=0.5, layer_decay=0.1))

    expected = {"backbone.levels.0.": 0.005, "backbone.levels.1.": 0.05, "backbone.levels.2.": 0.5, "head.": 1.0}
    assert len(rates) > 4
    for name, rate in rates.items():
        assert rate == pytest.approx(next(value for start, value in expected.items() if name.startswith(start)))


def test_a_backbone_that_tells_no_levels_takes_no_decay_by_level() -> None:
    class Mute(Backbone):
        def __init__(self) -> None:
            super().__init__(channels=(1,), strides=(1,), embedding_levels=(0,))
            self.only = nn.Conv3d(1, 1, 1)

        def forward(self, images: torch.Tensor, hidden: torch.Tensor | None = None) -> list[torch.Tensor]:
            return [self.only(images)]

    with pytest.raises(UsageError, match=r"E_RECIPE: transfer\.layer_decay"):
        levelled(Mute(), Transfer(layer_decay=0.9))
    assert set(levelled(Mute(), Transfer(encoder_scale=0.9)).values()) == {0.9, 1.0}


def test_a_recipe_without_decay_by_level_is_written_as_before() -> None:
    assert Transfer().model_dump() == {"encoder_scale": 1.0, "freeze_steps": 0}
    assert Transfer(layer_decay=0.9).model_dump()["layer_decay"] == 0.9


def test_by_default_the_encoder_learns_like_the_rest() -> None:
    """To the bit, and in the same groups, so that checkpoints of earlier versions go on."""
    module = TinyTask()

    assert len(build_optimizer(module, ADAMW, transfer=Transfer()).param_groups) == 2
    apart = build_optimizer(module, ADAMW, transfer=Transfer(encoder_scale=0.5))
    assert [group["weight_decay"] for group in apart.param_groups] == [0.1, 0.0, 0.1, 0.0]
    for plain, default in zip(trained(ADAMW, None, steps=3), trained(ADAMW, Transfer(), steps=3), strict=True):
        assert all(torch.equal(plain[name], tensor) for name, tensor in default.items())


@pytest.mark.parametrize(
    ("warmup", "period", "zeros", "steps", "last"),
    [(100, 3000, (3000, 8800, 14600), 72_000, 3.1e-5), (50, 500, (500, 1400, 2300), 8_000, 2.25e-4),
     (50, 1000, (1000, 2900), 200_000, 1.62e-4), (100, 1000, (1000, 2800), 40_000, 2.25e-4)],
)  # fmt: skip
def test_a_rate_that_rises_again_is_that_of_the_published_runs(
    warmup: int, period: int, zeros: tuple[int, ...], steps: int, last: float
) -> None:
    """As measured on the authors' code: BTCV, MM-WHS CT, AMOS22 and FLARE22, peak 3e-4."""
    schedule = Schedule(warmup_steps=warmup, period_steps=period)

    def rate(step: int) -> float:
        return learning_rate(step / steps, 3e-4, schedule, steps=steps, step=step)

    assert [rate(step) for step in zeros] == pytest.approx([0.0] * len(zeros), abs=1e-12)
    assert rate(steps) == pytest.approx(last, rel=0.02)
    assert rate(warmup // 2) == pytest.approx(1.5e-4)
    assert rate(warmup) == pytest.approx(3e-4)
    assert learning_rate(0.5, 3e-4, schedule, steps=None, step=zeros[0]) == pytest.approx(0, abs=1e-12)


def test_a_period_shorter_than_the_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer warmup_steps"):
        Schedule(warmup_steps=100, period_steps=100)
