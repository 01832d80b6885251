# torchtitan forks with PrimusTurboFlexTokenDispatcher: run this in every rank before the model is built.
# Carries num_sms, chunk and buffer. torchtitan itself is on DeepEP V2 and ignores all of this.
# Two conventions for a tuned tuple are in use:
#   (nvl_chunk, nvl_buffer, rdma_chunk, rdma_buffer): num_sms stands apart and is put before it. Used here.
#   (num_sms, nvl_chunk, nvl_buffer): the order of deep_ep.Config, as in (24, 8, 256). Given where the first is
#   wanted it becomes Config(num_sms, 24, 8, 256), a chunk of 24 in a buffer of 8, which DeepEP asserts against.
#
# deepep-sweep, machine: 2 x NVIDIA H100 80GB HBM3, EP=2
# deepep-sweep, hosts: vm
# deepep-sweep, workload: deepseek_v3: 4096 tokens a rank, hidden 7168, 256 experts, top-8, bf16 dispatch, routing uniform
# deepep-sweep, deep_ep: tokenspeed-deepep 1.2.1.post20251110
# deepep-sweep, measured: 2026-11-24T22:41:29Z
# deepep-sweep, command: deepep-sweep -m 'ep='"'"'2'"'"'' grid=full 'search.candidates=[[24,8,256]]' run=outputs/new/h100x2-ep2-bf16
# deepep-sweep, verdict: tuned: the optimal pair is faster than the default; default / fastest = 2.305, 95 % interval 2.297 to 2.312
# deepep-sweep, pick: fastest
# deepep-sweep, dispatch: (num_sms, nvl_chunk, nvl_buffer) = (128, 10, 128): median 201.01 us, 95 % interval 200.50 to 201.53
# deepep-sweep, combine: (num_sms, nvl_chunk, nvl_buffer) = (128, 6, 512): median 216.02 us, 95 % interval 215.71 to 216.33
# deepep-sweep, beside_gemms: 5404.2 us, 95 % interval 5011.8 to 5827.4, until both are done
from torchtitan.distributed.deepep.utils import PrimusTurboFlexTokenDispatcher

PrimusTurboFlexTokenDispatcher.turbo_deepep_num_cus = 128
PrimusTurboFlexTokenDispatcher.turbo_deepep_dispatch_tuned_config = (10, 128, 6, 128)
PrimusTurboFlexTokenDispatcher.turbo_deepep_combine_tuned_config = (6, 512, 6, 128)
