"""What answers by a network that knows all that a model's files say (GEN-51).

What is refused here is not a bad model: whoever calls asks another network, whose loader says what
is wrong where something is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from kolm_build.core.attached_files import has_adapter
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.chat import Chat
from kolm_build.runtime.decoder_config import DecoderConfig
from kolm_build.runtime.files import ModelFiles
from kolm_build.runtime.speaker import Join, Speaker


class Configured(Protocol):
    """A network that says what it is."""

    config: DecoderConfig


N = TypeVar("N", bound=Configured)


def speaker_by(
    files: ModelFiles,
    network_of: Callable[[ModelFiles], N],
    *,
    read_by: Callable[[N], Callable[[Sequence[int]], Any]],
    join: Join,
) -> Speaker | None:
    """What answers by a network of `files`; None where they say what it does not know.

    Args:
        files: The model's.
        network_of: Makes the network; an `InvalidRecordError` of its is a network that it does not
            know.
        read_by: What reads a prompt by a network.
        join: Makes prompts that were read one.

    Raises:
        InvalidRecordError: The tokenizer or the chat template is bad.
    """
    if has_adapter(files.extents.keys()):
        return None
    try:
        network = network_of(files)
    except InvalidRecordError:
        return None
    return Speaker(
        network=network,
        chat=Chat.of(files),
        window=network.config.window,
        words=network.config.vocabulary,
        read=read_by(network),
        join=join,
    )
