"""The key-value cache of a batch of rows that are generated together."""

import torch
from torch import Tensor

from arimage.autoregressive.config import TextModelConfig


class KeyValueCache:
    """Preallocated keys and values, written row by row at each row's own length.

    Rows start with prompts of different lengths, aligned at the left; the token that comes next is written at
    ``lengths[row]``, so nothing is padded in between.

    Attributes:
        keys, values: (layers, B, kv_heads, capacity, head_dim).
        lengths: (B,) tokens held by each row.
    """

    def __init__(
        self, config: TextModelConfig, batch: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self._rows = torch.arange(batch, device=device)
        self._longest = 0
        self._unequal = False

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write a prompt's keys and values, each (B, L, kv_heads, head_dim)."""
        self.keys[layer, :, :, : keys.shape[1]] = keys.transpose(1, 2)
        self.values[layer, :, :, : values.shape[1]] = values.transpose(1, 2)

    def filled(self, lengths: Tensor) -> None:
        """Say how many tokens of the prompt each row holds: (B,)."""
        self.lengths = lengths.to(self.lengths)
        self._longest = int(lengths.max())
        self._unequal = bool((lengths != lengths[0]).any())

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write one token's (B, kv_heads, head_dim); return all keys and values up to the longest row's."""
        if self._unequal:
            self.keys[layer, self._rows, :, self.lengths] = key
            self.values[layer, self._rows, :, self.lengths] = value
        else:
            self.keys[layer, :, :, self._longest] = key
            self.values[layer, :, :, self._longest] = value
        end = self._longest + 1
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def visible(self) -> Tensor | None:
        """Which of the columns that :meth:`append` returns a row sees: (B, T), or None for all."""
        if not self._unequal:
            return None
        return torch.arange(self._longest + 1, device=self.lengths.device) <= self.lengths[:, None]

    def advance(self) -> None:
        """One token has been appended in every layer."""
        self.lengths = self.lengths + 1
        self._longest += 1

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices), in this order."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]
        self._rows = self._rows[: len(rows)]
        self.filled(self.lengths[rows])
