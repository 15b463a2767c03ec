"""The CUDA engine: `DecodeWeights` over memory that never moves, as a captured graph needs it.

R rows, C columns of the cache that attention reads; other letters as in `prefill`. A row's token
number i lies in column i: prompts begin in the first column, whatever their length, and what lies
after a row's newest token is masked. The cache is in the precision of products.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lmpg.language.models.inputs import mask_and_positions, rows_of_parts
from lmpg.language.sampling.engines.compiled import Kernels, kernels_for, norm_arguments
from lmpg.language.sampling.engines.prefill import embedded, read_prompts, softcapped
from lmpg.language.sampling.engines.weights import DecodeWeights, LayerWeights, NormWeights


class CudaDecoder:
    """Hidden states after the last token of rows: `prefill` once, then `advance` token by token.

    `advance` reads and writes the same memory at every call of the same shape, asks the host for
    nothing, and leaves no trace in Python.
    """

    def __init__(
        self, weights: DecodeWeights, columns: int, rows: int, kernels: Kernels | None = None
    ):
        """Room for `rows` contexts of `columns` tokens."""
        self.weights, self.columns = weights, columns
        device = weights.embedding.device
        self._kernels = kernels_for(device) if kernels is None else kernels
        shape = (rows, columns, 2 * weights.kv_heads, weights.head_dim)
        zeros = torch.zeros(len(weights.layers), *shape, dtype=weights.dtype, device=device)
        self._caches = zeros.unbind(0)
        self._position_R = torch.zeros(rows, dtype=torch.long, device=device)
        self._first_R = torch.arange(rows, device=device) * columns
        self._column_C = torch.arange(columns, device=device)
        self._last_position = min(columns, weights.num_positions) - 1

    def prefill(self, ids_PL: Tensor, lengths_P: Tensor, prompt_R: Tensor) -> Tensor:
        """Reads prompts (padded left) and opens a row for each entry of prompt_R; hidden [R, D]
        after each row's prompt."""
        width, num_rows = ids_PL.shape[1], len(prompt_R)
        end_P = torch.full_like(lengths_P, width)
        mask_PL, position_PL = mask_and_positions(end_P - lengths_P, end_P, width)
        # padding goes from the front of a row to its end
        column_L = torch.arange(width, device=ids_PL.device)
        from_PL = (column_L + (end_P - lengths_P)[:, None]).clamp(max=width - 1)
        parts = rows_of_parts(ids_PL, prompt_R)

        def take(layer: int, part: slice, key_value: Tensor) -> None:
            x = key_value.gather(2, from_PL[part, None, :, None].expand_as(key_value))
            cache, (rows, prompts) = self._caches[layer], parts[part.start]
            if part.start == 0:  # an earlier rollout's are masked, but 0 times NaN would be NaN
                cache.zero_()
            read = x.index_select(0, prompts).transpose(1, 2).to(cache.dtype)
            cache[:num_rows, :width].index_copy_(0, rows, read)

        hidden_PD = read_prompts(self.weights, ids_PL, mask_PL, position_PL, take)
        self._position_R.zero_()
        self._position_R[:num_rows] = lengths_P.index_select(0, prompt_R)
        return hidden_PD.index_select(0, prompt_R)

    def advance(self, tokens_R: Tensor, columns: int | None = None) -> Tensor:
        """Appends a token to each of the first R rows, none of which is then longer than `columns`;
        hidden [R, D] after it."""
        w, kernels, num_rows = self.weights, self._kernels, len(tokens_R)
        position_R = self._position_R[:num_rows]
        stream = embedded(w, tokens_R, position_R)
        rotations = {kind: self._rotations(x, position_R) for kind, x in w.rotations.items()}
        biases = {window: self._bias(position_R, columns, window) for window in (None, *w.windows)}
        slots_R = self._first_R[:num_rows] + position_R
        x = kernels.norm(stream, *norm_arguments(w.layers[0].attention_norm, w.dtype))
        following = [norm_arguments(layer.attention_norm, w.dtype) for layer in w.layers[1:]]
        following.append(norm_arguments(w.last_norm, torch.float32))
        for layer, cache, norm in zip(w.layers, self._caches, following):
            rotation = None if layer.rotary is None else rotations[layer.rotary]
            mixed = self._attended(layer, cache, x, rotation, biases[layer.window], slots_R)
            x = self._post(layer.out(mixed), layer.attention_post_norm)
            stream, x = kernels.add_norm(stream, x, *norm_arguments(layer.mlp_norm, w.dtype))
            up = None if layer.up is None else layer.up(x)
            x = layer.down(kernels.gate(layer.gate(x), up, w.activation))
            stream, x = kernels.add_norm(stream, self._post(x, layer.mlp_post_norm), *norm)
        # a finished row that has not left yet must not run out of its columns
        position_R.add_(1).clamp_(max=self._last_position)
        return x

    def keep(self, holes: Tensor, tail: Tensor, columns: int) -> None:
        """Moves the rows `tail`, none of them longer than `columns`, to the places `holes`."""
        for x in (*(cache[:, :columns] for cache in self._caches), self._position_R):
            x.index_copy_(0, holes, x.index_select(0, tail))

    def _post(self, x_RD: Tensor, norm: NormWeights | None) -> Tensor:
        """The norm of what is added to the stream, where there is one."""
        if norm is None:
            return x_RD
        return self._kernels.norm(x_RD.float(), *norm_arguments(norm, torch.float32))

    def _rotations(self, table: Tensor, position_R: Tensor) -> Tensor:
        return torch.view_as_real(table).flatten(1).index_select(0, position_R)

    def _bias(self, position_R: Tensor, columns: int | None, window: int | None) -> Tensor:
        """What is added to scores [R, K, heads of a group, C]: −∞ after each row's new token, and
        for tokens that the window has left behind."""
        w, column_C, position_R1 = self.weights, self._column_C[:columns], position_R[:, None]
        hidden_RC = column_C > position_R1
        if window is not None:
            hidden_RC = hidden_RC | (column_C <= position_R1 - window)
        bias_RC = torch.zeros_like(hidden_RC, dtype=w.dtype)
        bias_RC.masked_fill_(hidden_RC, -torch.inf)
        return bias_RC[:, None, None].expand(-1, w.kv_heads, w.shared_by, -1)

    def _attended(
        self,
        layer: LayerWeights,
        cache: Tensor,
        x_RD: Tensor,
        rotation: Tensor | None,
        bias: Tensor,
        slots_R: Tensor,
    ) -> Tensor:
        """Attention of each row's new token to its context, itself included: [R, H · E]."""
        w, norm = self.weights, layer.head_norm_HE
        weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        query, key_value = self._kernels.rotate(
            layer.qkv(x_RD), (w.heads, w.kv_heads), rotation, weight, eps, w.norms_join_heads
        )
        cache.flatten(0, 1).index_copy_(0, slots_R, key_value)
        context = cache[: bias.shape[0], : bias.shape[3]].transpose(1, 2)
        keys, values = context.split(w.kv_heads, 1)
        # the heads of a group are queries of one head, so that its keys are read once
        grouped = query.unflatten(1, (w.kv_heads, -1))
        if w.softcap is None:
            mixed = F.scaled_dot_product_attention(
                grouped, keys, values, attn_mask=bias, scale=layer.scaling
            )
        else:  # which torch's fused attention does not know
            scores = softcapped((grouped @ keys.mT).float() * layer.scaling, w.softcap) + bias
            mixed = scores.softmax(-1).to(values.dtype) @ values
        return mixed.flatten(1)
