// Sparse convolution on groups of 16 images, exact float32.
//
// A tensor lies in an arena as channel x (height + border) x (width + border) x 16 images, the images innermost, with a
// frame of zeros where a convolution reads past the edge. A program is a list of instructions; every group of images
// runs through all of them on one thread, so that the result does not depend on the number of threads. Offsets and
// pitches count floats in the arena and bytes in what is saved for the backward pass. Products are fused with sums (FMA) where
// the processor can. A sum begins with the bias and what is added, then comes weight after weight: in the same order
// whatever the tile or the block of channels is.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

constexpr int GROUP = 16;  // images in a group
constexpr int QUAD = 4;    // output channels that share what they read, where weights are many
constexpr int SIGNS = 4;   // bytes that hold the signs of a pixel's images
#if defined(__AVX512F__)
constexpr int LANES = 16, WIDE = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, WIDE = 2;
#elif defined(__aarch64__)
constexpr int LANES = 4, WIDE = 4;
#else
constexpr int LANES = 4, WIDE = 2;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4), may_alias));
typedef int32_t Int __attribute__((vector_size(LANES * 4), may_alias));
typedef int8_t Byte __attribute__((vector_size(LANES), may_alias));

inline Vec splat(float x) { return x - Vec{}; }
inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<Vec*>(p) = x; }
inline Vec chosen(Int mask, Vec x) { return reinterpret_cast<Vec>(mask & reinterpret_cast<Int>(x)); }

struct Entry {
    int32_t offset;
    float weight;
};

struct Quad {
    int32_t offset;
    float weight[QUAD];
};

enum Kind : int64_t { LOAD, STORE, FRAME, CONV, DENSE, POOL, UNPOOL };
enum Tile : int64_t { PIXEL, FLAT, SQUARE };  // 1 x 1, 1 x 8, 2 x 4 output pixels; PIXEL takes one block only
// Nothing; max(x, 0) or NaN, its sign saved; times the sign that was saved; the same, and times `leak` where it is 0.
enum Gate : int64_t { OPEN, RELU, MASK, LEAK };

struct Instruction {
    int64_t kind, gate, tile, port;
    int64_t channels, rows, cols;                 // of the result (LOAD, STORE, FRAME: of the tensor)
    int64_t in, in_channel, in_row, in_col;       // where (0, 0, 0) is read, and from one output to the next
    int64_t out, out_channel, out_row, out_col;   // where it is written
    int64_t add, add_channel, add_row, add_col;   // what is added before the gate; add < 0: nothing
    int64_t saved, saved_channel, saved_row, saved_col;
    int64_t window_rows, window_cols, window_row, window_col;  // POOL, UNPOOL: its size and pitch. FRAME: its width
    int64_t sign, sign_channel, sign_row, sign_col;  // UNPOOL: the gate's, where `saved` is the places'
    int64_t wide_rows, wide_cols;                    // UNPOOL: of its result, where rows and cols are the pool's
    int64_t blocks;         // CONV: of input channels, taken one after the other for all outputs of a tile
    const int32_t* starts;  // where in entries each channel of each block (DENSE: each four channels) begins; the end
    const void* entries;
    const float* bias;      // one a channel, or null
    const float* mean;      // LOAD: (x - mean) / std; STORE: x / std; or null
    const float* std;
    double leak;  // LEAK, and UNPOOL for pixels that were not the maximum
};

// The signs of a vector as bits; x where they are set, 0 elsewhere.
#if defined(__AVX512F__)
inline uint32_t bits_of(Int mask) {
    return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask));
}
inline Vec where(uint32_t bits, Vec x) {
    return reinterpret_cast<Vec>(_mm512_maskz_mov_ps(bits, reinterpret_cast<__m512>(x)));
}
inline Byte narrow(Int x) { return reinterpret_cast<Byte>(_mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(x))); }
inline Int widen(Byte x) { return reinterpret_cast<Int>(_mm512_cvtepi8_epi32(reinterpret_cast<__m128i>(x))); }
#else
inline Vec where(uint32_t bits, Vec x) {
    Int one;
    for (int k = 0; k < LANES; ++k) one[k] = 1 << k;
    const Int all = static_cast<int32_t>(bits) - Int{};
    return chosen((all & one) != 0, x);
}
inline uint32_t bits_of(Int mask) {
#if defined(__AVX__)
    return _mm256_movemask_ps(reinterpret_cast<__m256>(mask));
#else
    uint32_t found = 0;
    for (int k = 0; k < LANES; ++k) found |= (mask[k] & 1u) << k;
    return found;
#endif
}
inline Byte narrow(Int x) { return __builtin_convertvector(x, Byte); }
inline Int widen(Byte x) { return __builtin_convertvector(x, Int); }
#endif

