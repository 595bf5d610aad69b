// Subset sampling: a warp draws n = r - 1 of the rows, finds the unit vector that they annul, and keeps it if further rows agree.

// A 64-bit number that looks random, from any other (splitmix64).
__device__ __forceinline__ unsigned long long mixed(unsigned long long z)
{
    z += 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

// Draw number `draw` of a subset: a slot of the table, all alike; two from each number.
__device__ __forceinline__ int drawn_row(const int* table, int slots, unsigned long long base, int draw)
{
    unsigned long long number = mixed(base + (unsigned long long)(draw >> 1));
    unsigned long long half = draw & 1 ? number & 0xffffffffULL : number >> 32;
    return table[(half * (unsigned long long)slots) >> 32];
}

// The first n different rows of a sequence of draws; after `most` of these whatever is free behind the last.
__device__ void draw_subset(const int* table, int slots, int l, int n, int most, unsigned long long base, int lane, int* picks, int* drawn)
{
    int chosen = 0, last = 0;
    for (int start = 0; chosen < n && start < most; start += LANES) {
        int row = -1;
        if (start + lane < most) row = drawn_row(table, slots, base, start + lane);
        drawn[lane] = row;
        warp_wait();
        bool fresh = row >= 0;
        for (int j = 0; fresh && j < chosen; ++j) fresh = picks[j] != row;
        for (int j = 0; fresh && j < lane; ++j) fresh = drawn[j] != row;
        last = drawn[min(LANES, most - start) - 1];
        int total;
        int place = chosen + warp_rank(fresh, lane, total);
        warp_wait();
        if (fresh && place < n) picks[place] = row;
        chosen += total;
        warp_wait();
    }
    if (lane == 0)
        while (chosen < n) {
            last = (last + 1) % l;
            bool taken = false;
            for (int j = 0; j < chosen; ++j) taken = taken || picks[j] == last;
            if (!taken) picks[chosen++] = last;
        }
    warp_wait();
}

// Gauss-Jordan on A (n, r), rows `ld` apart, without a choice of pivots: x (r,), of length one, becomes what all rows annul. False
// if a pivot is `small`.
__device__ bool annulled(float* A, int ld, int r, float small, int lane, float* x)
{
    int n = r - 1;
    for (int k = 0; k < n; ++k) {
        const float* pivot = A + k * ld;
        if (!(fabsf(pivot[k]) > small)) return false;  // NaN included
        for (int i = lane; i < n; i += LANES) {
            if (i == k) continue;
            float* row = A + i * ld;
            float share = row[k] / pivot[k];
            for (int c = k + 1; c < r; ++c) row[c] -= share * pivot[c];
        }
        warp_wait();
    }
    float square = 0.0f;
    for (int k = lane; k < n; k += LANES) {
        float value = -A[k * ld + n] / A[k * ld + k];
        x[k] = value;
        square += value * value;
    }
    square = warp_sum(square);
    if (!isfinite(square)) return false;
    float shrink = 1.0f / sqrtf(1.0f + square);
    for (int k = lane; k < n; k += LANES) x[k] *= shrink;
    if (lane == 0) x[n] = shrink;
    warp_wait();
    return true;
}

// Of each problem the candidates `first` to `first + count - 1`; those that enough rows agree with leave their vector, zero count
// and number in the order in which warps find them. `found` counts beyond `capacity`, whatever is kept. `blocks` neighbouring
// blocks have one problem. Arrays of several lie side by side, those of fewer rows, columns or glances filled up.
extern "C" __global__ void sample(
    const float* __restrict__ rows,     // (problems, most_l, most_r) unit rows, turned so that no coordinate is special
    const int* __restrict__ tables,     // (problems, most_slots): (groups, slots) rows, each in as many slots as it has weight;
                                        // subset i has table i % groups
    const float* __restrict__ noise,    // (problems, most_r, most_r) upper triangular: |noise x| is the standard deviation of
                                        // the noise in rows · x
    const float* __restrict__ glanced,  // (problems, most_r, most_glances) columns: the rows looked at before all others
    const int* __restrict__ shapes,     // (problems, 7): l, r, slots, groups, glances, most draws, spare
    const unsigned long long* __restrict__ numbers,  // (problems, 3): seed, first, count
    const float* __restrict__ bounds,   // (problems, 4): amplification, narrowest, widest, and how many rows a vector without
                                        // meaning annuls, in units of the tolerance
    int most_l, int most_r, int most_slots, int most_glances, int blocks, float small, float sigmas,
    float* __restrict__ vectors,             // (problems, capacity, most_r)
    int* __restrict__ zeros,                 // (problems, capacity)
    unsigned long long* __restrict__ which,  // (problems, capacity)
    unsigned long long* found,               // (problems,)
    int capacity)
{
    SHARED_FLOATS(shared);
    int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
    int problem = blockIdx.x / blocks, block = blockIdx.x % blocks;
    const int* shape = shapes + problem * 7;
    int l = shape[0], r = shape[1], slots = shape[2], groups = shape[3], glances = shape[4], most_draws = shape[5], spare = shape[6];
    unsigned long long seed = numbers[problem * 3], first = numbers[problem * 3 + 1], count = numbers[problem * 3 + 2];
    float amplification = bounds[problem * 4], narrowest = bounds[problem * 4 + 1];
    float widest = bounds[problem * 4 + 2], meaningless = bounds[problem * 4 + 3];
    rows += (size_t)problem * most_l * most_r;
    tables += (size_t)problem * most_slots;
    noise += (size_t)problem * most_r * most_r;
    glanced += (size_t)problem * most_r * most_glances;
    vectors += (size_t)problem * capacity * most_r;
    zeros += (size_t)problem * capacity;
    which += (size_t)problem * capacity;

    int n = r - 1, ld = r | 1;  // odd: neighbouring rows start in different banks
    float* A = shared + warp * (n * ld + r + n + 1 + LANES);
    float* x = A + n * ld;
    int* picks = (int*)(x + r);
    int* slot = picks + n;
    int* drawn = slot + 1;
    for (unsigned long long item = (unsigned long long)block * warps + warp; item < count; item += (unsigned long long)blocks * warps) {
        unsigned long long id = first + item;
        warp_wait();  // the last one is out of shared memory
        draw_subset(tables + (size_t)(id % groups) * slots, slots, l, n, most_draws, mixed(seed + id), lane, picks, drawn);
        for (int i = 0; i < n; ++i)
            for (int c = lane; c < r; c += LANES) A[i * ld + c] = rows[(size_t)picks[i] * most_r + c];
        warp_wait();
        if (!annulled(A, ld, r, small, lane, x)) continue;

        float square = 0.0f;
        for (int i = lane; i < r; i += LANES) {
            float part = 0.0f;
            for (int c = i; c < r; ++c) part += noise[i * most_r + c] * x[c];
            square += part * part;
        }
        float tolerance = fminf(fmaxf(amplification * sqrtf(warp_sum(square)), narrowest), widest);

        float seen = 0.0f;
        for (int j = lane; j < glances; j += LANES) {
            float product = 0.0f;
            for (int c = 0; c < r; ++c) product += glanced[c * most_glances + j] * x[c];
            seen += fabsf(product) < tolerance ? 1.0f : 0.0f;
        }
        if (l > r && warp_sum(seen) < 0.5f) continue;

        float agreeing = 0.0f;
        for (int j = lane; j < l; j += LANES) {
            float product = 0.0f;
            for (int c = 0; c < r; ++c) product += rows[(size_t)j * most_r + c] * x[c];
            agreeing += fabsf(product) < tolerance ? 1.0f : 0.0f;
        }
        agreeing = warp_sum(agreeing);
        float chance = meaningless * tolerance;
        if (agreeing < (float)r + fminf(ceilf(chance + sigmas * sqrtf(chance)), (float)spare)) continue;

        if (lane == 0) {
            unsigned long long place = atomicAdd(found + problem, 1ULL);
            *slot = place < (unsigned long long)capacity ? (int)place : -1;
            if (*slot >= 0) { zeros[*slot] = (int)agreeing; which[*slot] = id; }
        }
        warp_wait();
        if (*slot >= 0)
            for (int c = lane; c < r; c += LANES) vectors[(size_t)*slot * most_r + c] = x[c];
    }
}
