// Sparse convolution on groups of 16 images, exact float32.
//
// A tensor lies in an arena as channel x (height + border) x (width + border) x 16 images, the images innermost, with a
// frame of zeros where a convolution reads past the edge. A program is a list of steps; every group of images runs
// through all of them on one thread, so that the result does not depend on the number of threads. Offsets and pitches
// count floats in the arena and bytes in what is saved for the backward pass. Products are fused with sums (FMA) where
// the processor can; nothing else is reordered.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

namespace {

constexpr int GROUP = 16;  // images in a group
constexpr int BLOCK = 4;   // output channels of a block, where weights are many
#if defined(__AVX512F__)
constexpr int LANES = 16, TILE = 16;
#elif defined(__AVX__)
constexpr int LANES = 8, TILE = 8;
#elif defined(__aarch64__)
constexpr int LANES = 4, TILE = 16;
#else
constexpr int LANES = 4, TILE = 8;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4), may_alias));
typedef int32_t Int __attribute__((vector_size(LANES * 4), may_alias));
typedef int8_t Byte __attribute__((vector_size(LANES), may_alias));

inline Vec splat(float x) { return Vec{} + x; }
inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<Vec*>(p) = x; }
inline Vec chosen(Int mask, Vec x) { return reinterpret_cast<Vec>(mask & reinterpret_cast<Int>(x)); }

struct Entry {
    int32_t offset;
    float weight;
};

struct Quad {
    int32_t offset;
    float weight[BLOCK];
};

enum Kind : int64_t { LOAD, STORE, FRAME, CONV, DENSE, POOL, UNPOOL };
enum Gate : int64_t { OPEN, RELU, MASK };  // nothing; max(x, 0), its sign saved; times the sign that was saved

struct Step {
    int64_t kind, gate, port;
    int64_t channels, rows, cols;                 // of the result (LOAD, STORE, FRAME: of the tensor)
    int64_t in, in_channel, in_row, in_col;       // where (0, 0, 0) is read, and from one output to the next
    int64_t out, out_channel, out_row, out_col;   // where it is written
    int64_t add, add_channel, add_row, add_col;   // what is added before the gate; add < 0: nothing
    int64_t saved, saved_channel, saved_row, saved_col;
    int64_t window_rows, window_cols, window_row, window_col;  // POOL, UNPOOL: its size and pitch. FRAME: its width
    int64_t sign, sign_channel, sign_row, sign_col;  // UNPOOL: the gate's, where `saved` is the places'
    int64_t wide_rows, wide_cols;                    // UNPOOL: of its result, where rows and cols are the pool's
    const int32_t* starts;  // channels + 1 (DENSE: blocks + 1) indices into entries
    const void* entries;
    const float* bias;      // one a channel, or null
    const float* mean;      // LOAD: (x - mean) / std; STORE: x / std; or null
    const float* std;
};

struct Place {
    const float* in;
    float* out;
    const float* add;
    int8_t* saved;
};

inline Place at(const Step& s, float* arena, int8_t* saved, int64_t row, int64_t col, int64_t lane) {
    return {arena + s.in + row * s.in_row + col * s.in_col + lane,
            arena + s.out + row * s.out_row + col * s.out_col + lane,
            s.add < 0 ? nullptr : arena + s.add + row * s.add_row + col * s.add_col + lane,
            s.saved < 0 || !saved ? nullptr : saved + s.saved + row * s.saved_row + col * s.saved_col + lane};
}

inline void finish(const Step& s, const Place& p, int64_t channel, int r, int c, Vec x) {
    if (p.add) x += load(p.add + channel * s.add_channel + r * s.add_row + c * s.add_col);
    if (s.gate == RELU) {
        const Int positive = x > Vec{};
        x = chosen(positive, x);
        if (p.saved) {
            Byte* sign = reinterpret_cast<Byte*>(p.saved + channel * s.saved_channel + r * s.saved_row + c * s.saved_col);
            *sign = __builtin_convertvector(positive, Byte);
        }
    } else if (s.gate == MASK) {
        const Byte* sign = reinterpret_cast<const Byte*>(
            p.saved + channel * s.saved_channel + r * s.saved_row + c * s.saved_col);
        x = chosen(__builtin_convertvector(*sign, Int), x);
    }
    store(p.out + channel * s.out_channel + r * s.out_row + c * s.out_col, x);
}

