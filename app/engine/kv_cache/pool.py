"""A K/V pool: keys and values of every row (or source), by length class, on the device.

One tensor per class, [2, layers, slots, kv_heads, columns, head_dim], index 0 keys and 1 values.
This pool is the batch's stacked `past_key_values`: rows with different prefixes, or without any,
are side by side. It carries out the slot table's operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app.engine.attention.native_backend import Part
from app.engine.encoder.encoder_runner import Encoded
from app.engine.kv_cache.entries import Slot
from app.engine.kv_cache.slots import (
    ClearSlot,
    CopyColumns,
    LoadPrefixes,
    PoolOperation,
    StoreSource,
)
from app.errors import GenerationFault
from app.prefix.spec import ModuleShape

_FIRST_SLOTS = 4


class KVPool:
    """Storage for keys and values; grows with use, up to `max_bytes`.

    While rows move to a longer class, and while a class grows, the old and the new place exist
    side by side; `max_bytes` holds again after the step's operations.
    """

    def __init__(
        self,
        shape: ModuleShape,
        capacities: Sequence[int],
        max_bytes: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._shape = shape
        self._capacities = tuple(capacities)
        self.max_bytes = max_bytes
        self._device, self._dtype = device, dtype
        self.kv_heads = shape.kv_heads
        self._slot_bytes = [size * self.column_bytes(shape, dtype) for size in self._capacities]
        self._classes = [self._zeros(index, 0) for index in range(len(self._capacities))]

    @staticmethod
    def column_bytes(shape: ModuleShape, dtype: torch.dtype) -> int:
        """Bytes of one column: keys and values of one token in all layers."""
        return 2 * shape.layers * shape.kv_heads * shape.head_dim * dtype.itemsize

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Everything that is allocated now, by length class."""
        return tuple(self._classes)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._classes)

    def capacity(self, length_class: int) -> int:
        """Columns of each slot of a class."""
        return self._capacities[length_class]

    def keys(self, length_class: int, layer: int) -> torch.Tensor:
        """Keys of one class and layer, [slots, kv_heads, columns, head_dim]."""
        return self._classes[length_class][0, layer]

    def values(self, length_class: int, layer: int) -> torch.Tensor:
        """Values of one class and layer, [slots, kv_heads, columns, head_dim]."""
        return self._classes[length_class][1, layer]

    def part(self, slot: Slot, columns: int) -> Part:
        """The first `columns` of a slot for native code, good until the pool changes its size."""
        tensor = self._classes[slot.length_class]
        halves, layer, slots, head, _, _ = tensor.stride()
        keys = tensor.data_ptr() + slot.index * slots * tensor.itemsize
        return Part(keys, keys + halves * tensor.itemsize, layer, head, columns)

    def apply(self, operation: PoolOperation) -> None:
        self.ensure(operation.target)
        target = self._classes[operation.target.length_class][:, :, operation.target.index]
        if isinstance(operation, CopyColumns):
            source = self._classes[operation.source.length_class][:, :, operation.source.index]
            target[..., : operation.columns, :] = source[..., : operation.columns, :]
        elif isinstance(operation, ClearSlot):
            target.zero_()
        elif isinstance(operation, LoadPrefixes):
            self._load_prefixes(operation, target)
        else:
            self._store_source(operation, target)

    def fit(self, num_rows: Sequence[int], operations: Sequence[PoolOperation] = ()) -> None:
        """Give back slots that nothing needs, if the memory would not suffice otherwise.

        `num_rows` rows of each class need theirs, and so do `operations` that are about to be done.
        """
        needed = list(num_rows)
        for operation in operations:
            slots = [operation.target]
            if isinstance(operation, CopyColumns):
                slots.append(operation.source)
            for slot in slots:
                needed[slot.length_class] = max(needed[slot.length_class], slot.index + 1)
        wanted = 0
        for count, tensor, size in zip(needed, self._classes, self._slot_bytes, strict=True):
            wanted += max(count, tensor.shape[2]) * size
        if wanted > self.max_bytes:
            for index, tensor in enumerate(self._classes):
                if tensor.shape[2] > needed[index]:
                    self._classes[index] = tensor[:, :, : needed[index]].clone()

    def ensure(self, slot: Slot) -> None:
        """Grow the slot's class until it has that slot, and to twice its size if memory allows.

        New memory is zero.
        """
        old = self._classes[slot.length_class]
        if slot.index < old.shape[2]:
            return
        room = (self.max_bytes - self.nbytes) // self._slot_bytes[slot.length_class]
        wanted = max(_FIRST_SLOTS, 2 * old.shape[2], slot.index + 1)
        wanted = max(min(wanted, old.shape[2] + room), slot.index + 1)
        new = self._zeros(slot.length_class, wanted)
        new[:, :, : old.shape[2]] = old
        self._classes[slot.length_class] = new

    def _load_prefixes(self, operation: LoadPrefixes, target: torch.Tensor) -> None:
        column = 0
        occupant = operation.occupant
        for prefix in occupant.prefixes:
            module = prefix.modules.get(occupant.role)
            if module is None:
                continue
            end = column + module.length
            if end > target.shape[3]:
                raise GenerationFault(f"prefix {prefix.digest[:12]} does not fit its slot")
            target[0, :, :, column:end] = module.keys
            target[1, :, :, column:end] = module.values
            column = end

    @staticmethod
    def _store_source(operation: StoreSource, target: torch.Tensor) -> None:
        source, encoded = operation.occupant, operation.encoded
        if not isinstance(encoded, Encoded):
            raise TypeError("a source is stored without having been encoded")
        first = source.num_cached - source.num_tokens
        target[:, :, :, first : source.num_cached] = encoded.keys_values

    def _zeros(self, length_class: int, slots: int) -> torch.Tensor:
        shape = self._shape
        size = (2, shape.layers, slots, shape.kv_heads, self._capacities[length_class])
        return torch.zeros(*size, shape.head_dim, dtype=self._dtype, device=self._device)
