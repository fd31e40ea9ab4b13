"""Calibration statistics at the sites of one decoder layer, from one forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from sq.errors import CalibrationError
from sq.models.families import Family
from sq.models.parts import weight_of
from sq.nn.attention import AttentionInput
from sq.nn.hooks import SeenAll, up_to_the_last, watched_sites, with_attention_input
from sq.quantize.column_sums import column_sums
from sq.quantize.gram import add_gram
from sq.quantize.method import SiteStatistics


def collect(
    family: Family,
    layer: nn.Module,
    forward: Callable[[Tensor], Tensor],
    hidden: Sequence[Tensor],
    *,
    index: int,
    sites: Iterable[str],
    second_moment: Iterable[str] = (),
    attention: bool = False,
    sample: int = 4096,
    wants_outputs: bool = True,
) -> tuple[dict[str, SiteStatistics], list[Tensor]]:
    """Run a decoder layer on calibration batches: statistics of the inputs of its sites, and its outputs.

    Args:
        forward: runs the layer on one batch of `hidden`, (B, S, hidden).
        index: of the layer, for messages.
        sites, second_moment: sites to watch, and those whose second moment is accumulated.
        attention: watch "keys" and "queries" after RoPE as well, each (T, heads * head_dim).
        sample: tokens kept a site, spread evenly over the batches.
        wants_outputs: False ends every forward but the first at the last site and returns the first one's outputs.

    Raises:
        CalibrationError: NaN or inf at a site.
    """
    wanted, total = set(second_moment), sum(batch.shape[0] * batch.shape[1] for batch in hidden)
    stride = max(1, -(-total // sample))
    watchers = {site: _Watcher(index, site, stride, site in wanted) for site in sites}
    of_sites = {site: watcher.see for site, watcher in watchers.items()}
    observed: AttentionInput | None = None
    if attention:
        observed, keys, queries = AttentionInput(), *(_Watcher(index, name, stride) for name in ("keys", "queries"))
        watchers |= {"keys": keys, "queries": queries}

        def see(query: Tensor, key: Tensor) -> None:  # (B, H, S, head_dim), as tokens (B, S, H * head_dim)
            queries.see(query.transpose(1, 2).flatten(-2))
            keys.see(key.transpose(1, 2).flatten(-2))

        observed.observer = see
    outputs: list[Tensor] = []
    with with_attention_input(family, layer, observed):
        for batch in hidden:
            whole = wants_outputs or not outputs
            with suppress(SeenAll), watched_sites(family, layer, of_sites if whole else up_to_the_last(of_sites)):
                outputs.append(forward(batch))
    return {site: watcher.statistics() for site, watcher in watchers.items()}, outputs


class _Watcher:
    """Running statistics of one site."""

    def __init__(self, index: int, site: str, stride: int, second_moment: bool = False) -> None:
        self.index, self.site, self.stride, self.wants_moment = index, site, stride, second_moment
        self.kept: list[Tensor] = []
        self.count = 0
        self.square: Tensor | None = None
        self.peak: Tensor | None = None
        self.moment: Tensor | None = None

    def see(self, tokens: Tensor) -> None:
        x = tokens.flatten(0, -2).float()  # (T, n)
        square, peak = column_sums(x)
        if not bool(torch.isfinite(square).all()):
            bad, largest = int((~torch.isfinite(x)).sum()), float(peak.max())
            what = f"{bad} NaN or inf activations" if bad else f"activations of {largest:.3g}, whose squares overflow"
            raise CalibrationError(
                f"calibration found {what} at layer {self.index}, site {self.site!r}. Check the checkpoint, or run in "
                "a wider dtype (model.dtype=float32)."
            )
        self.square = square if self.square is None else self.square + square
        self.peak = peak if self.peak is None else torch.maximum(self.peak, peak)
        if self.wants_moment:
            if self.moment is None:
                self.moment = x.new_zeros(x.shape[1], x.shape[1])
            add_gram(self.moment, tokens.flatten(0, -2))
        first = -self.count % self.stride
        self.kept.append(x[first :: self.stride].clone())
        self.count += x.shape[0]

    def statistics(self) -> SiteStatistics:
        assert self.square is not None
        assert self.peak is not None
        return SiteStatistics(
            tokens=torch.cat(self.kept),
            rms=(self.square / self.count).sqrt().float(),
            peak=self.peak,
            second_moment=None if self.moment is None else self.moment.div_(self.count),  # 3 GB at a 70B model's `down`
            count=self.count,
        )


class StackedWeights(Mapping[str, Tensor]):
    """Weights of each site's linears stacked along d_out, (sum of d_out, n), at least float32; made at each look-up.

    Stacking all sites at once would double a layer's memory.
    """

    def __init__(self, family: Family, layer: nn.Module) -> None:
        self._family, self._layer = family, layer

    def __getitem__(self, site: str) -> Tensor:
        weights = [weight_of(self._layer, name) for name in self._family.linears[site]]
        return torch.cat([weight.to(torch.promote_types(weight.dtype, torch.float32)) for weight in weights])

    def __iter__(self) -> Iterator[str]:
        return iter(self._family.linears)

    def __len__(self) -> int:
        return len(self._family.linears)
