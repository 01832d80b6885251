# torchtitan forks with PrimusTurboFlexTokenDispatcher: run this in every rank before the model is built.
# Carries num_sms, chunk and buffer. torchtitan itself is on DeepEP V2 and ignores all of this.
# Two conventions for a tuned tuple are in use:
#   (nvl_chunk, nvl_buffer, rdma_chunk, rdma_buffer): num_sms stands apart and is put before it. Used here.
#   (num_sms, nvl_chunk, nvl_buffer): the order of deep_ep.Config, as in (24, 8, 256). Given where the first is
#   wanted it becomes Config(num_sms, 24, 8, 256), a chunk of 24 in a buffer of 8, which DeepEP asserts against.
#
# deepep-sweep, machine: 4 x NVIDIA H200, EP=4
# deepep-sweep, hosts: vm
# deepep-sweep, workload: qwen3_30b_a3b: 4096 tokens a rank, hidden 2048, 128 experts, top-8, bf16 dispatch, routing uniform
# deepep-sweep, deep_ep: tokenspeed-deepep 1.2.1.post20251110
# deepep-sweep, measured: 2026-11-26T11:36:15Z
# deepep-sweep, command: deepep-sweep -m 'ep='"'"'4'"'"'' grid=full workload=qwen3_30b_a3b workload.dtype=bf16 run=outputs/published/ep4-qwen3_30b_a3b-bf16 'search.candidates=[[24,8,256]]'
# deepep-sweep, verdict: tuned: the optimal pair is faster than the default; default / fastest = 1.997, 95 % interval 1.994 to 2.000
# deepep-sweep, pick: fastest
# deepep-sweep, dispatch: (num_sms, nvl_chunk, nvl_buffer) = (128, 12, 512): median 165.76 us, 95 % interval 165.42 to 166.10
# deepep-sweep, combine: (num_sms, nvl_chunk, nvl_buffer) = (128, 14, 256): median 168.72 us, 95 % interval 168.45 to 169.00
# deepep-sweep, beside_gemms: 728.0 us, 95 % interval 726.8 to 729.2, until both are done
from torchtitan.distributed.deepep.utils import PrimusTurboFlexTokenDispatcher

PrimusTurboFlexTokenDispatcher.turbo_deepep_num_cus = 128
PrimusTurboFlexTokenDispatcher.turbo_deepep_dispatch_tuned_config = (12, 512, 6, 128)
PrimusTurboFlexTokenDispatcher.turbo_deepep_combine_tuned_config = (14, 256, 6, 128)
