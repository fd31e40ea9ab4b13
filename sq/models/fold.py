"""Absorb transforms into the weights of a decoder layer, in place, so that they cost nothing at inference.

Row vectors: a linear is y = x W^T. Weights should be in float32 or float64 when these are called.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sq.models.families import Family, ModelDimensions
from sq.models.parts import bias_of, weight_of
from sq.models.stream import EmbeddingsAndHead
from sq.rotation.transform import Diagonal, Transform


def fold_norm_gains(family: Family, layer: nn.Module) -> None:
    """W <- W diag(g) for the readers of each norm, then g <- 1."""
    for site, path in family.norms.items():
        gain = weight_of(layer, path)
        for name in family.linears[site]:
            weight_of(layer, name).mul_(gain)
        gain.fill_(1.0)


def rotate_residual(family: Family, layer: nn.Module, rotation: Transform) -> None:
    """Rotate the residual stream a layer lives in: readers W <- W R, writers W <- R^T W and b <- b R.

    The norm gains must be folded first, since RMSNorm(x R) = RMSNorm(x) R holds for a gain of 1 only.
    """
    for site in family.norms:
        for name in family.linears[site]:
            weight = weight_of(layer, name)
            weight.copy_(rotation(weight))
    for name in family.residual_outputs:
        _transform_outputs(layer, name, rotation)


def rotate_embeddings_and_head(outer: EmbeddingsAndHead, rotation: Transform | None) -> EmbeddingsAndHead:
    """Fold the final norm's gain into the head and rotate both sides: E <- E R, head <- head diag(g) R."""
    gain = weight_of(outer.norm, "")
    work = torch.promote_types(outer.head.dtype, torch.float32)
    head = outer.head.to(work) * gain.to(work)
    embedding = outer.embedding.to(work)
    if rotation is not None:
        head, embedding = rotation(head), rotation(embedding)
    gain.fill_(1.0)
    return EmbeddingsAndHead(embedding.to(outer.embedding.dtype), outer.norm, head.to(outer.head.dtype))


def fold_site(family: Family, layer: nn.Module, site: str, transform: Transform, head_dim: int) -> None:
    """Absorb T, which acts on a site's features, into what produces them.

    A diagonal goes into the norm's gain (qkv, gate_up) or the rows of up (down); at o, one block of head_dim a KV head
    goes into the rows and bias of v, and the query heads of a group share it. The readers are not touched here.
    ValueError is raised for a T that cannot be folded there.
    """
    if site in family.norms:
        if not isinstance(transform, Diagonal):
            raise ValueError(f"only a Diagonal can be folded into the norm of {site!r}, got {type(transform).__name__}")
        gain = weight_of(layer, family.norms[site])
        gain.copy_(transform(gain))
        return
    producer = family.producers[site]
    rows = weight_of(layer, producer).shape[0]
    if transform.n != rows:
        raise ValueError(
            f"a transform folded at {site!r} acts on the {rows} rows of {producer}, got one of size {transform.n}; at "
            f"'o' give one block of {head_dim} for each KV head"
        )
    _transform_outputs(layer, producer, transform)


def fold_query_key(family: Family, layer: nn.Module, scale: Tensor, dimensions: ModelDimensions) -> None:
    """k <- k t and q <- q / t in front of RoPE, which keeps every product of the two.

    RoPE rotates channels i and i + head_dim / 2 of a head into each other, so both take one factor. It goes into rows
    and biases of the projections, or into the gains of the head norms where the family has them.

    The scale t is (kv_heads, head_dim / 2), or (1, head_dim / 2), shared by all heads, and all that head norms allow.
    """
    half = dimensions.head_dim // 2
    allowed = {(1, half)} if family.head_norms else {(1, half), (dimensions.kv_heads, half)}
    if tuple(scale.shape) not in allowed:
        raise ValueError(
            f"a query-key scale for {family.model_type} has shape {tuple(scale.shape)}; allowed: {sorted(allowed)}"
        )
    channels = torch.cat([scale, scale], dim=1)  # (kv_heads or 1, head_dim)
    if family.head_norms:
        query, key = (weight_of(layer, path) for path in family.head_norms)
        query.copy_(query / channels[0])
        key.copy_(key * channels[0])
        return
    keys = channels.expand(dimensions.kv_heads, -1)
    queries = keys.repeat_interleave(dimensions.heads // dimensions.kv_heads, dim=0)
    for name, factor in zip(family.linears["qkv"][:2], (1 / queries.flatten(), keys.flatten()), strict=True):
        weight, bias = weight_of(layer, name), bias_of(layer, name)
        weight.copy_(weight * factor[:, None].to(weight))
        if bias is not None:
            bias.copy_(bias * factor.to(bias))


def transform_readers(family: Family, layer: nn.Module, site: str, transform: Transform) -> None:
    """W <- W T^-T for every linear that reads a site."""
    for name in family.linears[site]:
        weight = weight_of(layer, name)
        weight.copy_(transform.inverse_transpose(weight))


def _transform_outputs(layer: nn.Module, name: str, transform: Transform) -> None:
    weight, bias = weight_of(layer, name), bias_of(layer, name)
    weight.copy_(transform(weight.T).T)
    if bias is not None:
        bias.copy_(transform(bias))
