"""nn.MultiheadAttention, so that whole heads of it can be pruned.

torch computes the width of a head from the width of the stream, which stays when heads go. So the copy that is traced,
and a thin network that has lost heads, run the same arithmetic from the number of heads and the width of one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadwiseAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention with `num_heads` heads of `head_dim` channels each, whatever the width of the stream."""

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
        """Return what nn.MultiheadAttention returns: the attended values, and the weights where they are asked for."""
        if query.is_nested:
            return self._nested(query), None
        single = query.dim() == 2
        swap = not single and not self.batch_first
        projected = self._project(query, key, value)
        heads = [x.unsqueeze(0) if single else x.transpose(0, 1) if swap else x for x in projected]
        heads[1:] = (self._appended(x, bias) for x, bias in zip(heads[1:], (self.bias_k, self.bias_v)))
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in heads)  # [B, H, N, D]
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            attended = (F.dropout(weights, dropout) if dropout else weights) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        if single:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out.transpose(0, 1) if swap else out, weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        together: Tensor | None = self.in_proj_weight
        if together is not None and query is key and key is value:
            return F.linear(query, together, self.in_proj_bias).chunk(3, -1)
        each = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight] if together is None else together.chunk(3)
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(F.linear(x, weight, bias) for x, weight, bias in zip((query, key, value), each, biases))

    def _nested(self, x: Tensor) -> Tensor:
        """Attend within each sequence of a nested tensor, as nn.TransformerEncoder makes them of padded ones."""
        lengths = torch.tensor([len(sequence) for sequence in x.unbind()], device=x.device)
        padded = x.to_padded_tensor(0.0)
        padding = torch.arange(padded.shape[1], device=x.device) >= lengths[:, None]
        out, _ = self.forward(padded, padded, padded, padding, need_weights=False)
        return torch._nested_tensor_from_mask(out, ~padding)

    def _appended(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return keys or values with those that every sequence gets at its end: learned ones, zeros, or none."""
        if bias is not None:
            x = torch.cat([x, bias.expand(len(x), 1, -1)], 1)
        return torch.cat([x, x.new_zeros(len(x), 1, x.shape[2])], 1) if self.add_zero_attn else x

    def _mask(self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Return what is added to the scores, [B or 1, H or 1, N, S]; None where nothing is."""
        if mask is not None:
            mask = _additive(mask, q.dtype)
            mask = mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 else mask[None, None]
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[-1]))
        if padding is not None:
            padded = _additive(padding, q.dtype)
            padded = F.pad(padded, (0, k.shape[2] - padded.shape[-1])).reshape(-1, 1, 1, k.shape[2])
            mask = padded if mask is None else mask + padded
        return mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add: a boolean one is true where nothing may be seen."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -torch.inf)


def run_headwise(module: nn.Module) -> None:
    """Let an nn.MultiheadAttention run from the width of its heads."""
    if type(module) is nn.MultiheadAttention:
        module.__class__ = HeadwiseAttention
        module._qkv_same_embed_dim = False  # keeps nn.TransformerEncoderLayer from computing it all by itself


@contextmanager
def layer_by_layer() -> Iterator[None]:
    """Let transformers run their layers one after the other: in inference torch runs one operator for all of a layer,
    on nested tensors where sequences are padded, so that nobody sees what their parts give."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)
