"""The prompted forward pass: the one place that knows the inside of timm's Vision Transformer.

Tensor letters, used everywhere:
    B images in a batch      n patch tokens      t prefix tokens (class, registers)
    m prompts                d width             C classes         S image side in pixels
    k prompted blocks        H heads             c width of a head (H c = a)
    R prompt sets in a batch, R rows of B images each

Prompts are an argument, never state of the model, so one frozen backbone serves every customer at once. A forward
pass has two halves: `below` (images to the tokens that enter the first prompted block: no prompt has been seen, so
for one view of an image it is a constant) and `above` (the rest, with prompts, to features).

In a deep block what becomes of the prompts is thrown away, so they act only as further keys and values, both
independent of the image: K_P = k_norm(norm1(P) Wk + bk), V_P = norm1(P) Wv + bv. `compile_prompts` computes them
once; no prompt asks a query or passes an MLP. Two exceptions keep prompts as tokens: shallow ones, which travel
through every block, and those of the last block where the pooling takes the mean over prompts too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bpt_core.backbones import Backbone
from bpt_core.catalog import Pooling
from bpt_core.methods import Depth, prompted_blocks


@dataclass(frozen=True)
class Compiled:
    """R prompt sets of one depth and length m, in the form the blocks take them.

    `keys`, `values`: [R, H, m, c] for each prompted block, from the lowest. `tokens` [R, m, d]: prompts that are
    tokens of a block; of the first one (shallow) or of the last one (deep, pooled with the patches). Sets of
    different lengths are padded to the longest: `absent` [R, m] is then true where a set has no such prompt.
    """

    depth: Depth
    sets: int
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    tokens: Tensor | None = None
    absent: Tensor | None = None


def embed(backbone: Backbone, images: Tensor) -> Tensor:
    """[B, 3, S, S] normalised -> [B, t + n, d]: the tokens that enter the first block."""
    model = backbone.model
    tokens: Tensor = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    return tokens


def entering(backbone: Backbone, images: Tensor, blocks: range) -> Iterator[Tensor]:
    """[B, 3, S, S] normalised -> yields [B, t + n, d] for each block: the tokens that enter it, without prompts."""
    tokens = embed(backbone, images)
    for index in range(blocks.stop):
        if index in blocks:
            yield tokens
        if index + 1 < blocks.stop:
            tokens = backbone.model.blocks[index](tokens)


def below(backbone: Backbone, images: Tensor, depth: Depth | None) -> Tensor:
    """[B, 3, S, S] normalised -> [B, t + n, d]: the tokens that enter the first prompted block; None: the first."""
    first = 0 if depth is None else prompted_blocks(depth, backbone.depth)[0]
    tokens: Tensor = backbone.model.blocks[:first](embed(backbone, images))
    return tokens


def compile_prompts(backbone: Backbone, prompts: Tensor, depth: Depth, pooling: Pooling) -> Compiled:
    """Plain prompts [R, k, m, d] -> what `above` takes. A gradient passes."""
    sets = prompts.shape[0]
    if depth is Depth.SHALLOW:
        return Compiled(depth, sets, tokens=prompts[:, 0])
    blocks = [backbone.model.blocks[index] for index in prompted_blocks(depth, backbone.depth)]
    pairs = [_keys_and_values(block, prompts[:, at]) for at, block in enumerate(blocks)]
    if pooling is not Pooling.MEAN_ALL:
        return Compiled(depth, sets, tuple(key for key, _ in pairs), tuple(value for _, value in pairs))
    keys, values = tuple(key for key, _ in pairs[:-1]), tuple(value for _, value in pairs[:-1])
    return Compiled(depth, sets, keys, values, tokens=prompts[:, -1])


def above(backbone: Backbone, tokens: Tensor, compiled: Compiled | None, pooling: Pooling) -> Tensor:
    """What `below` gave, for each prompt set its own B rows in the order of the sets [R B, t + n, d], -> [R B, d].

    Without prompts (`compiled` None) the tokens are those that enter the first block.
    """
    model, prefix = backbone.model, backbone.model.num_prefix_tokens
    first = 0 if compiled is None else prompted_blocks(compiled.depth, backbone.depth)[0]
    last = backbone.depth - 1
    keys = () if compiled is None else compiled.keys
    values = () if compiled is None else compiled.values
    # Where prompts are tokens, the block at which they become so.
    joining = -1 if compiled is None or compiled.tokens is None else 0 if compiled.depth is Depth.SHALLOW else last
    absent = None if compiled is None or compiled.absent is None else _to_rows(compiled.absent, len(tokens))
    # Prompts that are further keys stand before all tokens.
    visible = _visible(absent, 0, tokens.shape[1]) if keys else None
    inserted = 0
    for index in range(first, last + 1):
        if index == joining:
            assert compiled is not None
            assert compiled.tokens is not None
            visible = _visible(absent, prefix, tokens.shape[1] - prefix)
            tokens = insert(tokens, compiled.tokens, prefix)
            inserted = compiled.tokens.shape[1]
        queries = slice(None) if index < last else _read_by(pooling, prefix, inserted)
        more = (keys[index - first], values[index - first]) if index - first < len(keys) else None
        tokens = _block(model.blocks[index], tokens, queries, more, visible)
    return _pool(model, tokens, pooling, inserted, absent if inserted else None)


def features(
    backbone: Backbone,
    images: Tensor,
    prompts: Tensor | None = None,
    depth: Depth = Depth.SHALLOW,
    pooling: Pooling | None = None,
) -> Tensor:
    """[B, 3, S, S] normalised, plain prompts [k, m, d], or a set per row [B, k, m, d] -> features [B, d].

    Without prompts this is the plain backbone; without a pooling the backbone's own is taken.
    """
    pooling = pooling or backbone.pooling
    if prompts is None:
        return above(backbone, embed(backbone, images), None, pooling)
    sets = prompts if prompts.ndim == 4 else prompts[None]
    compiled = compile_prompts(backbone, sets, depth, pooling)
    return above(backbone, below(backbone, images, depth), compiled, pooling)


def insert(tokens: Tensor, prompts: Tensor, prefix: int) -> Tensor:
    """[R B, t + n, d], prompts [R, m, d] -> [R B, t + m + n, d], prompts after the prefix."""
    prompts = _to_rows(prompts, len(tokens)).to(tokens.dtype)
    return torch.cat([tokens[:, :prefix], prompts, tokens[:, prefix:]], dim=1)


def _block(
    block: Any, tokens: Tensor, queries: slice, more: tuple[Tensor, Tensor] | None, visible: Tensor | None
) -> Tensor:
    """[R B, N, d] -> [R B, N or fewer, d]: timm's Block for the tokens `queries`, with further keys and values.

    `visible` [R B, 1, 1, keys] is false for keys that are padding; None where there is none.
    """
    asking = tokens[:, queries]
    tokens = asking + block.ls1(_attend(block.attn, block.norm1(tokens), queries, more, visible))
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))  # type: ignore[no-any-return]


def _attend(
    attn: Any, tokens: Tensor, queries: slice, more: tuple[Tensor, Tensor] | None, visible: Tensor | None
) -> Tensor:
    """Normalised tokens [R B, N, d] -> attention's output [R B, queries, d]."""
    asking = tokens[:, queries]
    if asking.shape[1] == tokens.shape[1] and (more is None or not torch.is_grad_enabled()):
        query, key, value = _heads(attn, attn.qkv(tokens), 3)
    else:
        # Projected apart: with further keys and values these are copied, and autograd would keep the originals alive
        # for the sake of the query beside them.
        (query,) = _heads(attn, _project(attn, asking, slice(0, attn.attn_dim)), 1)
        key, value = _heads(attn, _project(attn, tokens, slice(attn.attn_dim, None)), 2)
    query, key = attn.q_norm(query), attn.k_norm(key)
    if more is not None:
        key = torch.cat([_to_rows(more[0], len(tokens)).to(key.dtype), key], dim=2)
        value = torch.cat([_to_rows(more[1], len(tokens)).to(value.dtype), value], dim=2)
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    mixed = attn.norm(mixed.transpose(1, 2).flatten(2))
    if attn.gate is not None:
        mixed = mixed * attn.gate(asking).sigmoid()
    output: Tensor = attn.proj(mixed)
    return output


