"""A network that the compiled decoder reads: as a `Decoder`, bit for bit, and without torch.

Prompts have a room each, so that rows of any lengths are read on together, each as it is alone
(GEN-71).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kolm_build.numerics.decoder_library import NetworkReader, Room
from kolm_build.runtime.decoder_config import DecoderConfig
from kolm_build.runtime.reading import Floats

Stored = np.ndarray[Any, Any]


class CompiledDecoder:
    """A network.

    Args:
        config: What it is.
        reader: What reads it.
        dtype: What it computes in, by its safetensors name.
    """

    def __init__(self, config: DecoderConfig, reader: NetworkReader, dtype: str) -> None:
        self.config = config
        self.reader = reader
        self._stored = np.float32 if dtype == "F32" else np.uint16

    def read_on(self, room: Room | None, ids: Sequence[int]) -> CompiledPrefix:
        """A prompt, read after what is in `room`, which is used up; from its start if None."""
        rooms = (room or Room(self.reader),)
        return CompiledPrefix(
            reader=self.reader, rooms=rooms, logits=self.reader.read(rooms, [ids])
        )

    def keep(self, room: Room) -> KeptRoom:
        """What was read, in the network's dtype; it stays as it is while more is read."""
        blocks = 2 * self.config.layers * self.config.key_heads
        kept = np.empty((blocks, room.length, self.config.head_width), dtype=self._stored)
        self.reader.keep(room, kept)
        return KeptRoom(self.reader, kept)


@dataclass(frozen=True, slots=True)
class KeptRoom:
    """Keys and values of a prompt that was read.

    Attributes:
        reader: What reads.
        kept: [2 · layers · heads of keys, tokens, width], in the network's dtype.
    """

    reader: NetworkReader
    kept: Stored

    @property
    def tokens(self) -> int:
        """How many tokens they are of."""
        return int(self.kept.shape[1])

    def started(self, tokens: int) -> Room:
        """Room with the first `tokens`."""
        return self.reader.started(self.kept, tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledPrefix:
    """Prompts that were read, to be answered.

    Attributes:
        reader: What reads.
        rooms: The keys and values of each prompt.
        logits: What is expected next, float32, rows by vocabulary.
    """

    reader: NetworkReader
    rooms: Sequence[Room]
    logits: Floats

    @property
    def cache(self) -> Room:
        """The keys and values of a single prompt."""
        (room,) = self.rooms
        return room

    def read(self, chosen: Sequence[int]) -> Floats:
        """What is expected after one token more of each row, `chosen`; float32."""
        return self.reader.read(self.rooms, [[one] for one in chosen])

    def chances(self, logits: Floats, temperature: float) -> Floats:
        """The probabilities of one row's `logits` over `temperature`."""
        return self.reader.softmax(logits / np.float32(temperature))


def joined_prefixes(prefixes: Sequence[CompiledPrefix], *, room: int) -> CompiledPrefix:
    """Prompts that were read as one, to be continued together.

    Args:
        prefixes: The prompts; their rooms are used up.
        room: Most tokens of a continuation; rooms grow as they need.

    Determinism:
        Every row is continued as it is alone, bit for bit.
    """
    del room
    return CompiledPrefix(
        reader=prefixes[0].reader,
        rooms=[one for prefix in prefixes for one in prefix.rooms],
        logits=np.concatenate([prefix.logits for prefix in prefixes]),
    )
