# torchtitan forks with PrimusTurboFlexTokenDispatcher: run this in every rank before the model is built.
# Carries num_sms, chunk and buffer. torchtitan itself is on DeepEP V2 and ignores all of this.
# Two conventions for a tuned tuple are in use:
#   (nvl_chunk, nvl_buffer, rdma_chunk, rdma_buffer): num_sms stands apart and is put before it. Used here.
#   (num_sms, nvl_chunk, nvl_buffer): the order of deep_ep.Config, as in (24, 8, 256). Given where the first is
#   wanted it becomes Config(num_sms, 24, 8, 256), a chunk of 24 in a buffer of 8, which DeepEP asserts against.
#
# deepep-sweep, machine: 2 x NVIDIA H100 80GB HBM3, EP=2
# deepep-sweep, hosts: vm
# deepep-sweep, workload: deepseek_v3: 4096 tokens a rank, hidden 7168, 256 experts, top-8, fp8 dispatch, routing uniform
# deepep-sweep, deep_ep: tokenspeed-deepep 1.2.1.post20251110
# deepep-sweep, measured: 2026-11-24T22:42:51Z
# deepep-sweep, command: deepep-sweep -m 'ep='"'"'2'"'"'' grid=full 'search.candidates=[[24,8,256]]' run=outputs/new/h100x2-ep2-fp8 workload.dtype=fp8
# deepep-sweep, verdict: tuned: the optimal pair is faster than the default; default / fastest = 2.356, 95 % interval 2.352 to 2.360
# deepep-sweep, pick: fastest
# deepep-sweep, dispatch: (num_sms, nvl_chunk, nvl_buffer) = (128, 8, 256): median 121.75 us, 95 % interval 121.47 to 122.04
# deepep-sweep, combine: (num_sms, nvl_chunk, nvl_buffer) = (128, 6, 256): median 216.42 us, 95 % interval 216.09 to 216.75
from torchtitan.distributed.deepep.utils import PrimusTurboFlexTokenDispatcher

PrimusTurboFlexTokenDispatcher.turbo_deepep_num_cus = 128
PrimusTurboFlexTokenDispatcher.turbo_deepep_dispatch_tuned_config = (8, 256, 6, 128)
PrimusTurboFlexTokenDispatcher.turbo_deepep_combine_tuned_config = (6, 256, 6, 128)
