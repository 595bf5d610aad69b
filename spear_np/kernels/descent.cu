// What a step of the descent does besides its matrix products; a block has one start, one row of the arrays. `starts` of them make
// one problem, and neighbouring problems lie side by side: those of fewer rows or coordinates have zeros in their place.

// values ← sign(values) / (|values| + width · their sum) · weights; the sign alone if not `concave`.
extern "C" __global__ void descent_pull(
    float* values, const float* weights,
    const float* width,  // (problems,)
    int starts, int l, int weighted, int concave, float tiny)
{
    float* row = values + (size_t)blockIdx.x * l;
    const float* weight = weights + (size_t)blockIdx.x * l;
    float sum = 0.0f;
    for (int j = threadIdx.x; j < l; j += blockDim.x) sum += fabsf(row[j]);
    sum = block_sum(sum);
    float wide = concave ? width[blockIdx.x / starts] * sum : 0.0f;
    for (int j = threadIdx.x; j < l; j += blockDim.x) {
        float size = fabsf(row[j]);
        float pull = row[j] / (size + tiny);
        if (concave) pull /= size + wide + tiny;
        row[j] = weighted ? pull * weight[j] : pull;
    }
}

// pattern ← |values| in units of threshold · their mean, less one, between -1 and 1.
extern "C" __global__ void descent_pattern(
    const float* values, float* pattern,
    const float* counts,     // (problems,) rows that each has
    const float* threshold,  // (problems,)
    int starts, int l)
{
    const float* row = values + (size_t)blockIdx.x * l;
    int problem = blockIdx.x / starts;
    float sum = 0.0f;
    for (int j = threadIdx.x; j < l; j += blockDim.x) sum += fabsf(row[j]);
    float level = threshold[problem] * (block_sum(sum) / counts[problem]);
    for (int j = threadIdx.x; j < l; j += blockDim.x)
        pattern[(size_t)blockIdx.x * l + j] = fminf(fmaxf(fabsf(row[j]) / level - 1.0f, -1.0f), 1.0f);
}

// z ← 1 / (1 + exp(sharpness · z in units of its root mean square)), the exponent between -largest and largest.
extern "C" __global__ void descent_weights(
    float* z,
    const float* counts,     // (problems,) rows that each has
    const float* sharpness,  // (problems,)
    int starts, int l, float largest, float tiny)
{
    float* row = z + (size_t)blockIdx.x * l;
    int problem = blockIdx.x / starts;
    float square = 0.0f;
    for (int j = threadIdx.x; j < l; j += blockDim.x) square += row[j] * row[j];
    float scale = sharpness[problem] / (sqrtf(block_sum(square) / counts[problem]) + tiny);
    for (int j = threadIdx.x; j < l; j += blockDim.x)
        row[j] = 1.0f / (1.0f + expf(fminf(fmaxf(row[j] * scale, -largest), largest)));
}

// q ← a step of `length` against the part of `gradient` along the sphere, and back onto the sphere.
extern "C" __global__ void descent_move(
    float* q, const float* gradient,
    const float* length,  // (problems,)
    int starts, int b, float tiny)
{
    float* point = q + (size_t)blockIdx.x * b;
    const float* slope = gradient + (size_t)blockIdx.x * b;
    float along = 0.0f;
    for (int j = threadIdx.x; j < b; j += blockDim.x) along += slope[j] * point[j];
    along = block_sum(along);
    float square = 0.0f;
    for (int j = threadIdx.x; j < b; j += blockDim.x) {
        float part = slope[j] - along * point[j];
        square += part * part;
    }
    float step = length[blockIdx.x / starts] / (sqrtf(block_sum(square)) + tiny);
    float size = 0.0f;
    for (int j = threadIdx.x; j < b; j += blockDim.x) {
        float moved = point[j] - step * (slope[j] - along * point[j]);
        point[j] = moved;
        size += moved * moved;
    }
    float shrink = 1.0f / sqrtf(block_sum(size));
    for (int j = threadIdx.x; j < b; j += blockDim.x) point[j] *= shrink;
}