struct Place {
    const float* in;
    float* out;
    const float* add;
    uint8_t* saved;
    int64_t rows, cols;  // of the tile that there are
};

inline Place at(const Instruction& s, float* arena, uint8_t* saved, int64_t row, int64_t col, int64_t lane) {
    return {arena + s.in + row * s.in_row + col * s.in_col + lane,
            arena + s.out + row * s.out_row + col * s.out_col + lane,
            s.add < 0 ? nullptr : arena + s.add + row * s.add_row + col * s.add_col + lane,
            s.saved < 0 || !saved ? nullptr
                                  : saved + s.saved + row * s.saved_row + col * s.saved_col + lane * SIGNS / GROUP,
            s.rows - row, s.cols - col};
}

// What becomes of a sum on its way to memory.
template <int GATE>
inline void finish(float* out, uint8_t* saved, Vec x, float leak) {
    if constexpr (GATE == RELU) {
        const Int positive = ~(x <= Vec{});  // not a number: as it is, with its gradient
        x = chosen(positive, x);
        if (saved) {
            const uint32_t bits = bits_of(positive);
            std::memcpy(saved, &bits, (LANES + 7) / 8);
        }
    }
    if constexpr (GATE == MASK) {
        uint32_t bits = 0;
        std::memcpy(&bits, saved, (LANES + 7) / 8);
        x = where(bits, x);
    }
    if constexpr (GATE == LEAK) {
        uint32_t bits = 0;
        std::memcpy(&bits, saved, (LANES + 7) / 8);
        x = where(bits, x) + splat(leak) * where(~bits, x);
    }
    store(out, x);
}

// Calls `work(r, c)` for the pixels of a tile that there are.
template <int R, int C, typename Work>
inline void each(const Place& p, Work work) {
    if (p.rows >= R && p.cols >= C) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) work(r, c);
    } else {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
                if (r < p.rows && c < p.cols) work(r, c);
    }
}

// R x C output pixels in registers while a channel's weights stream by. The input channels come in blocks whose window
// stays in the first cache; between blocks the sums wait where the result will be. S: pixels from one input to the next.
template <int R, int C, int S, int GATE, bool ADD>
void sparse_tile(const Instruction& s, const Place& p) {
    const Entry* entries = static_cast<const Entry*>(s.entries);
    const int32_t* starts = s.starts;
    const int64_t row = s.in_row, channels = s.channels, out_row = s.out_row, out_col = s.out_col;
    const float leak = static_cast<float>(s.leak);
    for (int64_t block = 0; block < s.blocks; ++block) {
        const bool first = block == 0, last = block == s.blocks - 1;
        for (int64_t channel = 0; channel < channels; ++channel) {
            const Entry* e = entries + *starts++;
            const Entry* end = entries + *starts;
            if (e == end && !first && !last) continue;
            float* out = p.out + channel * s.out_channel;
            Vec sum[R][C];
            const Vec bias = splat(s.bias && first ? s.bias[channel] : 0.0f);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) sum[r][c] = bias;
            if (!first) {
                each<R, C>(p, [&](int r, int c) { sum[r][c] = load(out + r * out_row + c * out_col); });
            } else if constexpr (ADD) {
                const float* add = p.add + channel * s.add_channel;
                each<R, C>(p, [&](int r, int c) { sum[r][c] += load(add + r * s.add_row + c * s.add_col); });
            }
            for (; e < end; ++e) {
                const Vec w = splat(e->weight);
                const float* in = p.in + e->offset;
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                    for (int c = 0; c < C; ++c) sum[r][c] += w * load(in + r * row + c * S * GROUP);
            }
            if (last) {
                uint8_t* saved = p.saved ? p.saved + channel * s.saved_channel : nullptr;
                each<R, C>(p, [&](int r, int c) {
                    finish<GATE>(out + r * out_row + c * out_col,
                                 saved ? saved + r * s.saved_row + c * s.saved_col : nullptr, sum[r][c], leak);
                });
            } else {
                each<R, C>(p, [&](int r, int c) { store(out + r * out_row + c * out_col, sum[r][c]); });
            }
        }
    }
}

