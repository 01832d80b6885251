# torchtitan forks with PrimusTurboFlexTokenDispatcher: run this in every rank before the model is built.
# Carries num_sms, chunk and buffer. torchtitan itself is on DeepEP V2 and ignores all of this.
# Two conventions for a tuned tuple are in use:
#   (nvl_chunk, nvl_buffer, rdma_chunk, rdma_buffer): num_sms stands apart and is put before it. Used here.
#   (num_sms, nvl_chunk, nvl_buffer): the order of deep_ep.Config, as in (24, 8, 256). Given where the first is
#   wanted it becomes Config(num_sms, 24, 8, 256), a chunk of 24 in a buffer of 8, which DeepEP asserts against.
#
# deepep-sweep, machine: 4 x NVIDIA H200, EP=4
# deepep-sweep, hosts: vm
# deepep-sweep, workload: qwen3_30b_a3b: 4096 tokens a rank, hidden 2048, 128 experts, top-8, fp8 dispatch, routing uniform
# deepep-sweep, deep_ep: tokenspeed-deepep 1.2.1.post20251110
# deepep-sweep, measured: 2026-11-26T11:37:44Z
# deepep-sweep, command: deepep-sweep -m 'ep='"'"'4'"'"'' grid=full workload=qwen3_30b_a3b workload.dtype=fp8 run=outputs/published/ep4-qwen3_30b_a3b-fp8 'search.candidates=[[24,8,256]]'
# deepep-sweep, verdict: tuned: the optimal pair is faster than the default; default / fastest = 2.404, 95 % interval 2.396 to 2.413
# deepep-sweep, pick: fastest
# deepep-sweep, dispatch: (num_sms, nvl_chunk, nvl_buffer) = (128, 16, 256): median 103.32 us, 95 % interval 102.48 to 104.16
# deepep-sweep, combine: (num_sms, nvl_chunk, nvl_buffer) = (128, 14, 256): median 168.28 us, 95 % interval 168.03 to 168.52
from torchtitan.distributed.deepep.utils import PrimusTurboFlexTokenDispatcher

PrimusTurboFlexTokenDispatcher.turbo_deepep_num_cus = 128
PrimusTurboFlexTokenDispatcher.turbo_deepep_dispatch_tuned_config = (16, 256, 6, 128)
PrimusTurboFlexTokenDispatcher.turbo_deepep_combine_tuned_config = (14, 256, 6, 128)
