"""The training loop: pairing, resume, EMA and the order of batches."""

import copy
import os
import signal

import numpy as np
import pytest
import torch
from conftest import score_model

from qcsbm.conservativeness.products import rademacher
from qcsbm.data.quantisation import to_unit
from qcsbm.runtime.errors import Diverged
from qcsbm.runtime.seeding import derive, generator
from qcsbm.schema.training import Regulariser, Training
from qcsbm.score.losses import training_loss
from qcsbm.score.models import build
from qcsbm.stages.train import SavedState
from qcsbm.training import checkpoint
from qcsbm.training.loop import BatchOrder, draw_batch, train
from qcsbm.training.regulariser import importance_times

SHAPE = (1, 4, 4)
NETWORK = dict(
    type="ncsnpp", nf=8, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[], dropout=0.1
)
SDE = dict(sigma_min=0.01, sigma_max=5.0)
TRAINING = Training(batch_size=8, lr=1e-3, warmup=5, dequantise=True, flip=True)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 17, (30, *SHAPE), dtype=np.uint8)


def fresh(parameterisation="score"):
    return build(
        SHAPE, score_model(parameterisation, parameterisation == "energy", NETWORK, SDE), seed=3
    )


def run(images, stop, state=None, regulariser=None, **options):
    return train(fresh(), images, 17, TRAINING, regulariser, 3, stop, state, **options)


def assert_same(a, b):
    for part in checkpoint.PARTS:
        x, y = getattr(a, part), getattr(b, part)
        assert x.keys() == y.keys()
        for name in x:
            assert torch.equal(x[name], y[name]), (part, name)


DIFFERENCES = {"estimator": "antisymmetric", "derivatives": "finite_differences"}


@pytest.mark.parametrize(
    "options", [{"estimator": "trace"}, {"estimator": "antisymmetric"}, DIFFERENCES]
)
def test_regulariser_of_weight_zero_changes_nothing(images, options):
    regulariser = Regulariser(weight=0.0, **options)
    assert_same(run(images, 12), run(images, 12, regulariser=regulariser))
    # The regulariser is live: a positive weight does change the weights.
    other = run(images, 12, regulariser=Regulariser(weight=1.0, **options))
    assert not torch.equal(
        run(images, 12).model["network.stem.weight"], other.model["network.stem.weight"]
    )


def test_building_and_training_leave_the_global_generator_where_it_was(images):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        states.append(run(images, 3))  # with dropout
        assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(*states)


def test_weights_without_a_seed_come_from_the_global_generator():
    torch.manual_seed(derive(3, "init"))
    first, second = (build(SHAPE, score_model("score", False, NETWORK, SDE)) for _ in range(2))
    assert torch.equal(first.network.stem.weight, fresh().network.stem.weight)
    assert not torch.equal(first.network.stem.weight, second.network.stem.weight)


@pytest.mark.parametrize(
    "every, micro_batch, derivatives",
    [(None, None, None), (7, 3, "autograd"), (7, 3, "finite_differences")],
)
def test_interrupted_training_ends_in_the_same_bytes(
    every, micro_batch, derivatives, images, tmp_path
):
    regulariser = every and Regulariser(
        weight=1.0, estimator="antisymmetric", every=every, derivatives=derivatives
    )
    training = TRAINING.model_copy(update={"micro_batch": micro_batch})

    def run(images, stop, state=None, **options):
        return train(fresh(), images, 17, training, regulariser, 3, stop, state, **options)

    saved = []

    def save(state):  # tensors of a live model go on changing, a file does not
        saved.append(tmp_path / f"{state.step}.safetensors")
        checkpoint.save(saved[-1], state)

    # What saving disturbed would be missing in the resumed trainings, which save nothing.
    whole = run(images, 60, save=save, due=iter([False, True] * 30).__next__)
    assert len(saved) == 30 - 1
    for path in (saved[3], saved[-1]):  # in the first and in the second window of the curve
        resumed = run(images, 60, state=checkpoint.load(path))
        assert_same(whole, resumed)
        assert whole.curve == resumed.curve and resumed.window == []


