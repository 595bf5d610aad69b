// What CUDA gives kernels, for a host compiler: blocks run one after the other, their threads are real ones.
//
// -DLANES=n makes warps of n threads. `launch_<name>` of the last lines is to a kernel what cuLaunchKernel is on a card.

#include <algorithm>
#include <barrier>
#include <cmath>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __shared__ static
#define SHARED_FLOATS(name) float* name = dynamic_shared

struct Index { unsigned x; };
static Index blockIdx, blockDim, gridDim;
static thread_local Index threadIdx;

constexpr unsigned MOST_THREADS = 1024, SHARED_BYTES = 48 * 1024;
static float dynamic_shared[SHARED_BYTES / sizeof(float)];
static float told[MOST_THREADS];
static std::unique_ptr<std::barrier<>> block_barrier;
static std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;

using std::isfinite;
using std::min;

static void __syncthreads() { block_barrier->arrive_and_wait(); }
static void warp_wait() { warp_barriers[threadIdx.x / LANES]->arrive_and_wait(); }

static float warp_sum(float value)
{
    unsigned first = threadIdx.x / LANES * LANES;
    told[threadIdx.x] = value;
    warp_wait();
    float sum = 0.0f;
    for (unsigned lane = 0; lane < LANES; ++lane) sum += told[first + lane];
    warp_wait();
    return sum;
}

static int warp_rank(bool flag, int lane, int& total)
{
    unsigned first = threadIdx.x / LANES * LANES;
    told[threadIdx.x] = flag ? 1.0f : 0.0f;
    warp_wait();
    int before = 0;
    total = 0;
    for (int other = 0; other < LANES; ++other) {
        total += (int)told[first + other];
        if (other < lane) before += (int)told[first + other];
    }
    warp_wait();
    return before;
}

static unsigned long long atomicAdd(unsigned long long* sum, unsigned long long more) { return __sync_fetch_and_add(sum, more); }

template <class... Types, std::size_t... Places>
static void run(void (*kernel)(Types...), unsigned blocks, unsigned threads, void** arguments, std::index_sequence<Places...>)
{
    block_barrier = std::make_unique<std::barrier<>>(threads);
    warp_barriers.clear();
    for (unsigned warp = 0; warp < threads / LANES; ++warp) warp_barriers.push_back(std::make_unique<std::barrier<>>(LANES));
    blockDim.x = threads;
    gridDim.x = blocks;
    auto work = [=](unsigned number) {
        threadIdx.x = number;
        for (unsigned block = 0; block < blocks; ++block) {
            __syncthreads();
            if (number == 0) blockIdx.x = block;
            __syncthreads();
            kernel(*static_cast<Types*>(arguments[Places])...);
        }
    };
    std::vector<std::thread> others;
    for (unsigned number = 1; number < threads; ++number) others.emplace_back(work, number);
    work(0);
    for (std::thread& other : others) other.join();
}

template <class... Types>
static void launched(void (*kernel)(Types...), unsigned blocks, unsigned threads, void** arguments)
{
    std::fill(std::begin(dynamic_shared), std::end(dynamic_shared), NAN);  // as little to rely on as on a card
    run(kernel, blocks, threads, arguments, std::index_sequence_for<Types...>{});
}

#define HOST_LAUNCH(name) \
    extern "C" void launch_##name(unsigned blocks, unsigned threads, void** arguments) { launched(name, blocks, threads, arguments); }
