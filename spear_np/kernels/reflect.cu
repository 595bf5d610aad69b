// What a step of relaxed reflections does besides its matrix products; entry by entry, the points of several chains one after the other.

// near_z, near_a ← the point of the graph of an activation nearest to (z, a); turned_z, turned_a ← the reflection of (z, a) in it.
extern "C" __global__ void reflect_graph(
    const float* z, const float* a, unsigned long long entries, int chains, int units,
    const float* low, const float* high, const float* intercept,  // (pieces, chains)
    const float* slope,                                           // (pieces, units)
    int pieces, float* near_z, float* near_a, float* turned_z, float* turned_a)
{
    unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x, each = entries / chains;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < entries; i += stride) {
        int unit = (int)(i % units), chain = (int)(i / each);
        float at = z[i], up = a[i], best_z = 0.0f, best_a = 0.0f, nearest = 0.0f;
        for (int piece = 0; piece < pieces; ++piece) {
            float tilt = slope[(size_t)piece * units + unit], base = intercept[piece * chains + chain];
            float along = tilt == 0.0f ? at : (at + tilt * (up - base)) * (1.0f / (1.0f + tilt * tilt));
            along = fminf(fmaxf(along, low[piece * chains + chain]), high[piece * chains + chain]);
            float across = base + tilt * along;
            float distance = (along - at) * (along - at) + (across - up) * (across - up);
            if (piece == 0 || distance < nearest) { best_z = along; best_a = across; nearest = distance; }
        }
        near_z[i] = best_z;
        near_a[i] = best_a;
        turned_z[i] = 2.0f * best_z - at;
        turned_a[i] = 2.0f * best_a - up;
    }
}

// v ← v + share · (onto + offset - graph): the relaxed step; the move itself is left in `onto`. No offset if `shifted` is 0.
extern "C" __global__ void reflect_move(
    float* v, float* onto,
    const float* offset,                                          // (chains, units)
    const float* graph, unsigned long long entries, int chains, int units, int shifted, float share)
{
    unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x, each = entries / chains;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < entries; i += stride) {
        float move = (shifted ? onto[i] + offset[i / each * units + i % units] : onto[i]) - graph[i];
        onto[i] = move;
        v[i] += share * move;
    }
}

// near_… ← each unit "on" (z >= 0, d = e) or "off" (z <= 0, d = 0), whichever is nearer; turned_… ← the reflections there.
extern "C" __global__ void reflect_sides(
    const float* z, const float* d, const float* e, unsigned long long entries, float weight,
    float* near_z, float* near_d, float* near_e, float* turned_z, float* turned_d, float* turned_e)
{
    unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < entries; i += stride) {
        float at = z[i], passed = d[i], given = e[i];
        bool on = at * fabsf(at) + passed * passed >= weight * ((passed - given) * (passed - given));
        float both = passed + weight * (given - passed);
        float side = on ? fmaxf(at, 0.0f) : fminf(at, 0.0f), column = on ? both : 0.0f, back = on ? both : given;
        near_z[i] = side;
        near_d[i] = column;
        near_e[i] = back;
        turned_z[i] = 2.0f * side - at;
        turned_d[i] = 2.0f * column - passed;
        turned_e[i] = 2.0f * back - given;
    }
}
