// Runs a kernel's CUDA C++ on a CPU, each unit of a cube in a thread of its own.
//
// The Rust side puts KERNEL.cu, without its includes, and a `main.cpp` beside this file:
//
//     #include "cuda_on_cpu.cpp"
//     alignas(128) char v1[1024];      // the kernel's shared memory, by the name it has there
//     #include "kernel.cu"
//     int main(int, char **arguments) { run(kernel, arguments); }
//
// Arguments: the grid's three sizes, the cube's two, the number of scalars and they, the size in bytes of the
// output; then a file for each buffer that is read, and the output's.

#include <barrier>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(units)
#define __align__(bytes)

using std::fma;
using std::min;

struct Index {
    uint32_t x, y, z;
};
thread_local Index blockIdx, threadIdx;
Index blockDim, gridDim;
std::function<void()> synchronise;

void __syncthreads() { synchronise(); }

// As in cuda_fp16.h and cuda_bf16.h: rounded to nearest, ties to even.
struct __half {
    _Float16 value;
    __half() = default;
    __half(float from) : value(from) {}
    operator float() const { return value; }
};

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float from) {
        uint32_t word;
        memcpy(&word, &from, sizeof word);
        bits = (word + 0x7fff + (word >> 16 & 1)) >> 16;
    }
    operator float() const {
        uint32_t word = uint32_t(bits) << 16;
        float to;
        memcpy(&to, &word, sizeof to);
        return to;
    }
};

// Exactly as large as the file, so that the address sanitizer sees what lies beyond.
std::unique_ptr<char[]> read(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(1);
    }
    fseek(file, 0, SEEK_END);
    *size = ftell(file);
    rewind(file);
    std::unique_ptr<char[]> bytes(new char[*size]);
    if (fread(bytes.get(), 1, *size, file) != *size) {
        perror(path);
        exit(1);
    }
    fclose(file);
    return bytes;
}

// The last buffer is the output.
template <class Info, class Kernel>
void run_buffers(Kernel kernel, size_t count, char **arguments) {
    auto number = [&] { return uint32_t(strtoul(*++arguments, nullptr, 10)); };
    Index grid = {number(), 0, 0};
    grid.y = number();
    grid.z = number();
    uint32_t width = number(), height = number();
    Info info = {};
    uint32_t scalars = number();
    // Filled up to whole words of 8 bytes.
    if ((scalars + 1) / 2 * 8 != sizeof info.scalars_u32) {
        fprintf(stderr, "%u scalars for %zu bytes\n", scalars, sizeof info.scalars_u32);
        exit(1);
    }
    for (uint32_t i = 0; i < scalars; i++) info.scalars_u32[i] = number();
    size_t output_size = number(), size;
    std::vector<std::unique_ptr<char[]>> buffers;
    for (size_t i = 0; i + 1 < count; i++) buffers.push_back(read(*++arguments, &size));
    buffers.emplace_back(new char[output_size]);
    char *output = buffers.back().get();
    // What nobody writes is not a number.
    memset(output, 0xff, output_size);

    blockDim = {width, height, 1};
    gridDim = grid;
    std::barrier all(width * height);
    synchronise = [&] { all.arrive_and_wait(); };
    auto unit = [&](uint32_t x, uint32_t y) {
        threadIdx = {x, y, 0};
        for (uint32_t z = 0; z < grid.z; z++)
            for (uint32_t y = 0; y < grid.y; y++)
                for (uint32_t x = 0; x < grid.x; x++) {
                    blockIdx = {x, y, z};
                    kernel(buffers, info);
                    // The next cube has the same shared memory.
                    synchronise();
                }
    };
    std::vector<std::thread> units;
    for (uint32_t y = 0; y < height; y++)
        for (uint32_t x = 0; x < width; x++) units.emplace_back(unit, x, y);
    for (auto &thread : units) thread.join();

    FILE *file = fopen(*++arguments, "wb");
    if (!file || fwrite(output, 1, output_size, file) != output_size || fclose(file)) {
        perror(*arguments);
        exit(1);
    }
}

// A kernel that reads weights.
template <class A, class B, class C, class D, class E, class F, class Info>
void run(void (*kernel)(A, B, C, D, E, F, Info), char **arguments) {
    auto call = [&](auto &b, const Info &info) {
        kernel(A(b[0].get()), B(b[1].get()), C(b[2].get()), D(b[3].get()), E(b[4].get()), F(b[5].get()), info);
    };
    run_buffers<std::remove_const_t<Info>>(call, 6, arguments);
}

// A kernel that reads what weights read, and gradients.
template <class A, class B, class C, class D, class E, class Info>
void run(void (*kernel)(A, B, C, D, E, Info), char **arguments) {
    auto call = [&](auto &b, const Info &info) {
        kernel(A(b[0].get()), B(b[1].get()), C(b[2].get()), D(b[3].get()), E(b[4].get()), info);
    };
    run_buffers<std::remove_const_t<Info>>(call, 5, arguments);
}

// A kernel from two buffers to another.
template <class A, class B, class C, class Info>
void run(void (*kernel)(A, B, C, Info), char **arguments) {
    auto call = [&](auto &b, const Info &info) { kernel(A(b[0].get()), B(b[1].get()), C(b[2].get()), info); };
    run_buffers<std::remove_const_t<Info>>(call, 3, arguments);
}

// A kernel from one buffer to another.
template <class A, class B, class Info>
void run(void (*kernel)(A, B, Info), char **arguments) {
    auto call = [&](auto &b, const Info &info) { kernel(A(b[0].get()), B(b[1].get()), info); };
    run_buffers<std::remove_const_t<Info>>(call, 2, arguments);
}