PARTS = {"weight": 0.5, "batch_size": 5, "probes": 2}


@pytest.mark.parametrize("options", [{"estimator": "trace"}, DIFFERENCES])
@pytest.mark.parametrize("every", [1, 3])
def test_micro_batch_of_the_whole_batch_changes_no_byte(every, options, images):
    regulariser = Regulariser(**PARTS, **options, every=every)
    whole = run(images, 7, regulariser=regulariser)
    at_once = TRAINING.model_copy(update={"micro_batch": 8})
    state = train(fresh(), images, 17, at_once, regulariser, 3, 7)
    assert_same(whole, state)
    assert whole.curve == state.curve


@pytest.mark.parametrize("method", ["u", "c", "trace", "antisymmetric"])
def test_gradient_of_micro_batches_is_that_of_the_batch(method, images):
    # After one step from zero the first moment is (1 − β₁) times the gradient.
    regulariser = None if method in "uc" else Regulariser(**PARTS, estimator=method)
    settings = {**NETWORK, "dropout": 0.0, "init_scale": 1.0}
    energy = method == "c"
    moments = []
    for micro_batch in (None, 1, 3, 8):
        training = TRAINING.model_copy(update={"micro_batch": micro_batch, "grad_clip": 1e9})
        parameterisation = "energy" if energy else "score"
        model = build(SHAPE, score_model(parameterisation, energy, settings, SDE), seed=3)
        state = train(model, images, 17, training, regulariser, 3, 1)
        moments.append(torch.cat([m.flatten() for m in state.exp_avg.values()]))
    for moment in moments[1:]:
        # float32 rounds at 6e-8, and second derivatives are sums of terms that cancel.
        assert (moment - moments[0]).norm() < 1e-5 * moments[0].norm()


def test_dropout_draws_its_masks_part_by_part(images):
    in_parts = TRAINING.model_copy(update={"micro_batch": 5})
    model = fresh()
    with torch.no_grad():  # away from its output of zero, in which no mask would be seen
        for parameter in model.parameters():
            parameter.add_(0.1)
    start = copy.deepcopy(model)
    ((_, dsm, _, _),) = train(model, images, 17, in_parts, None, 3, 1).curve
    start.train()
    x_0, t, z = draw_batch(images, 17, BatchOrder(30, 8, 3)(1), TRAINING, start, 3, 1)
    torch.manual_seed(derive(3, "dropout", 1))
    parts = [training_loss(start, x_0[p], t[p], z[p]).dsm for p in (slice(5), slice(5, 8))]
    assert dsm == pytest.approx(torch.cat(parts).mean().item(), rel=1e-6)
    torch.manual_seed(derive(3, "dropout", 1))
    at_once = training_loss(start, x_0, t, z).dsm.mean().item()
    assert dsm != pytest.approx(at_once, rel=1e-4)


