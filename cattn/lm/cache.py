"""Keys and values of the tokens so far, so that each further token costs one row of attention."""

from __future__ import annotations

import numpy as np

from cattn._types import Array


class KeyValueCache:
    """Room for the keys and values of one text, up to the model's context.

    Parameters
    ----------
    blocks, context, heads, head_dim : int
    dtype : str

    Attributes
    ----------
    length : int
        Tokens whose keys and values are kept.

    References
    ----------
    Shazeer, "Fast Transformer Decoding" (2019), section 2.3 (incremental inference).

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.lm.cache import KeyValueCache
    >>> cache = KeyValueCache(1, 8, 2, 4, "float32")
    >>> keys, values = cache.extend(0, np.ones((1, 3, 2, 4)), np.ones((1, 3, 2, 4)))
    >>> cache.advance(3)
    >>> keys.shape, cache.length
    ((1, 3, 2, 4), 3)
    """

    def __init__(self, blocks: int, context: int, heads: int, head_dim: int, dtype: str) -> None:
        self._kv = np.empty((2, blocks, 1, context, heads, head_dim), dtype)
        self.length = 0

    def extend(self, block: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Store one block's new keys and values, (1, n, H, d/H) each; return all so far."""
        end = self.length + k.shape[1]
        self._kv[0, block, :, self.length : end] = k
        self._kv[1, block, :, self.length : end] = v
        return self._kv[0, block, :, :end], self._kv[1, block, :, :end]

    def advance(self, count: int) -> None:
        """Count `count` tokens as stored, once every block has been extended by them."""
        self.length += count

    def clear(self) -> None:
        """Forget everything."""
        self.length = 0