// One output pixel, in several partial sums, so that additions do not wait for each other.
template <int GATE, bool ADD>
void sparse_pixel(const Instruction& s, const Place& p) {
    constexpr int SUMS = 4;
    const Entry* entries = static_cast<const Entry*>(s.entries);
    for (int64_t channel = 0; channel < s.channels; ++channel) {
        Vec sum[SUMS] = {splat(s.bias ? s.bias[channel] : 0.0f)};
        if constexpr (ADD) sum[0] += load(p.add + channel * s.add_channel);
        const Entry* e = entries + s.starts[channel];
        const Entry* end = entries + s.starts[channel + 1];
        for (; e + SUMS <= end; e += SUMS)
#pragma GCC unroll 4
            for (int k = 0; k < SUMS; ++k) sum[k] += splat(e[k].weight) * load(p.in + e[k].offset);
        for (; e < end; ++e) sum[0] += splat(e->weight) * load(p.in + e->offset);
        finish<GATE>(p.out + channel * s.out_channel, p.saved ? p.saved + channel * s.saved_channel : nullptr,
                     (sum[0] + sum[1]) + (sum[2] + sum[3]), static_cast<float>(s.leak));
    }
}

// C output pixels of four channels, which share what they read; a weight that one of them lacks is a zero.
template <int C, int GATE>
void dense_tile(const Instruction& s, const Place& p) {
    const Quad* entries = static_cast<const Quad*>(s.entries);
    const float leak = static_cast<float>(s.leak);
    for (int64_t first = 0, quad = 0; first < s.channels; first += QUAD, ++quad) {
        const int64_t present = std::min<int64_t>(QUAD, s.channels - first);
        Vec sum[QUAD][C] = {};
        for (int k = 0; k < present; ++k) {
            const Vec bias = splat(s.bias ? s.bias[first + k] : 0.0f);
            each<1, C>(p, [&](int, int c) {
                sum[k][c] = p.add ? bias + load(p.add + (first + k) * s.add_channel + c * s.add_col) : bias;
            });
        }
        for (const Quad *e = entries + s.starts[quad], *end = entries + s.starts[quad + 1]; e < end; ++e) {
            const float* in = p.in + e->offset;
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                const Vec x = load(in + c * s.in_col);
#pragma GCC unroll 4
                for (int k = 0; k < QUAD; ++k) sum[k][c] += splat(e->weight[k]) * x;
            }
        }
        for (int k = 0; k < present; ++k) {
            float* out = p.out + (first + k) * s.out_channel;
            uint8_t* saved = p.saved ? p.saved + (first + k) * s.saved_channel : nullptr;
            each<1, C>(p, [&](int, int c) {
                finish<GATE>(out + c * s.out_col, saved ? saved + c * s.saved_col : nullptr, sum[k][c], leak);
            });
        }
    }
}

template <int R, int C, typename Tile>
void tiles(const Instruction& s, float* arena, uint8_t* saved, Tile tile) {
    for (int64_t lane = 0; lane < GROUP; lane += LANES)
        for (int64_t col = 0; col < s.cols; col += C)
            for (int64_t row = 0; row < s.rows; row += R) tile(s, at(s, arena, saved, row, col, lane));
}

template <int GATE, bool ADD>
void convolve(const Instruction& s, float* arena, uint8_t* saved) {
    const bool next = s.in_col == GROUP;  // or the pixel after the next one
    switch (s.tile) {
        case PIXEL: tiles<1, 1>(s, arena, saved, sparse_pixel<GATE, ADD>); break;
        case FLAT:
            tiles<1, 8>(s, arena, saved, next ? sparse_tile<1, 8, 1, GATE, ADD> : sparse_tile<1, 8, 2, GATE, ADD>);
            break;
        case SQUARE:
            tiles<2, 4>(s, arena, saved, next ? sparse_tile<2, 4, 1, GATE, ADD> : sparse_tile<2, 4, 2, GATE, ADD>);
            break;
    }
}

template <int GATE>
void convolve_gated(const Instruction& s, float* arena, uint8_t* saved) {
    if (s.kind == DENSE)
        s.cols == 1 ? tiles<1, 1>(s, arena, saved, dense_tile<1, GATE>)
                    : tiles<1, WIDE>(s, arena, saved, dense_tile<WIDE, GATE>);
    else
        s.add < 0 ? convolve<GATE, false>(s, arena, saved) : convolve<GATE, true>(s, arena, saved);
}

