# torchtitan forks with PrimusTurboFlexTokenDispatcher: run this in every rank before the model is built.
# Carries num_sms, chunk and buffer. torchtitan itself is on DeepEP V2 and ignores all of this.
# Two conventions for a tuned tuple are in use:
#   (nvl_chunk, nvl_buffer, rdma_chunk, rdma_buffer): num_sms stands apart and is put before it. Used here.
#   (num_sms, nvl_chunk, nvl_buffer): the order of deep_ep.Config, as in (24, 8, 256). Given where the first is
#   wanted it becomes Config(num_sms, 24, 8, 256), a chunk of 24 in a buffer of 8, which DeepEP asserts against.
#
# deepep-sweep, machine: 2 x NVIDIA H200, EP=2
# deepep-sweep, hosts: vm
# deepep-sweep, workload: deepseek_v3: 4096 tokens a rank, hidden 7168, 256 experts, top-8, fp8 dispatch, routing uniform
# deepep-sweep, deep_ep: tokenspeed-deepep 1.2.1.post20251110
# deepep-sweep, measured: 2026-11-23T00:02:54Z
# deepep-sweep, command: deepep-sweep -m 'ep='"'"'2'"'"'' grid=full run=outputs/ep2-fp8 'search.candidates=[[24,8,256]]' workload.dtype=fp8
# deepep-sweep, verdict: tuned: the optimal pair is faster than the default; default / fastest = 2.348, 95 % interval 2.342 to 2.354
# deepep-sweep, pick: fastest
# deepep-sweep, dispatch: (num_sms, nvl_chunk, nvl_buffer) = (128, 8, 128): median 119.68 us, 95 % interval 119.41 to 119.95
# deepep-sweep, combine: (num_sms, nvl_chunk, nvl_buffer) = (128, 14, 256): median 213.01 us, 95 % interval 212.70 to 213.32
# deepep-sweep, beside_gemms: 4744.4 us, 95 % interval 4541.1 to 4956.8, until both are done
from torchtitan.distributed.deepep.utils import PrimusTurboFlexTokenDispatcher

PrimusTurboFlexTokenDispatcher.turbo_deepep_num_cus = 128
PrimusTurboFlexTokenDispatcher.turbo_deepep_dispatch_tuned_config = (8, 128, 6, 128)
PrimusTurboFlexTokenDispatcher.turbo_deepep_combine_tuned_config = (14, 256, 6, 128)
