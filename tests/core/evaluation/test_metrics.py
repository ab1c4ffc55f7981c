"""Metrics against published numbers, closed forms and invariances."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sddit.errors import SdditError
from sddit.evaluation import metrics
from sddit.evaluation.metrics import (
    copied_fraction,
    density_coverage,
    frechet,
    frechet_distance,
    gaussian_fault,
    inception_score,
    kid,
    mmd2,
    moments,
    nearest,
    precision_recall,
)

Array = NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)


def gaussian(seed: int, n: int, d: int, *, mean: float = 0.0, scale: float = 1.0) -> Array:
    """[n, d] correlated normal vectors."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) / np.sqrt(d)
    return mean + scale * (rng.normal(size=(n, d)) @ mixing)


def rotation(seed: int, d: int) -> Array:
    return np.asarray(np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0])


# Published numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", ["p64", "p16"])
def test_published_distances(published, pair):
    stored = published("metrics_a")
    real, fake = (stored.inputs[f"{pair}/{name}"].numpy() for name in ("real", "fake"))
    expected = {name: float(stored.outputs[f"{pair}/{name}"]) for name in ("frechet", "frechet_eigen", "kid")}
    assert frechet_distance(real, fake) == pytest.approx(expected["frechet"], rel=1e-9)
    assert frechet_distance(real, fake) == pytest.approx(expected["frechet_eigen"], rel=1e-9)
    assert mmd2(real, fake) == pytest.approx(expected["kid"], rel=1e-9)
    assert moments(real)[0] == pytest.approx(stored.outputs[f"{pair}/mu_real"].numpy(), abs=1e-12)
    assert moments(real)[1].diagonal() == pytest.approx(stored.outputs[f"{pair}/sigma_real_diag"].numpy(), abs=1e-12)
    halved = fake.copy()
    halved[0] *= 0.5  # the control: one changed row out of hundreds must show
    assert frechet_distance(real, halved) != pytest.approx(expected["frechet"], rel=1e-9)
    assert mmd2(real, halved) != pytest.approx(expected["kid"], rel=1e-9)


@pytest.mark.parametrize("pair", ["p64", "p16"])
@pytest.mark.parametrize("k", [3, 5])
def test_published_counts(published, pair, k):
    stored = published("metrics_a")
    real, fake = (stored.inputs[f"{pair}/{name}"].numpy() for name in ("real", "fake"))
    names = ("precision", "recall", "density", "coverage")
    expected = [float(stored.outputs[f"{pair}/k{k}/{name}"]) for name in names]
    found = [*precision_recall(real, fake, k), *density_coverage(real, fake, k)]
    sizes = [len(fake), len(real), len(fake) * k, len(real)]  # each is a count over one of these
    assert [round(f * n) for f, n in zip(found, sizes, strict=True)] == [
        round(e * n) for e, n in zip(expected, sizes, strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-12)
    assert [*precision_recall(real, fake, k + 1), *density_coverage(real, fake, k + 1)] != pytest.approx(expected)


def test_published_inception_scores(published):
    stored = published("metrics_a")
    logits = stored.inputs["logits"].numpy()
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = exponentials / exponentials.sum(axis=1, keepdims=True)
    for splits in (1, 10):
        scores = inception_score(p, len(p) // splits)
        assert scores == pytest.approx(stored.outputs[f"inception/splits{splits}/scores"].numpy(), rel=1e-9)
        mean_std = stored.outputs[f"inception/splits{splits}/mean_std"].numpy()
        assert [scores.mean(), scores.std()] == pytest.approx(mean_std, rel=1e-9, abs=1e-12)
    assert inception_score(p, 59)[:10] != pytest.approx(stored.outputs["inception/splits10/scores"].numpy(), rel=1e-9)


def test_inception_scores_of_certain_and_of_blind_classifiers():
    certain = np.eye(5)[np.arange(40) % 5]
    assert inception_score(certain, 40) == pytest.approx([5.0])  # 0 log 0 is 0
    assert inception_score(np.full((40, 5), 0.2), 15) == pytest.approx([1.0, 1.0, 1.0])
    assert inception_score(certain[:1].repeat(4, axis=0), 4) == pytest.approx([1.0])


# Frechet distance ----------------------------------------------------------------------------------------------------


def test_frechet_of_diagonal_gaussians():
    rng = np.random.default_rng(0)
    a, b, shift = rng.uniform(0.1, 3, 20), rng.uniform(0.1, 3, 20), rng.normal(size=20)
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum() + (shift**2).sum()
    assert frechet(np.zeros(20), np.diag(a), shift, np.diag(b)) == pytest.approx(expected, rel=1e-13)


@given(seed=seeds, d=st.integers(1, 8), n=st.integers(4, 30))
def test_frechet_properties(seed, d, n):
    a, b = gaussian(seed, n, d), gaussian(seed + 1, n + 3, d, mean=0.5)
    distance = frechet_distance(a, b)
    turn = rotation(seed, d)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(distance, abs=1e-6)
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(distance, abs=1e-6)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * distance, abs=1e-5)
    shift = np.arange(1.0, d + 1)
    assert frechet_distance(a, a + shift) == pytest.approx((shift**2).sum(), abs=1e-6)


def test_frechet_of_rank_deficient_sets_is_real():
    a, b = gaussian(0, 20, 64), gaussian(1, 20, 64)
    assert np.linalg.matrix_rank(moments(a)[1]) == 19
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) > 1