// R x C output pixels in registers while each channel's weights stream by. S: pixels from one input to the next, 0 when
// it is known only at run time. Small tiles take several partial sums, so that additions do not wait for each other.
template <int R, int C, int S>
void sparse_tile(const Step& s, const Place& p) {
    constexpr int SUMS = R * C >= 8 ? 1 : R * C >= 4 ? 2 : 4;
    const Entry* entries = static_cast<const Entry*>(s.entries);
    const int64_t col = S ? S * GROUP : s.in_col;
    for (int64_t channel = 0; channel < s.channels; ++channel) {
        Vec sum[SUMS][R][C];
        for (int k = 0; k < SUMS; ++k)
            for (int r = 0; r < R; ++r)
                for (int c = 0; c < C; ++c) sum[k][r][c] = Vec{};
        const Entry* e = entries + s.starts[channel];
        const Entry* end = entries + s.starts[channel + 1];
        for (; e + SUMS <= end; e += SUMS) {
            for (int k = 0; k < SUMS; ++k) {
                const Vec w = splat(e[k].weight);
                const float* in = p.in + e[k].offset;
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
                    for (int c = 0; c < C; ++c) sum[k][r][c] += w * load(in + r * s.in_row + c * col);
            }
        }
        for (; e < end; ++e) {
            const Vec w = splat(e->weight);
            const float* in = p.in + e->offset;
            for (int r = 0; r < R; ++r)
                for (int c = 0; c < C; ++c) sum[0][r][c] += w * load(in + r * s.in_row + c * col);
        }
        const Vec bias = splat(s.bias ? s.bias[channel] : 0.0f);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int c = 0; c < C; ++c) {
                Vec x = bias;
                for (int k = 0; k < SUMS; ++k) x += sum[k][r][c];
                finish(s, p, channel, r, c, x);
            }
    }
}

// Four output channels share what they read; a weight that one of them lacks is a zero.
template <int R, int C, int S>
void dense_tile(const Step& s, const Place& p) {
    const Quad* entries = static_cast<const Quad*>(s.entries);
    const int64_t col = S ? S * GROUP : s.in_col;
    for (int64_t first = 0, block = 0; first < s.channels; first += BLOCK, ++block) {
        Vec sum[BLOCK][R][C];
        for (int k = 0; k < BLOCK; ++k)
            for (int r = 0; r < R; ++r)
                for (int c = 0; c < C; ++c) sum[k][r][c] = Vec{};
        for (const Quad *e = entries + s.starts[block], *end = entries + s.starts[block + 1]; e < end; ++e) {
            const float* in = p.in + e->offset;
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
                for (int c = 0; c < C; ++c) {
                    const Vec x = load(in + r * s.in_row + c * col);
#pragma GCC unroll 4
                    for (int k = 0; k < BLOCK; ++k) sum[k][r][c] += splat(e->weight[k]) * x;
                }
        }
#pragma GCC unroll 4
        for (int k = 0; k < BLOCK; ++k) {
            if (first + k >= s.channels) break;
            const Vec bias = splat(s.bias ? s.bias[first + k] : 0.0f);
            for (int r = 0; r < R; ++r)
                for (int c = 0; c < C; ++c) finish(s, p, first + k, r, c, bias + sum[k][r][c]);
        }
    }
}

template <bool DENSELY, int R, int C>
void tile(const Step& s, const Place& p) {
    if constexpr (DENSELY) {
        if (s.in_col == GROUP) dense_tile<R, C, 1>(s, p);
        else if (s.in_col == 2 * GROUP) dense_tile<R, C, 2>(s, p);
        else dense_tile<R, C, 0>(s, p);
    } else {
        if (s.in_col == GROUP) sparse_tile<R, C, 1>(s, p);
        else if (s.in_col == 2 * GROUP) sparse_tile<R, C, 2>(s, p);
        else sparse_tile<R, C, 0>(s, p);
    }
}

// Tiles of R x C down a strip of C columns, then smaller ones for the rows that are left.
template <bool DENSELY, int R, int C>
void strip(const Step& s, float* arena, int8_t* saved, int64_t row, int64_t col, int64_t lane) {
    for (; row + R <= s.rows; row += R) tile<DENSELY, R, C>(s, at(s, arena, saved, row, col, lane));
    if constexpr (R > 1)
        if (row < s.rows) strip<DENSELY, R / 2, C>(s, arena, saved, row, col, lane);
}

template <bool DENSELY, int C>
void strips(const Step& s, float* arena, int8_t* saved, int64_t col, int64_t lane) {
    constexpr int PIXELS = DENSELY ? TILE / BLOCK : TILE;
    for (; col + C <= s.cols; col += C) strip<DENSELY, PIXELS / C, C>(s, arena, saved, 0, col, lane);
    if constexpr (C > 1)
        if (col < s.cols) strips<DENSELY, C / 2>(s, arena, saved, col, lane);
}