@pytest.fixture
def saved(tmp_path):
    """Where the states of a training from checkpoint "a" are saved."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield SavedState(tmp_path / "step9.state", {"seed": 3, "init": "a"})
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_only_a_state_of_the_same_training_is_resumed(images, saved):
    assert saved.load() is None
    saved.save(run(images, 2))
    assert saved.load().step == 2
    assert SavedState(saved.last.parent, {"seed": 3, "init": "b"}).load() is None
    saved.remove()
    assert saved.load() is None and not saved.last.parent.exists()


@pytest.mark.parametrize("damage", [b"", b"damaged", None])
def test_a_state_that_cannot_be_used_is_refused_and_the_one_before_taken(
    images, saved, damage, caplog
):
    for step in (2, 3, 4):
        saved.save(run(images, step))
    whole = saved.last.read_bytes()
    saved.last.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert saved.load().step == 3
    assert f"{saved.last}: found no usable checkpoint" in caplog.text
    saved.previous.write_bytes(b"")
    assert saved.load() is None


def test_sigterm_saves_the_state_and_ends_the_job_as_such(images, saved):
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        run(images, 9, save=saved.save, due=saved.due)
    assert end.value.code == 128 + signal.SIGTERM
    assert saved.load().step == 1
    assert_same(run(images, 9), run(images, 9, state=saved.load()))


def test_gradient_of_every_third_step_counts_up_to_the_next(images):
    options = {"weight": 0.5, "estimator": "trace"}
    third, each = Regulariser(**options, every=3), Regulariser(**options)
    training = TRAINING.model_copy(update={"grad_clip": 1e9, "beta1": 0.5})

    def to(stop, state, regulariser):
        state = copy.deepcopy(state)  # training goes on in its tensors
        return train(fresh(), images, 17, training, regulariser, 3, stop, state)

    assert_same(to(2, None, None), to(2, None, third))
    before = to(2, None, None)
    with_qc, without = to(3, before, third), to(3, before, None)
    for name, moment in to(3, before, each).exp_avg.items():
        # The same sum, added up in another order: entries are rounded at the size of their terms.
        torch.testing.assert_close(with_qc.exp_avg[name], moment, rtol=1e-4, atol=1e-6)
    for stop in (4, 5):
        with_qc, without = to(stop, with_qc, third), to(stop, with_qc, None)
        for name, gradient in with_qc.qc_grad.items():
            # The first moment takes half of a step's gradient, of which λ = ½ times this one's.
            change = with_qc.exp_avg[name] - without.exp_avg[name]
            torch.testing.assert_close(change, gradient / 4, rtol=1e-4, atol=1e-6)
    after = to(6, with_qc, third)
    assert not torch.equal(
        after.qc_grad["network.stem.weight"], with_qc.qc_grad["network.stem.weight"]
    )
    assert to(60, None, third).curve[1][2] > 0
    assert before.curve[0][2] is None and to(2, None, third).curve[0][2] is None


def drawn(images, **keys):
    """The data of the first batch, and the images they are made from."""
    training, indices = Training(batch_size=30, **keys), np.arange(30)
    x_0, _, _ = draw_batch(images, 17, indices, training, fresh(), 3, 1)
    return x_0, to_unit(torch.from_numpy(images), 17)


def test_flips_are_left_to_right_and_of_half_of_the_images(images):
    x_0, unit = drawn(images, flip=True)
    mirrored = [
        (torch.equal(x, y[:, :, [3, 2, 1, 0]]), torch.equal(x, y))
        for x, y in zip(x_0, unit, strict=True)
    ]
    assert all(flipped != kept for flipped, kept in mirrored), "one or the other, and no third"
    # Binomial with n = 30 and p = ½: Pr[|count − 15| > 10] < 2e-4.
    assert abs(sum(flipped for flipped, _ in mirrored) - 15) <= 10


def test_training_is_on_grid_points_and_unflipped_unless_that_is_said(images):
    x_0, unit = drawn(images)
    assert torch.equal(x_0, unit)
    x_0, unit = drawn(images, dequantise=True)
    within = 17 * x_0 - 16 * unit
    assert ((within > 0) & (within < 1)).all() and within.std() > 0.2


def test_importance_times_leave_means_unbiased():
    # In the middle of every stratum the weighted mean is the midpoint rule of ∫ f(t) dt, wrong by
    # at most max |g''| / (24 B²) with g(u) = 2u f(u²); here f = t², g'' = 40u³.
    n = 50
    t, weights = importance_times(torch.full((n,), 0.5), 0.0, generator(0, "times"))
    assert abs(float((weights * t.square()).mean()) - 1 / 3) < 40 / (24 * n**2)
    assert (t < 0.25).sum() == n // 2  # u < ½
    assert not torch.equal(t, t.sort().values)


def test_importance_times_weigh_both_terms_of_regularised_steps(images):
    options = dict(weight=1.0, estimator="antisymmetric", every=5)
    weighted, uniform = (
        Regulariser(**options, time_sampling=sampling) for sampling in ("importance", "uniform")
    )
    assert_same(run(images, 4, regulariser=weighted), run(images, 4, regulariser=uniform))
    before = run(images, 4)
    ((_, dsm, qc, _),) = run(images, 5, state=before, regulariser=weighted).curve[
        len(before.curve) :
    ]

    model = fresh()
    checkpoint.restore(model, before.model, "before")
    x_0, t, z = draw_batch(images, 17, BatchOrder(30, 8, 3)(5), TRAINING, model, 3, 5)
    t, weights = importance_times(t, model.sde.epsilon, generator(3, "times", 5))
    probes = rademacher((1, *x_0.shape), generator(3, "probes", 5))
    torch.manual_seed(derive(3, "dropout", 5))
    loss = training_loss(model, x_0, t, z, probes, "antisymmetric")
    assert dsm == pytest.approx((weights * loss.dsm).mean().item(), rel=1e-6)
    assert qc == pytest.approx((weights * loss.qc).mean().item(), rel=1e-6)


def test_checkpoint_is_the_same_file_twice_and_nothing_else_is_left(images, tmp_path):
    for name in ("a", "b"):
        checkpoint.save(tmp_path / name, run(images, 3))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_damaged_or_foreign_checkpoint_is_refused(images, tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, run(images, 1))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"x.safetensors: found no usable checkpoint"):
        checkpoint.load(path)
    path.write_bytes(whole)
    wider = build(SHAPE, score_model("score", False, dict(NETWORK, nf=16), SDE))
    with pytest.raises(ValueError, match=r"tensor .*: found \(.*\), expected \(.*\)"):
        checkpoint.load_weights(wider, path, "ema")


def test_ema_follows_its_recursion(images):
    averages, weights = [], []
    for stop in range(4):
        state = run(images, stop)
        averages.append(state.ema["network.stem.weight"].clone())
        weights.append(state.model["network.stem.weight"].clone())
    assert torch.equal(averages[0], weights[0])
    for step in (1, 2, 3):
        decay = min(TRAINING.ema, (1 + step) / (10 + step))
        expected = decay * averages[step - 1] + (1 - decay) * weights[step]
        torch.testing.assert_close(averages[step], expected)


def test_epochs_are_independent_shuffles_of_everything():
    order = BatchOrder(10, 4, seed=0)
    indices = np.concatenate([order(step) for step in range(1, 6)])
    first, second = indices[:10], indices[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)
    np.testing.assert_array_equal(BatchOrder(10, 4, seed=0)(3), indices[8:12])


def test_dsm_is_half_the_squared_denoising_error():
    model = fresh().double().eval()
    g = generator(0, "dsm")
    x_0 = torch.rand(3, *SHAPE, dtype=torch.float64, generator=g)
    z = torch.randn(x_0.shape, dtype=torch.float64, generator=g)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    loss = training_loss(model, x_0, t, z)
    for i in range(3):
        sigma = 0.01 * 500 ** t[i]
        x_t = x_0[i] + sigma * z[i]
        # The conditional score of a Gaussian perturbation is -z/σ.
        error = model(x_t[None], t[i : i + 1])[0] + z[i] / sigma
        torch.testing.assert_close(loss.dsm[i], sigma**2 * error.square().sum() / 2)


def test_loss_gradient_equals_finite_differences_through_the_regulariser():
    model = build(
        SHAPE, score_model("score", False, dict(NETWORK, dropout=0.0, init_scale=1.0), SDE), 3
    ).double()
    g = generator(0, "gradient")
    x_0 = torch.rand(2, *SHAPE, dtype=torch.float64, generator=g)
    z = torch.randn(x_0.shape, dtype=torch.float64, generator=g)
    probes = rademacher((2, *x_0.shape), g).double()
    t = torch.tensor([0.4, 0.8], dtype=torch.float64)
    weight = model.network.stem.weight

    def value(estimator):
        loss = training_loss(model, x_0, t, z, probes, estimator)
        return (loss.dsm + loss.qc).mean()

    for estimator in ("trace", "antisymmetric"):
        (slope,) = torch.autograd.grad(value(estimator), weight)
        direction = torch.randn(weight.shape, dtype=torch.float64, generator=g)
        step = 1e-6
        weight.data += step * direction
        above = value(estimator).item()
        weight.data -= 2 * step * direction
        below = value(estimator).item()
        weight.data += step * direction
        expected = (above - below) / (2 * step)
        assert (slope * direction).sum().item() == pytest.approx(expected, rel=1e-5)


def test_regularising_a_part_of_the_batch_leaves_the_rest_to_dsm():
    model = build(
        SHAPE, score_model("score", False, dict(NETWORK, dropout=0.0, init_scale=1.0), SDE), 3
    ).double()
    g = generator(0, "part")
    x_0 = torch.rand(6, *SHAPE, dtype=torch.float64, generator=g)
    z = torch.randn(x_0.shape, dtype=torch.float64, generator=g)
    t = torch.rand(6, dtype=torch.float64, generator=g)
    probes = rademacher((1, *x_0.shape), g).double()
    whole = training_loss(model, x_0, t, z, probes, "antisymmetric")
    part = training_loss(model, x_0, t, z, probes[:, :2], "antisymmetric")
    torch.testing.assert_close(part.dsm, whole.dsm)
    torch.testing.assert_close(part.qc, whole.qc[:2])
    # Without a name, the estimator is that of Eq. 9.
    trace = training_loss(model, x_0, t, z, probes, "trace").qc
    assert torch.equal(training_loss(model, x_0, t, z, probes).qc, trace)


def test_divergence_stops_with_step_and_quantity(images):
    wild = Training(batch_size=8, lr=1e30, warmup=1, grad_clip=1e30)
    with pytest.raises(Diverged, match=r"training diverged: \w+ is (nan|inf).* step \d+"):
        train(fresh("energy"), images, 17, wild, None, 0, 60)


def test_warmup_is_linear(images):
    moved = []
    for warmup in (5, 10):
        training = TRAINING.model_copy(update={"warmup": warmup})
        state = train(fresh(), images, 17, training, None, 3, 1)
        start = fresh().network.stem.weight.detach()
        moved.append((state.model["network.stem.weight"] - start).abs().mean().item())
    # Adam's first step is proportional to the learning rate; float32 weights round it.
    assert moved[0] == pytest.approx(2 * moved[1], rel=1e-3)


def test_tf32_is_on_for_as_long_as_a_model_computes_in_it():
    model = fresh()
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    for precision, on, dtype in (
        ("tf32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("tf32", True, torch.float32),
        ("float32", False, torch.float32),
    ):
        model.compute_in(precision)
        assert [backend.allow_tf32 for backend in backends] == [on, on]
        assert model.precision == dtype


@pytest.mark.parametrize("estimator", [None, "trace", "antisymmetric"])
def test_bfloat16_rounds_the_network_and_nothing_else(images, estimator):
    regulariser = estimator and Regulariser(weight=1.0, estimator=estimator)
    training = TRAINING.model_copy(update={"precision": "bfloat16"})
    lower = train(fresh(), images, 17, training, regulariser, 3, 20)
    same = run(images, 20, regulariser=regulariser)
    for part in checkpoint.PARTS:
        assert all(tensor.dtype == torch.float32 for tensor in getattr(lower, part).values())
    # A product in bfloat16 is rounded at 2⁻⁹ = 0.002, and the loss has D = 16 of them per sample.
    ((_, dsm, _, _),), ((_, exact, _, _),) = lower.curve, same.curve
    assert dsm != exact and dsm == pytest.approx(exact, rel=0.01)
    # The network starts at zero: that gradients reach its inside at all shows in the moments.
    moved = torch.cat([m.flatten() for m in lower.exp_avg.values()]).count_nonzero()
    assert moved > 0.9 * torch.cat([m.flatten() for m in same.exp_avg.values()]).count_nonzero()
