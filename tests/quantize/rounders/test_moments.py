"""Statistics of a site against sums over all tokens in float64."""

from __future__ import annotations

import pytest
import torch
from quantizers import activation_quantizer
from torch import Tensor

from sq.errors import CalibrationError
from sq.quantize.rounders.moments import SiteMoments

ALL = frozenset({"hessian", "mismatch", "held_out"})


def streams(n: int = 6) -> tuple[list[Tensor], list[Tensor]]:
    """Batches of unequal size of both streams: 4 + 4 + 1 windows of 5 tokens."""
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(count, 5, n, generator=generator) for count in (4, 4, 1)]
    return x, [batch + 0.1 * torch.randn(batch.shape, generator=generator) for batch in x]


@pytest.mark.parametrize("quantized", [False, True])
def test_equal_sums_in_float64_and_the_last_quarter_is_held_out(quantized: bool) -> None:
    batches, full = streams()
    quantizer = activation_quantizer(4) if quantized else None
    moments = SiteMoments(6, ALL, 45, quantizer=quantizer)
    for x, other in zip(batches, full, strict=True):
        moments.update(x, other)
    found = moments.statistics("layer 1, o")
    x, other = torch.cat(batches).flatten(0, 1), torch.cat(full).flatten(0, 1)
    x = (x if quantizer is None else quantizer(x)).double()
    other = other.double()

    def expected(part: slice) -> tuple[Tensor, Tensor]:
        own, rest = x[part], (other - x)[part]
        return 2 / len(own) * own.T @ own, 2 / len(own) * rest.T @ own

    assert found.name == "layer 1, o"
    assert found.held_out is not None
    assert found.held_out.share == pytest.approx(11 / 45)
    for part, moment in ((slice(None), found), (slice(34, None), found.held_out)):
        hessian, mismatch = expected(part)
        assert moment.hessian is not None
        assert moment.mismatch is not None
        torch.testing.assert_close(moment.hessian.double(), hessian, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moment.mismatch.double(), mismatch, rtol=1e-5, atol=1e-6)


def test_only_what_is_needed_is_summed() -> None:
    (x, *_), (other, *_) = streams()
    moments = SiteMoments(6, {"hessian"}, 20)
    moments.update(x)
    assert moments.statistics("").mismatch is None
    moments = SiteMoments(6, {"hessian", "mismatch"}, 20)
    moments.update(x, other)
    found = moments.statistics("")
    assert found.mismatch is not None
    assert found.held_out is None


def test_the_same_stream_twice_has_no_mismatch() -> None:
    (x, *_), _ = streams()
    moments = SiteMoments(6, ALL, 20)
    moments.update(x, x)
    assert not moments.statistics("").mismatch.any()  # type: ignore[union-attr]


def test_refusals() -> None:
    (x, *_), (other, *_) = streams()
    with pytest.raises(CalibrationError, match=r"tokens \(4, 5, 6\), the full-precision one none"):
        SiteMoments(6, ALL, 20).update(x)
    with pytest.raises(CalibrationError, match=r"full-precision one \(3, 5, 6\)"):
        SiteMoments(6, ALL, 20).update(x, other[:3])
    few = SiteMoments(6, ALL, 3)
    few.update(x[0, :3], other[0, :3])
    with pytest.raises(CalibrationError, match="layer 0, o: 3 calibration tokens leave none to be held out; use 4"):
        few.statistics("layer 0, o")
