import numpy as np
import pytest
import torch

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.statistics import Moments, Statistics

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def features(n=500, size=7, offset=3.0):
    return (np.random.default_rng(n).normal(size=(n, size)) @ np.diag(range(1, size + 1)) + offset).astype(np.float32)


def in_batches(x, size, device="cpu"):
    moments = Moments(x.shape[1], device)
    for batch in torch.from_numpy(x).to(device).split(size):
        moments.add(batch)
    return moments


def assert_moments_of(moments, x, atol=1e-12):
    x = x.astype(np.float64)
    assert moments.count == len(x)
    assert moments.mean.dtype == moments.covariance.dtype == torch.float64
    np.testing.assert_allclose(moments.mean.cpu(), x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance.cpu(), np.cov(x, rowvar=False), rtol=1e-10, atol=atol)


@pytest.mark.parametrize("batch", [1, 64, 500])
def test_any_batches_give_the_mean_and_covariance_of_all(batch):
    x = features()
    assert_moments_of(in_batches(x, batch), x)


def test_features_far_from_zero_keep_their_digits():
    """Sums of squares would have lost them: 1e12 and more, of which float64 has four decimals."""
    x = features(offset=1e6)
    assert_moments_of(in_batches(x, 64), x, atol=1e-9)


def test_processes_merge_whatever_their_shares():
    x = features()
    parts = [in_batches(part, 64) for part in (x[:1], x[1:130], x[130:130], x[130:])]
    merged = Moments(7)
    for part in parts:
        merged.merge(part)
    assert_moments_of(merged, x)
    assert parts[3].count == 370  # as it was


def test_half_precision_features_are_summed_in_double():
    x = torch.from_numpy(features()).half()
    moments = Moments(7)
    moments.add(x)
    assert_moments_of(moments, x.numpy())


def test_moments_of_published_statistics():
    x = features()
    moments = Moments.of(x.mean(0, dtype=np.float64), np.cov(x.astype(np.float64), rowvar=False), len(x))
    assert_moments_of(moments, x)
    moments.add(torch.from_numpy(features(300)))
    assert_moments_of(moments, np.concatenate([x, features(300)]))


def test_one_image_has_no_covariance():
    with pytest.raises(UserError, match="at least 2 images; there are 1"):
        _ = in_batches(features(1), 1).covariance


@needs_cuda
def test_a_gpu_accumulates_without_being_waited_for():
    x = features()
    batches = torch.from_numpy(x).cuda().split(64)
    moments = Moments(7, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            moments.add(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert moments.scatter.is_cuda
    assert_moments_of(moments, x)
    merged = Moments(7)
    merged.merge(moments)
    assert_moments_of(merged, x)


def test_saved_statistics_load_as_they_were(tmp_path):
    x = features(20)
    saved = Statistics(in_batches(x, 6), x, np.full((20, 4), 0.25, np.float32), np.arange(20))
    saved.save(tmp_path / "reference.npz")
    loaded = Statistics.load(tmp_path / "reference.npz")
    assert loaded.moments.count == 20
    assert torch.equal(loaded.moments.mean, saved.moments.mean)
    assert torch.equal(loaded.moments.scatter, saved.moments.scatter)
    for name in ("features", "probabilities", "labels"):
        array, expected = getattr(loaded, name), getattr(saved, name)
        assert np.array_equal(array, expected) and array.dtype == expected.dtype
    assert [file.name for file in tmp_path.iterdir()] == ["reference.npz"]


def test_saved_moments_alone_load_without_the_rest(tmp_path):
    Statistics(in_batches(features(20), 6)).save(tmp_path / "reference.npz")
    loaded = Statistics.load(tmp_path / "reference.npz")
    assert loaded.features is loaded.probabilities is loaded.labels is None
    assert_moments_of(loaded.moments, features(20))
