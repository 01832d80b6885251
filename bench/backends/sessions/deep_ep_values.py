"""Values of deep_ep's two interfaces, as a Session has them."""

from __future__ import annotations

from typing import Any

import torch

from bench.backends.sessions.session import Overlapped, Payload


class PendingPair:
    """Holds the outputs until the current stream waits for combine, which ends after dispatch. See Pending."""

    def __init__(self, payload: Payload, combined: torch.Tensor, done: Any) -> None:
        """``done``: the event after combine."""
        self._result, self._done = Overlapped(payload, combined), done

    def wait(self) -> Overlapped:
        """See Pending."""
        self._done.current_stream_wait()
        return self._result


def pack(payload: Payload) -> Any:
    """BF16 tokens as they are; FP8 tokens with their scales."""
    tokens, scales = payload
    return tokens if scales is None else (tokens, scales)


def unpack(received: Any) -> Payload:
    """The reverse of ``pack``."""
    return received if isinstance(received, tuple) else (received, None)
