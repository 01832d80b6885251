"""The part of deep_ep 1.2.1 that a shim touches, without a GPU; its Config can be read back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """deep_ep.Config: the same arguments in the same order, the same assertions."""

    num_sms: int = 20
    num_max_nvl_chunked_send_tokens: int = 6
    num_max_nvl_chunked_recv_tokens: int = 256
    num_max_rdma_chunked_send_tokens: int = 6
    num_max_rdma_chunked_recv_tokens: int = 256

    def __post_init__(self) -> None:
        assert self.num_sms % 2 == 0
        assert 0 < self.num_max_nvl_chunked_send_tokens < self.num_max_nvl_chunked_recv_tokens


class Buffer:
    """deep_ep.Buffer: static configs by number of ranks, which its methods use without config=."""

    num_sms = 20

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size

    @staticmethod
    def set_num_sms(new_num_sms: int) -> None:
        assert new_num_sms % 2 == 0
        Buffer.num_sms = new_num_sms

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        return Config(Buffer.num_sms, {2: 24, 4: 6, 8: 6}[num_ranks], 256, 6, 128)

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        return Config(Buffer.num_sms, {2: 10, 4: 9, 8: 4}[num_ranks], 256, 6, 128)

    def dispatch(self, config: Config | None = None) -> Config:
        """The config of the kernel."""
        return self.get_dispatch_config(self.group_size) if config is None else config

    def combine(self, config: Config | None = None) -> Config:
        """See dispatch."""
        return self.get_combine_config(self.group_size) if config is None else config
