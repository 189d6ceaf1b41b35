"""The key-value cache of a batch of rows that are generated together."""

import torch
from torch import Tensor

from arimage.autoregressive.config import TextModelConfig


class KeyValueCache:
    """Preallocated keys and values, written row by row at each row's own length.

    Rows start with prompts of different lengths, aligned at the left; the token that comes next is written at
    ``lengths[row]``, so nothing is padded in between.

    Attributes:
        pairs: for each layer (B, 2 * kv_heads, capacity, head_dim), the key heads before the value heads.
        lengths: (B,) tokens held by each row.
    """

    def __init__(
        self, config: TextModelConfig, batch: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.heads = config.num_key_value_heads
        shape = (batch, 2 * self.heads, capacity, config.head_dim)
        self.pairs = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self._rows = torch.arange(batch, device=device)
        self._held = torch.zeros(batch, dtype=torch.long)
        self._longest = 0
        self._unequal = False

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write a prompt's keys and values, each (B, L, kv_heads, head_dim)."""
        self.pairs[layer][:, :, : keys.shape[1]] = torch.cat([keys, values], dim=2).transpose(1, 2)

    def filled(self, lengths: Tensor) -> None:
        """Say how many tokens of the prompt each row holds: (B,), on the CPU."""
        self._held = lengths
        self.lengths = lengths.to(self.lengths.device)
        self._longest = int(lengths.max())
        self._unequal = bool((lengths != lengths[0]).any())

    def append(self, layer: int, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Write the key and value heads of some tokens of every row, (B, S, 2 * kv_heads, head_dim), into a layer.

        Returns:
            All its keys and values up to the longest row's, each (B, kv_heads, T, head_dim).
        """
        pairs, count = self.pairs[layer], pair.shape[1]
        if self._unequal:
            places = self.lengths[:, None] + torch.arange(count, device=self.lengths.device)
            pairs[self._rows[:, None], :, places] = pair
        else:
            pairs.narrow(2, self._longest, count).copy_(pair.transpose(1, 2))
        keys, values = pairs.narrow(2, 0, self._longest + count).split(self.heads, dim=1)
        return keys, values

    def visible(self, count: int = 1) -> Tensor | None:
        """Which columns of :meth:`append` each of ``count`` new tokens sees: (B, S, T), or None for all."""
        if not self._unequal and count == 1:
            return None
        device = self.lengths.device
        ends = self.lengths[:, None] + torch.arange(count, device=device)
        return torch.arange(self._longest + count, device=device) <= ends[..., None]

    def advance(self, counts: int | Tensor = 1) -> None:
        """So many of the tokens that have been appended in every layer stay; what follows is written over.

        Args:
            counts: of every row, or (B,) of each, on the CPU. A number spares the device a copy.
        """
        if isinstance(counts, Tensor):
            self.filled(self._held + counts)
        else:
            self._held = self._held + counts
            self.lengths = self.lengths + counts
            self._longest += counts

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices), in this order."""
        self.pairs = [pairs[rows] for pairs in self.pairs]
        self._rows = self._rows[: len(rows)]
        self.filled(self._held[rows.cpu()])