def test_moments_lose_no_digits_far_from_the_origin():
    x = gaussian(2, 1000, 5, mean=1e4)
    whole = np.cov(x, rowvar=False)
    mean, covariance = moments(x)
    assert mean == pytest.approx(x.mean(axis=0), rel=1e-12)
    assert covariance == pytest.approx(whole, abs=1e-10)
    naive = (x.T @ x - len(x) * np.outer(x.mean(axis=0), x.mean(axis=0))) / (len(x) - 1)
    assert naive != pytest.approx(whole, abs=1e-10)  # the control: the textbook formula fails this gate


# Kernel distance -----------------------------------------------------------------------------------------------------


def test_mmd2_is_the_double_sum(monkeypatch):
    a, b = gaussian(3, 7, 4), gaussian(4, 9, 4, mean=1.0)

    def k(x: Array, y: Array) -> float:
        return float((x @ y / 4 + 1) ** 3)

    within = [sum(k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) for x in (a, b)]
    between = sum(k(x, y) for x in a for y in b)
    expected = within[0] / 42 + within[1] / 72 - 2 * between / 63
    assert mmd2(a, b) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(metrics, "CHUNK", 3)
    assert mmd2(a, b) == pytest.approx(expected, rel=1e-12)


def test_kid_is_unbiased_keyed_and_sees_a_shift():
    a, b = gaussian(5, 400, 8), gaussian(5, 800, 8)[400:]  # one distribution, other draws

    def measure(x: Array, seed: int) -> tuple[float, float]:
        return kid(a, x, subsets=40, size=50, rng=np.random.default_rng(seed))

    mean, spread = measure(b, 0)
    assert abs(mean) < 5 * spread / np.sqrt(40) + 0.01
    assert measure(b, 0) == (mean, spread)
    assert measure(b, 1) != (mean, spread)
    shifted, shifted_spread = measure(b + 0.5, 0)
    assert shifted > mean + 5 * shifted_spread / np.sqrt(40)


def test_kid_of_whole_sets_is_mmd2():
    a, b = gaussian(6, 60, 4), gaussian(7, 60, 4)
    mean, spread = kid(a, b, subsets=3, size=60, rng=np.random.default_rng(0))
    assert mean == pytest.approx(mmd2(a, b), rel=1e-12)
    assert spread == pytest.approx(0, abs=1e-12)


# Neighbours ----------------------------------------------------------------------------------------------------------


def test_shares_of_equal_and_of_distant_sets():
    real = gaussian(8, 80, 6)
    assert precision_recall(real, real, 3) == (1.0, 1.0)
    assert density_coverage(real, real, 3) == (pytest.approx(4 / 3), 1.0)  # each point's own ball is the k + 1st
    assert precision_recall(real, real + 100, 3) == (0.0, 0.0)
    assert density_coverage(real, real + 100, 3) == (0.0, 0.0)


def test_collapse_keeps_precision_and_loses_recall():
    real = gaussian(9, 200, 4)
    rng = np.random.default_rng(0)
    fake = real[:1] + 1e-3 * rng.normal(size=(200, 4))  # one real image over and over
    precision, recall = precision_recall(real, fake, 3)
    assert precision == 1.0
    assert recall < 0.02


def test_counts_do_not_depend_on_chunks_or_on_a_far_origin(monkeypatch):
    real, fake = gaussian(10, 90, 5), gaussian(11, 70, 5)
    whole = [*precision_recall(real, fake, 3), *density_coverage(real, fake, 3)]
    assert whole == [*precision_recall(real + 1e3, fake + 1e3, 3), *density_coverage(real + 1e3, fake + 1e3, 3)]
    monkeypatch.setattr(metrics, "CHUNK", 7)
    assert whole == [*precision_recall(real, fake, 3), *density_coverage(real, fake, 3)]


def test_points_on_the_rim_are_inside():
    line = np.arange(10.0)[:, None] @ np.ones((1, 3)) * 0.1  # all neighbours at equal distances
    assert density_coverage(line, line, 1) == (pytest.approx((10 + 18) / 10), 1.0)


# Refusals ------------------------------------------------------------------------------------------------------------


def code_of(call) -> str:
    with pytest.raises(SdditError) as caught:
        call()
    return caught.value.problems[0].code