def _keys_and_values(block: Any, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts of a block [R, m, d] -> K_P and V_P, [R, H, m, c] each."""
    attn = block.attn
    key, value = _heads(attn, _project(attn, block.norm1(prompts), slice(attn.attn_dim, None)), 2)
    return attn.k_norm(key), value


def _project(attn: Any, tokens: Tensor, rows: slice) -> Tensor:
    """[B, N, d] -> [B, N, rows]: some rows of qkv alone; timm keeps queries, keys and values in this order."""
    bias = attn.qkv.bias
    return functional.linear(tokens, attn.qkv.weight[rows], None if bias is None else bias[rows])


def _heads(attn: Any, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
    """[B, N, parts a] -> `parts` tensors [B, H, N, c]."""
    rows, count, _ = projected.shape
    split = projected.reshape(rows, count, parts, attn.num_heads, attn.head_dim)
    return split.permute(2, 0, 3, 1, 4).unbind(0)


def _to_rows(sets: Tensor, rows: int) -> Tensor:
    """[R, ...] -> [rows, ...]: each set for its own rows / R rows, in order."""
    assert rows % len(sets) == 0
    return sets[:, None].expand(-1, rows // len(sets), *sets.shape[1:]).flatten(0, 1)


def _visible(absent: Tensor | None, before: int, after: int) -> Tensor | None:
    """[R B, m] -> [R B, 1, 1, before + m + after]: of the keys in this order, those that are not padding."""
    if absent is None:
        return None
    return functional.pad(~absent, (before, after), value=True)[:, None, None]


def _read_by(pooling: Pooling, prefix: int, inserted: int) -> slice:
    """The tokens leaving the last block that the pooling looks at: no other needs to be computed."""
    if pooling is Pooling.CLS:
        return slice(0, 1)
    if pooling is Pooling.MEAN_ALL:
        return slice(prefix, None)
    return slice(prefix + inserted, None) if pooling is Pooling.MEAN_PATCHES else slice(None)


def _pool(model: Any, tokens: Tensor, pooling: Pooling, inserted: int, absent: Tensor | None) -> Tensor:
    """The tokens that `_read_by` chose, leaving the last block -> features [B, d], through the model's own norm."""
    # One of the two norms is the identity in timm: `norm` where one token is pooled, `fc_norm` with means.
    if pooling is Pooling.MAP:
        prefix = model.num_prefix_tokens
        patches = tokens[:, prefix + inserted :]
        tokens = torch.cat([tokens[:, :prefix], patches], dim=1) if model.pool_include_prefix else patches
        features: Tensor = model.fc_norm(model.attn_pool(model.norm(tokens)))
    elif pooling is Pooling.MEAN_ALL and absent is not None:
        counted = functional.pad(~absent, (0, tokens.shape[1] - inserted), value=True)[..., None]
        mean = torch.where(counted, tokens, 0).sum(dim=1) / counted.sum(dim=1)
        features = model.fc_norm(model.norm(mean))
    else:
        features = model.fc_norm(model.norm(tokens.mean(dim=1)))
    return features