void pack(const Step& s, float* arena, const float* images, int64_t present) {
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

void unpack(const Step& s, const float* arena, float* images, int64_t present) {
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
void frame(const Step& s, float* arena) {
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
void pool(const Step& s, float* arena, int8_t* saved) {
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
                                                 col * s.saved_col + lane) = __builtin_convertvector(place, Byte);
                }
}

// A pool's input gradient.
void unpool(const Step& s, float* arena, int8_t* saved) {
    const int64_t high = s.wide_rows, wide = s.wide_cols;
    for (int64_t channel = 0; channel < s.channels; ++channel) {
        float* to = arena + s.out + channel * s.out_channel;
        for (int64_t row = 0; row < high; ++row) std::memset(to + row * s.out_row, 0, wide * GROUP * 4);
        for (int64_t row = 0; row < s.rows; ++row)
            for (int64_t col = 0; col < s.cols; ++col)
                for (int64_t lane = 0; lane < GROUP; lane += LANES) {
                    const Vec x = load(arena + s.in + channel * s.in_channel + row * s.in_row + col * s.in_col + lane);
                    const Int place = __builtin_convertvector(
                        *reinterpret_cast<const Byte*>(saved + s.saved + channel * s.saved_channel + row * s.saved_row +
                                                       col * s.saved_col + lane), Int);
                    float* corner = to + row * s.window_row + col * s.window_col + lane;
                    for (int32_t k = 0; k < s.window_rows * s.window_cols; ++k) {
                        float* pixel = corner + k / s.window_cols * s.out_row + k % s.window_cols * s.out_col;
                        store(pixel, load(pixel) + chosen(place == k, x));
                    }
                }
        for (int64_t row = 0; (s.gate == MASK || s.add >= 0) && row < high; ++row)
            for (int64_t col = 0; col < wide; ++col)
                for (int64_t lane = 0; lane < GROUP; lane += LANES) {
                    float* pixel = to + row * s.out_row + col * s.out_col + lane;
                    Vec x = load(pixel);
                    if (s.add >= 0)
                        x += load(arena + s.add + channel * s.add_channel + row * s.add_row + col * s.add_col + lane);
                    if (s.gate == MASK)
                        x = chosen(__builtin_convertvector(
                                       *reinterpret_cast<const Byte*>(saved + s.sign +
                                                                      channel * s.sign_channel +
                                                                      row * s.sign_row + col * s.sign_col +
                                                                      lane), Int), x);
                    store(pixel, x);
                }
    }
}

void run(const Step* steps, int64_t count, float* arena, int8_t* saved, const float* const* inputs,
         float* const* outputs, int64_t group, int64_t images) {
    const int64_t present = std::min<int64_t>(GROUP, images - group * GROUP);
    for (const Step* s = steps; s < steps + count; ++s) {
        const int64_t image = s->channels * s->rows * s->cols;
        switch (s->kind) {
            case LOAD: pack(*s, arena, inputs[s->port] + group * GROUP * image, present); break;
            case STORE: unpack(*s, arena, outputs[s->port] + group * GROUP * image, present); break;
            case FRAME: frame(*s, arena); break;
            case CONV:
                for (int64_t lane = 0; lane < GROUP; lane += LANES) strips<false, TILE>(*s, arena, saved, 0, lane);
                break;
            case DENSE:
                for (int64_t lane = 0; lane < GROUP; lane += LANES)
                    strips<true, TILE / BLOCK>(*s, arena, saved, 0, lane);
                break;
            case POOL: pool(*s, arena, saved); break;
            case UNPOOL: unpool(*s, arena, saved); break;
        }
    }
}

}  // namespace

extern "C" {

int64_t step_bytes() { return sizeof(Step); }
int64_t lanes() { return LANES; }

// Run a program on `images` images. `arenas`: one of `arena` floats for each thread; `saved`: `saved_bytes` for each
// group, or null. Pointers are aligned to 64 bytes, but for inputs and outputs (n, c, h, w).
void execute(const Step* steps, int64_t count, float* arenas, int64_t arena, int8_t* saved, int64_t saved_bytes,
             const float* const* inputs, float* const* outputs, int64_t images, int64_t threads) {
    const int64_t groups = (images + GROUP - 1) / GROUP;
    std::atomic<int64_t> next{0};
    auto work = [&](int64_t worker) {
        for (int64_t group; (group = next.fetch_add(1)) < groups;)
            run(steps, count, arenas + worker * arena, saved ? saved + group * saved_bytes : nullptr, inputs, outputs,
                group, images);
    };
    std::vector<std::thread> others;
    try {
        for (int64_t worker = 1; worker < std::min(threads, groups); ++worker) others.emplace_back(work, worker);
    } catch (const std::system_error&) {  // no more threads to be had: fewer do it
    }
    work(0);
    for (std::thread& other : others) other.join();
}

}