def test_refusals():
    good, one = gaussian(12, 5, 3), gaussian(12, 1, 3)
    broken = good.copy()
    broken[2, 1] = np.nan
    endless = good.copy()
    endless[0, 0] = np.inf
    rng = np.random.default_rng(0)
    assert code_of(lambda: frechet_distance(good, one)) == "SD-T906"
    assert code_of(lambda: mmd2(one, good)) == "SD-T906"
    assert code_of(lambda: moments(one)) == "SD-T906"
    assert code_of(lambda: precision_recall(good, good, 5)) == "SD-T906"
    assert code_of(lambda: kid(good, good, subsets=2, size=6, rng=rng)) == "SD-T906"
    assert code_of(lambda: frechet_distance(broken, good)) == "SD-T907"
    assert code_of(lambda: mmd2(good, endless)) == "SD-T907"
    assert code_of(lambda: density_coverage(good, broken, 2)) == "SD-T907"
    for counts in (precision_recall, density_coverage):
        with pytest.raises(ValueError, match="k of at least 1, got 0"):
            counts(good, good, 0)
    with pytest.raises(ValueError, match="different widths"):
        frechet_distance(good, good[:, :2])


def test_frechet_refuses_statistics_that_are_not_gaussian():
    mean, covariance = np.zeros(8), np.eye(8)
    bad_mean = mean.copy()
    bad_mean[3] = np.nan
    endless = covariance.copy()
    endless[0, 0] = np.inf
    skew = covariance.copy()
    skew[0, 1] = 0.5
    for other in ((bad_mean, covariance), (mean, endless), (mean, -covariance), (mean, skew), (mean, np.eye(7))):
        assert code_of(partial(frechet, mean, covariance, *other)) == "SD-T909"
        assert code_of(partial(frechet, *other, mean, covariance)) == "SD-T909"
    assert frechet(mean, covariance, mean, covariance) == 0
    assert frechet(mean, covariance, mean, 0 * covariance) == pytest.approx(8)  # a point is a distribution


def test_statistics_rounded_to_float32_are_still_a_gaussian():
    for n in (20, 300):  # of low rank, and of full
        mean, covariance = moments(gaussian(3, n, 64, scale=7.0))
        rounded = (x.astype(np.float32).astype(np.float64) for x in (mean, covariance))
        assert gaussian_fault(*rounded) == ""
    assert "negative" in gaussian_fault(mean, covariance - 1e-3 * np.trace(covariance) * np.eye(64))


def test_probabilities_are_checked():
    certain = np.eye(4)
    assert code_of(lambda: inception_score(certain - 0.1, 4)) == "SD-T909"
    assert code_of(lambda: inception_score(2 * certain, 4)) == "SD-T909"
    assert inception_score(certain, 4) == pytest.approx([4.0])


METRICS = {
    "frechet": frechet_distance,
    "mmd2": mmd2,
    "kid": lambda a, b: kid(a, b, subsets=2, size=3, rng=np.random.default_rng(0)),
    "precision and recall": lambda a, b: precision_recall(a, b, 2),
    "density and coverage": lambda a, b: density_coverage(a, b, 2),
    "nearest": nearest,
    "copied fraction": lambda a, b: copied_fraction(np.abs(a).sum(axis=1), np.abs(b).sum(axis=1)),
    "inception score": lambda a, b: inception_score(np.concatenate([a, b]) ** 2, 4),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.filterwarnings("error")
@given(
    data=st.data(),
    bad=st.sampled_from([np.nan, np.inf, -np.inf, 1e41, -1e300, np.finfo(np.float64).max]),
    first=st.booleans(),
)
def test_no_metric_turns_a_bad_number_into_a_result(metric, data, bad, first):
    sets = [gaussian(1, 6, 3), gaussian(2, 6, 3)]
    sets[not first][data.draw(st.integers(0, 5)), data.draw(st.integers(0, 2))] = bad
    try:
        with np.errstate(over="ignore"):  # of the squares made here
            found = np.array(METRICS[metric](*sets), dtype=np.float64)
    except SdditError as refused:
        assert refused.problems[0].code in ("SD-T907", "SD-T909")
    else:
        assert np.isnan(found).all()


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_of_good_features_is_finite(metric):
    a, b = gaussian(1, 6, 3), gaussian(2, 6, 3)
    if metric == "inception score":
        a, b = (np.abs(x) ** 0.5 / np.sqrt(np.abs(x).sum(axis=1, keepdims=True)) for x in (a, b))
    assert np.isfinite(np.array(METRICS[metric](a, b), dtype=np.float64)).all()


@pytest.mark.parametrize("metric", METRICS)
def test_empty_sets_are_refused(metric):
    with pytest.raises(SdditError) as refused:
        METRICS[metric](np.empty((0, 3)), gaussian(2, 6, 3)[:0])
    assert refused.value.problems[0].code == "SD-T906"


@pytest.mark.parametrize("kind", [np.float16, np.complex128, np.int64, np.bool_])
def test_statistics_of_other_types_are_refused(kind):
    mean, covariance = np.zeros(3), np.eye(3)
    assert gaussian_fault(mean, covariance) == gaussian_fault(mean, covariance.astype(np.float32)) == ""
    assert "where float64 or float32" in gaussian_fault(mean, covariance.astype(kind))
    assert "above" in gaussian_fault(mean, covariance * 1e300)


def test_complex_features_are_refused():
    with pytest.raises(SdditError, match="SD-T909"):
        frechet_distance(gaussian(1, 6, 3) + 1j, gaussian(2, 6, 3))