void convolve(const Instruction& s, float* arena, uint8_t* saved) {
    switch (s.gate) {
        case OPEN: convolve_gated<OPEN>(s, arena, saved); break;
        case RELU: convolve_gated<RELU>(s, arena, saved); break;
        case MASK: convolve_gated<MASK>(s, arena, saved); break;
        case LEAK: convolve_gated<LEAK>(s, arena, saved); break;
    }
}

void pack(const Instruction& s, float* arena, const float* images, int64_t present) {
    const int64_t plane = s.rows * s.cols, image = s.channels * plane;
    for (int64_t channel = 0; channel < s.channels; ++channel)
        for (int64_t row = 0; row < s.rows; ++row)
            for (int64_t col = 0; col < s.cols; ++col) {
                float* to = arena + s.out + channel * s.out_channel + row * s.out_row + col * s.out_col;
                const float* from = images + channel * plane + row * s.cols + col;
                for (int64_t k = 0; k < present; ++k) to[k] = from[k * image];
                for (int64_t k = present; k < GROUP; ++k) to[k] = 0.0f;
                if (s.mean)
                    for (int k = 0; k < GROUP; ++k) to[k] = (to[k] - s.mean[channel]) / s.std[channel];
            }
}

void unpack(const Instruction& s, const float* arena, float* images, int64_t present) {
    const int64_t plane = s.rows * s.cols, image = s.channels * plane;
    for (int64_t channel = 0; channel < s.channels; ++channel) {
        const float scale = s.std ? s.std[channel] : 1.0f;
        for (int64_t row = 0; row < s.rows; ++row)
            for (int64_t col = 0; col < s.cols; ++col) {
                const float* from = arena + s.in + channel * s.in_channel + row * s.in_row + col * s.in_col;
                float* to = images + channel * plane + row * s.cols + col;
                for (int64_t k = 0; k < present; ++k) to[k * image] = from[k] / scale;
            }
    }
}

// Zeros around a tensor: `out` is its corner, the frame's corner lies window_rows and window_cols before it.
void frame(const Instruction& s, float* arena) {
    const int64_t high = s.window_rows, wide = s.window_cols, whole = s.cols + 2 * wide;
    for (int64_t channel = 0; channel < s.channels; ++channel) {
        float* corner = arena + s.out + channel * s.out_channel - high * s.out_row - wide * GROUP;
        std::memset(corner, 0, high * whole * GROUP * 4);
        std::memset(corner + (high + s.rows) * s.out_row, 0, high * whole * GROUP * 4);
        for (int64_t row = high; wide && row < high + s.rows; ++row) {
            std::memset(corner + row * s.out_row, 0, wide * GROUP * 4);
            std::memset(corner + row * s.out_row + (wide + s.cols) * GROUP, 0, wide * GROUP * 4);
        }
    }
}

// The largest of each window; where it stood is saved, the first of equals.
void pool(const Instruction& s, float* arena, uint8_t* saved) {
    for (int64_t channel = 0; channel < s.channels; ++channel)
        for (int64_t row = 0; row < s.rows; ++row)
            for (int64_t col = 0; col < s.cols; ++col)
                for (int64_t lane = 0; lane < GROUP; lane += LANES) {
                    const float* in = arena + s.in + channel * s.in_channel + row * s.in_row + col * s.in_col + lane;
                    Vec best = load(in);
                    Int place = {};
                    for (int32_t k = 1; k < s.window_rows * s.window_cols; ++k) {
                        const Vec x = load(in + k / s.window_cols * s.window_row + k % s.window_cols * s.window_col);
                        const Int better = (x > best) | (x != x);
                        best = chosen(better, x) + chosen(~better, best);
                        place = (better & k) | (~better & place);
                    }
                    store(arena + s.out + channel * s.out_channel + row * s.out_row + col * s.out_col + lane, best);
                    if (saved && s.saved >= 0)
                        *reinterpret_cast<Byte*>(saved + s.saved + channel * s.saved_channel + row * s.saved_row +
                                                 col * s.saved_col + lane) = narrow(place);
                }
}

