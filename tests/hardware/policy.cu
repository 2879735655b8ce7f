// Stands where TensorRT's enqueue stands: each channel's mean of a (3, pixels) picture plus the number of inferences
// since the state was cleared. One block a channel.
extern "C" __global__ void policy(const float *images, const float *h0, float *actions, float *hN, int pixels) {
    __shared__ float sums[256];
    float sum = 0;
    for (int at = threadIdx.x; at < pixels; at += blockDim.x) sum += images[blockIdx.x * pixels + at];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        float counted = h0[blockIdx.x] + 1;
        hN[blockIdx.x] = counted;
        actions[blockIdx.x] = sums[0] / pixels + counted;
    }
}

// Writes where nothing is, as a broken plugin would.
extern "C" __global__ void stray(float *nowhere) { nowhere[1ull << 40] = 1; }
