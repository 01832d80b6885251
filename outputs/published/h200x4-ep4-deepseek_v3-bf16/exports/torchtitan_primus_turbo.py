# torchtitan forks with PrimusTurboFlexTokenDispatcher: run this in every rank before the model is built.
# Sets num_sms, chunk and buffer. torchtitan itself is on DeepEP V2 and ignores all of this.
# Two conventions for a tuned tuple are in use:
#   (nvl_chunk, nvl_buffer, rdma_chunk, rdma_buffer): num_sms is separate. This file uses it.
#   (num_sms, nvl_chunk, nvl_buffer): the order of deep_ep.Config, as in (24, 8, 256).
#   A tuple of the second kind in place of the first becomes Config(num_sms, 24, 8, 256), a chunk of 24 in a buffer
#   of 8, which DeepEP asserts against.
#
# deepep-sweep, machine: 4 x NVIDIA H200, EP=4
# deepep-sweep, hosts: vm
# deepep-sweep, workload: deepseek_v3: 4096 tokens a rank, hidden 7168, 256 experts, top-8, bf16 dispatch, routing uniform
# deepep-sweep, deep_ep: tokenspeed-deepep 1.2.1.post20251110
# deepep-sweep, measured: 2026-11-26T11:32:52Z
# deepep-sweep, command: deepep-sweep -m 'ep='"'"'4'"'"'' grid=full workload=deepseek_v3 workload.dtype=bf16 run=outputs/published/ep4-deepseek_v3-bf16 'search.candidates=[[24,8,256]]'
# deepep-sweep, verdict: tuned: the optimal pair is faster than the default; default / fastest = 1.629, 95 % CI 1.626 to 1.631
# deepep-sweep, pick: fastest
# deepep-sweep, dispatch: (num_sms, nvl_chunk, nvl_buffer) = (128, 4, 256): median 497.17 us, 95 % CI 496.61 to 497.72
# deepep-sweep, combine: (num_sms, nvl_chunk, nvl_buffer) = (128, 6, 256): median 513.07 us, 95 % CI 512.14 to 514.01
from torchtitan.distributed.deepep.utils import PrimusTurboFlexTokenDispatcher

PrimusTurboFlexTokenDispatcher.turbo_deepep_num_cus = 128
PrimusTurboFlexTokenDispatcher.turbo_deepep_dispatch_tuned_config = (4, 256, 6, 128)
PrimusTurboFlexTokenDispatcher.turbo_deepep_combine_tuned_config = (6, 256, 6, 128)