// A pool's input gradient.
void unpool(const Instruction& s, float* arena, uint8_t* saved) {
    const int64_t high = s.wide_rows, wide = s.wide_cols;
    const float leak = static_cast<float>(s.leak);
    for (int64_t channel = 0; channel < s.channels; ++channel) {
        float* to = arena + s.out + channel * s.out_channel;
        for (int64_t row = 0; row < high; ++row) std::memset(to + row * s.out_row, 0, wide * GROUP * 4);
        for (int64_t row = 0; row < s.rows; ++row)
            for (int64_t col = 0; col < s.cols; ++col)
                for (int64_t lane = 0; lane < GROUP; lane += LANES) {
                    const Vec x = load(arena + s.in + channel * s.in_channel + row * s.in_row + col * s.in_col + lane);
                    const Int place = widen(
                        *reinterpret_cast<const Byte*>(saved + s.saved + channel * s.saved_channel + row * s.saved_row +
                                                       col * s.saved_col + lane));
                    float* corner = to + row * s.window_row + col * s.window_col + lane;
                    for (int32_t k = 0; k < s.window_rows * s.window_cols; ++k) {
                        float* pixel = corner + k / s.window_cols * s.out_row + k % s.window_cols * s.out_col;
                        store(pixel, load(pixel) + (leak == 0.0f ? chosen(place == k, x)
                                                                 : chosen(place == k, x) +
                                                                       splat(leak) * chosen(place != k, x)));
                    }
                }
        for (int64_t row = 0; (s.gate != OPEN || s.add >= 0) && row < high; ++row)
            for (int64_t col = 0; col < wide; ++col)
                for (int64_t lane = 0; lane < GROUP; lane += LANES) {
                    float* pixel = to + row * s.out_row + col * s.out_col + lane;
                    Vec x = load(pixel);
                    if (s.add >= 0)
                        x += load(arena + s.add + channel * s.add_channel + row * s.add_row + col * s.add_col + lane);
                    uint8_t* sign = saved + s.sign + channel * s.sign_channel + row * s.sign_row + col * s.sign_col;
                    sign += lane * SIGNS / GROUP;
                    switch (s.gate) {
                        case MASK: finish<MASK>(pixel, sign, x, leak); break;
                        case LEAK: finish<LEAK>(pixel, sign, x, leak); break;
                        default: store(pixel, x);
                    }
                }
    }
}

void run(const Instruction* instructions, int64_t count, float* arena, uint8_t* saved, const float* const* inputs,
         float* const* outputs, int64_t group, int64_t images) {
    const int64_t present = std::min<int64_t>(GROUP, images - group * GROUP);
    for (const Instruction* s = instructions; s < instructions + count; ++s) {
        const int64_t image = s->channels * s->rows * s->cols;
        switch (s->kind) {
            case LOAD: pack(*s, arena, inputs[s->port] + group * GROUP * image, present); break;
            case STORE: unpack(*s, arena, outputs[s->port] + group * GROUP * image, present); break;
            case FRAME: frame(*s, arena); break;
            case CONV:
            case DENSE: convolve(*s, arena, saved); break;
            case POOL: pool(*s, arena, saved); break;
            case UNPOOL: unpool(*s, arena, saved); break;
        }
    }
}

}  // namespace

extern "C" {

typedef void (*Team)(void (*work)(void*), void* with, unsigned threads, unsigned flags);

int64_t instruction_bytes() { return sizeof(Instruction); }
int64_t lanes() { return LANES; }

// Run a program on `images` images. `arenas`: one of `arena` floats for each thread; `saved`: `saved_bytes` for each
// group, or null. Pointers are aligned to 64 bytes, but for inputs and outputs (n, c, h, w). `team`: what has threads
// that are there already do something (GOMP_parallel), or null. Threads of our own beside a team that still waits busily
// for its next work would have to share the processor with it.
void execute(const Instruction* instructions, int64_t count, float* arenas, int64_t arena, uint8_t* saved,
             int64_t saved_bytes, const float* const* inputs, float* const* outputs, int64_t images, int64_t threads,
             Team team) {
    const int64_t groups = (images + GROUP - 1) / GROUP;
    std::atomic<int64_t> workers{0}, next{0};
    auto work = [&] {
        float* mine = arenas + workers.fetch_add(1) * arena;
        for (int64_t group; (group = next.fetch_add(1)) < groups;)
            run(instructions, count, mine, saved ? saved + group * saved_bytes : nullptr, inputs, outputs, group,
                images);
    };
    if (team && threads > 1 && groups > 1) {  // all of it: a team that shrinks ends threads and makes them again
        team([](void* all) { (*static_cast<decltype(work)*>(all))(); }, &work, threads, 0);
        return;
    }
    std::vector<std::thread> others;
    try {
        while (static_cast<int64_t>(others.size()) + 1 < std::min(threads, groups)) others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had: fewer do it
    }
    work();
    for (std::thread& other : others) other.join();
}

}
