// What the kernels share: how threads add up, count and wait.
//
// Loops run from `lane` in steps of LANES or from threadIdx.x in steps of blockDim.x, and everything that threads tell each
// other goes through the functions below: a build with other numbers of threads, one among them, computes the same. A host
// compiler, which has no warps, brings LANES and these functions itself.

#ifndef LANES

#define LANES 32
#define SHARED_FLOATS(name) extern __shared__ float name[]
#define WARP_WHOLE 0xffffffffu

__device__ __forceinline__ void warp_wait() { __syncwarp(); }

__device__ __forceinline__ float warp_sum(float value)
{
    for (int apart = LANES / 2; apart; apart >>= 1) value += __shfl_xor_sync(WARP_WHOLE, value, apart);
    return value;
}

// How many lanes before this one raise their flag, and in `total` how many of all.
__device__ __forceinline__ int warp_rank(bool flag, int lane, int& total)
{
    unsigned raised = __ballot_sync(WARP_WHOLE, flag);
    total = __popc(raised);
    return __popc(raised & ((1u << lane) - 1u));
}

#endif

// Sum over a block of at most 32 warps; every thread gets it.
__device__ __forceinline__ float block_sum(float value)
{
    __shared__ float parts[32];
    int warps = blockDim.x / LANES;
    value = warp_sum(value);
    if (threadIdx.x % LANES == 0) parts[threadIdx.x / LANES] = value;
    __syncthreads();
    value = 0.0f;
    for (int warp = 0; warp < warps; ++warp) value += parts[warp];
    __syncthreads();
    return value;
}
