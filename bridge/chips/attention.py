"""PyTorch's attention with its projections as linear layers, which go to tiles."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridge.chips.plain_layers import carry_over, fill


class PlainAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` as four linear layers `q_proj`, `k_proj`, `v_proj`, `out_proj`.

        softmax(Q K^T / sqrt(head width) + masks) V, head by head, then out_proj

    It takes and gives what PyTorch's does in evaluation mode; the packed weights can be read.
    Hooks of PyTorch's `out_proj`, which is never called there, stay behind.
    """

    def __init__(self, attention: nn.MultiheadAttention):
        nn.Module.__init__(self)
        self._qkv_same_embed_dim = False  # PyTorch's encoder layers have no fast path for these
        if attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError(
                "(MultiheadAttention) adds rows to its keys and values (add_bias_kv, "
                "add_zero_attn), which its layers on tiles do not: name it in digital_layers"
            )
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.head_dim = attention.head_dim
        self.batch_first = attention.batch_first
        if attention.in_proj_weight is not None:
            weights = attention.in_proj_weight.chunk(3)
        else:
            weights = (
                attention.q_proj_weight,
                attention.k_proj_weight,
                attention.v_proj_weight,
            )
        bias = attention.in_proj_bias
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (
            _linear(weight, one) for weight, one in zip(weights, biases, strict=True)
        )
        plain: Any = _linear(attention.out_proj.weight, attention.out_proj.bias)
        self.out_proj = plain
        carry_over(attention, self)

    def _packed(self, name: str) -> Tensor | None:
        tensors: list[Any] = [
            getattr(layer, name) for layer in (self.q_proj, self.k_proj, self.v_proj)
        ]
        unpacked = tensors[0] is None or len({one.shape[1:] for one in tensors}) > 1
        return None if unpacked else torch.cat(tensors)

    # The three projections' weights and biases in one, as PyTorch has them.
    in_proj_weight: Any = property(lambda self: self._packed("weight"))
    in_proj_bias: Any = property(lambda self: self._packed("bias"))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Output and, with `need_weights`, the attention's weights; see PyTorch's."""
        batched = query.ndim == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:  # each sample's rows together, which have its noise
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = map(self._heads, (self.q_proj(query), self.k_proj(key), self.v_proj(value)))
        mask = self._mask(attn_mask, key_padding_mask, len(q), q)
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.mT * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            found = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            found = F.scaled_dot_product_attention(q, k, v, mask)
        output = self.out_proj(found.transpose(1, 2).flatten(2))
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _heads(self, x: Tensor) -> Tensor:
        """`[batch, row, feature]` as `[batch, head, row, feature of the head]`."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, batch: int, like: Tensor
    ) -> Tensor | None:
        """What is added to the scores `[batch, head, query, key]`: minus infinity shuts out."""
        found = None
        if attn_mask is not None:
            found = _added(attn_mask, like)
            if found.ndim == 3:  # for each head of each sample
                found = found.unflatten(0, (batch, self.num_heads))
        if padding is not None:
            shut = _added(padding, like)[:, None, None]
            found = shut if found is None else found + shut
        return found


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    out, inputs = weight.shape
    made: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, out, bias=bias is not None)
    fill(made, weight, bias)
    return made


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return like.new_zeros(mask.shape).masked_fill(mask, float("-inf"))
