// Sparse convolution on groups of 16 images, exact float32.
//
// A tensor lies in an arena as channel x (height + border) x (width + border) x 16 images, the images innermost, with a
// frame of zeros where a convolution reads past the edge. A program is a list of instructions, and every group of images
// runs through all of them: on one thread, or, where half of the threads or more would have no group, on all threads,
// which take parts of each instruction. Offsets and pitches count floats in the arena and bytes in what is saved for the backward
// pass. Products are fused with sums (FMA) where the processor can. A sum begins with the bias and what is added, then
// comes weight after weight: in the same order whatever the tile, the block of channels or the part is, so that the
// result does not depend on the number of threads.

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
constexpr int PARTS = 4;   // of an instruction for each thread, so that one that is slower leaves some to others
constexpr int64_t LEAST = 256;  // vectors of a part
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

// What a thread computes of an instruction: the first row and channel, and those after the last. Rows are of tiles, of
// the pool or, for FRAME, of the tensor with its frame.
struct Part {
    int64_t row, rows, channel, channels;
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
void sparse_tile(const Instruction& s, const Part& part, const Place& p) {
    const Entry* entries = static_cast<const Entry*>(s.entries);
    const int64_t row = s.in_row, channels = part.channels, out_row = s.out_row, out_col = s.out_col;
    const float leak = static_cast<float>(s.leak);
    for (int64_t block = 0; block < s.blocks; ++block) {
        const bool first = block == 0, last = block == s.blocks - 1;
        const int32_t* starts = s.starts + block * s.channels + part.channel;
        for (int64_t channel = part.channel; channel < channels; ++channel) {
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
void sparse_pixel(const Instruction& s, const Part& part, const Place& p) {
    constexpr int SUMS = 4;
    const Entry* entries = static_cast<const Entry*>(s.entries);
    for (int64_t channel = part.channel; channel < part.channels; ++channel) {
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
void dense_tile(const Instruction& s, const Part& part, const Place& p) {
    const Quad* entries = static_cast<const Quad*>(s.entries);
    const float leak = static_cast<float>(s.leak);
    for (int64_t first = part.channel; first < part.channels; first += QUAD) {
        const int64_t quad = first / QUAD, present = std::min<int64_t>(QUAD, part.channels - first);
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
void tiles(const Instruction& s, const Part& part, float* arena, uint8_t* saved, Tile tile) {
    for (int64_t lane = 0; lane < GROUP; lane += LANES)
        for (int64_t col = 0; col < s.cols; col += C)
            for (int64_t row = part.row; row < part.rows; ++row)
                tile(s, part, at(s, arena, saved, row * R, col, lane));
}

template <int GATE, bool ADD>
void convolve(const Instruction& s, const Part& part, float* arena, uint8_t* saved) {
    const bool next = s.in_col == GROUP;  // or the pixel after the next one
    switch (s.tile) {
        case PIXEL: tiles<1, 1>(s, part, arena, saved, sparse_pixel<GATE, ADD>); break;
        case FLAT:
            tiles<1, 8>(s, part, arena, saved,
                        next ? sparse_tile<1, 8, 1, GATE, ADD> : sparse_tile<1, 8, 2, GATE, ADD>);
            break;
        case SQUARE:
            tiles<2, 4>(s, part, arena, saved,
                        next ? sparse_tile<2, 4, 1, GATE, ADD> : sparse_tile<2, 4, 2, GATE, ADD>);
            break;
    }
}

template <int GATE>
void convolve_gated(const Instruction& s, const Part& part, float* arena, uint8_t* saved) {
    if (s.kind == DENSE)
        s.cols == 1 ? tiles<1, 1>(s, part, arena, saved, dense_tile<1, GATE>)
                    : tiles<1, WIDE>(s, part, arena, saved, dense_tile<WIDE, GATE>);
    else
        s.add < 0 ? convolve<GATE, false>(s, part, arena, saved) : convolve<GATE, true>(s, part, arena, saved);
}

void convolve(const Instruction& s, const Part& part, float* arena, uint8_t* saved) {
    switch (s.gate) {
        case OPEN: convolve_gated<OPEN>(s, part, arena, saved); break;
        case RELU: convolve_gated<RELU>(s, part, arena, saved); break;
        case MASK: convolve_gated<MASK>(s, part, arena, saved); break;
        case LEAK: convolve_gated<LEAK>(s, part, arena, saved); break;
    }
}

void pack(const Instruction& s, const Part& part, float* arena, const float* images, int64_t present) {
    const int64_t plane = s.rows * s.cols, image = s.channels * plane;
    for (int64_t channel = part.channel; channel < part.channels; ++channel)
        for (int64_t row = part.row; row < part.rows; ++row)
            for (int64_t col = 0; col < s.cols; ++col) {
                float* to = arena + s.out + channel * s.out_channel + row * s.out_row + col * s.out_col;
                const float* from = images + channel * plane + row * s.cols + col;
                for (int64_t k = 0; k < present; ++k) to[k] = from[k * image];
                for (int64_t k = present; k < GROUP; ++k) to[k] = 0.0f;
                if (s.mean)
                    for (int k = 0; k < GROUP; ++k) to[k] = (to[k] - s.mean[channel]) / s.std[channel];
            }
}

void unpack(const Instruction& s, const Part& part, const float* arena, float* images, int64_t present) {
    const int64_t plane = s.rows * s.cols, image = s.channels * plane;
    for (int64_t channel = part.channel; channel < part.channels; ++channel) {
        const float scale = s.std ? s.std[channel] : 1.0f;
        for (int64_t row = part.row; row < part.rows; ++row)
            for (int64_t col = 0; col < s.cols; ++col) {
                const float* from = arena + s.in + channel * s.in_channel + row * s.in_row + col * s.in_col;
                float* to = images + channel * plane + row * s.cols + col;
                for (int64_t k = 0; k < present; ++k) to[k * image] = from[k] / scale;
            }
    }
}

// Zeros around a tensor: `out` is its corner, the frame's corner lies window_rows and window_cols before it.
void frame(const Instruction& s, const Part& part, float* arena) {
    const int64_t high = s.window_rows, wide = s.window_cols, whole = s.cols + 2 * wide;
    for (int64_t channel = part.channel; channel < part.channels; ++channel) {
        float* corner = arena + s.out + channel * s.out_channel - high * s.out_row - wide * GROUP;
        for (int64_t row = part.row; row < part.rows; ++row) {
            float* begin = corner + row * s.out_row;
            if (row < high || row >= high + s.rows) {
                std::memset(begin, 0, whole * GROUP * 4);
            } else if (wide) {
                std::memset(begin, 0, wide * GROUP * 4);
                std::memset(begin + (wide + s.cols) * GROUP, 0, wide * GROUP * 4);
            }
        }
    }
}

// The largest of each window; where it stood is saved, the first of equals.
void pool(const Instruction& s, const Part& part, float* arena, uint8_t* saved) {
    for (int64_t channel = part.channel; channel < part.channels; ++channel)
        for (int64_t row = part.row; row < part.rows; ++row)
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

// Whether a pool's windows share rows.
bool overlaps(const Instruction& s) { return s.window_rows * s.out_row > s.window_row; }

// A pool's input gradient. A part of the rows takes the rows of its windows, the last one also those below all windows.
void unpool(const Instruction& s, const Part& part, float* arena, uint8_t* saved) {
    const int64_t wide = s.wide_cols, stride = s.window_row / s.out_row, top = part.row * stride;
    const int64_t bottom = part.rows == s.rows ? s.wide_rows : part.rows * stride;
    const float leak = static_cast<float>(s.leak);
    for (int64_t channel = part.channel; channel < part.channels; ++channel) {
        float* to = arena + s.out + channel * s.out_channel;
        for (int64_t row = top; row < bottom; ++row) std::memset(to + row * s.out_row, 0, wide * GROUP * 4);
        for (int64_t row = part.row; row < part.rows; ++row)
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
        for (int64_t row = top; (s.gate != OPEN || s.add >= 0) && row < bottom; ++row)
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

// The rows of an instruction that parts share out among them.
int64_t rows(const Instruction& s) {
    if (s.kind == FRAME) return s.rows + 2 * s.window_rows;
    return s.kind == CONV && s.tile == SQUARE ? (s.rows + 1) / 2 : s.rows;
}

// How an instruction is cut into parts: its rows into `along` ranges, and each of these into `across` ranges of channels.
// All instructions are cut alike, so that a thread finds most of what it reads in its own cache.
struct Cut {
    int64_t vectors = 0;  // that are multiplied or moved
    int64_t along = 1, across = 1;

    // At most `most` parts of at least `least` vectors.
    Cut(const Instruction& s, int64_t most, int64_t least) {
        const int64_t quads = (s.channels + QUAD - 1) / QUAD;
        int64_t every = s.channels;  // of a pixel
        if (s.kind == CONV) every += s.starts[s.blocks * s.channels];
        if (s.kind == DENSE) every += s.starts[quads] * QUAD;
        if (s.kind == POOL || s.kind == UNPOOL) every *= s.window_rows * s.window_cols;
        vectors = every * s.rows * s.cols;
        if (s.kind == FRAME) vectors = 2 * s.channels * (s.rows * s.window_cols + s.cols * s.window_rows);
        const int64_t wanted = std::max<int64_t>(1, std::min(most, vectors / least));
        if (s.kind != UNPOOL || !overlaps(s)) along = std::max<int64_t>(1, std::min(wanted, rows(s)));
        across = std::max<int64_t>(1, std::min(wanted / along, quads));
    }
    int64_t parts() const { return along * across; }

    Part part(const Instruction& s, int64_t number) const {
        const int64_t all = rows(s), quads = (s.channels + QUAD - 1) / QUAD, i = number / across, j = number % across;
        return {all * i / along, all * (i + 1) / along, quads * j / across * QUAD,
                std::min(s.channels, quads * (j + 1) / across * QUAD)};
    }
};

// A program on the images of one group.
struct Group {
    float* arena;
    uint8_t* saved;
    const float* const* inputs;
    float* const* outputs;
    int64_t number, images;  // of all groups

    void run(const Instruction& s, const Part& part) const {
        const int64_t image = s.channels * s.rows * s.cols, present = std::min<int64_t>(GROUP, images - number * GROUP);
        switch (s.kind) {
            case LOAD: pack(s, part, arena, inputs[s.port] + number * GROUP * image, present); break;
            case STORE: unpack(s, part, arena, outputs[s.port] + number * GROUP * image, present); break;
            case FRAME: frame(s, part, arena); break;
            case CONV:
            case DENSE: convolve(s, part, arena, saved); break;
            case POOL: pool(s, part, arena, saved); break;
            case UNPOOL: unpool(s, part, arena, saved); break;
        }
    }
};

// The parts of a whole program, in stages. A part may begin when all parts before its stage are done.
struct Schedule {
    struct Stage {
        const Instruction* instruction;
        Cut cut;
        int64_t first, after;  // its first part's number, and how many parts must be done before
    };
    std::vector<Stage> stages;
    int64_t parts = 0, vectors = 0;

    Schedule(const Instruction* instructions, int64_t count, int64_t most, int64_t least) {
        for (const Instruction* s = instructions; s < instructions + count; ++s) {
            // What fills a tensor neither reads nor writes its frame.
            const bool beside = s > instructions && s[-1].kind == FRAME;
            const int64_t after = beside ? stages.back().after : parts;
            stages.push_back({s, Cut(*s, most, least), parts, after});
            parts += stages.back().cut.parts();
            vectors += stages.back().cut.vectors;
        }
    }
};

void await(const std::atomic<int64_t>& done, int64_t wanted) {
    for (int tries = 0; done.load() < wanted; ++tries)
        if (tries > 1000) std::this_thread::yield();  // who works on it may wait for a processor
}

}  // namespace

extern "C" {

typedef void (*Team)(void (*work)(void*), void* with, unsigned threads, unsigned flags);

int64_t instruction_bytes() { return sizeof(Instruction); }
int64_t lanes() { return LANES; }

// Run a program on `images` images. `arenas`: one of `arena` floats for each thread; `saved`: `saved_bytes` for each
// group, or null. Pointers are aligned to 64 bytes, but for inputs and outputs (n, c, h, w). `team`: what has threads
// that are there already do something (GOMP_parallel), or null. Threads of our own beside a team that still waits busily
// for its next work would have to share the processor with it. `enough`: how many vectors a program must multiply or
// move for two threads to share a group; more threads have more to agree on.
void execute(const Instruction* instructions, int64_t count, float* arenas, int64_t arena, uint8_t* saved,
             int64_t saved_bytes, const float* const* inputs, float* const* outputs, int64_t images, int64_t threads,
             Team team, int64_t enough) {
    const int64_t groups = (images + GROUP - 1) / GROUP, rest = groups % threads;
    // Groups that would leave half of the threads or more without work are shared by all of them.
    const bool few = rest && 2 * rest <= threads;
    const Schedule schedule(instructions, few ? count : 0, threads * PARTS, std::min(LEAST, enough));
    const int64_t shared = few && schedule.vectors >= enough * threads / 2 ? rest : 0, whole = groups - shared;
    std::atomic<int64_t> workers{0}, next{0}, done{0};
    std::vector<std::atomic<bool>> begun(shared * schedule.parts);
    const std::thread::id caller = std::this_thread::get_id();
    auto group = [&](float* mine, int64_t number) {
        return Group{mine, saved ? saved + number * saved_bytes : nullptr, inputs, outputs, number, images};
    };
    auto work = [&] {
        // Whoever calls is always the first, so that it finds its own rows in its cache at the next call, too.
        const int64_t worker = std::this_thread::get_id() == caller ? 0 : 1 + workers.fetch_add(1);
        for (int64_t number; (number = next.fetch_add(1)) < whole; done.fetch_add(1)) {
            const Group all = group(arenas + worker * arena, number);
            for (const Instruction* s = instructions; s < instructions + count; ++s)
                all.run(*s, {0, rows(*s), 0, s->channels});
        }
        for (int64_t number = 0; number < shared; ++number)
            for (const Schedule::Stage& stage : schedule.stages) {
                await(done, whole + number * schedule.parts + stage.after);
                const int64_t parts = stage.cut.parts(), mine = worker * parts / threads;
                for (int64_t k = 0; k < parts; ++k) {  // one's own first, then what others have not begun
                    const int64_t part = (mine + k) % parts;
                    std::atomic<bool>& taken = begun[number * schedule.parts + stage.first + part];
                    if (taken.load(std::memory_order_relaxed) || taken.exchange(true)) continue;
                    group(arenas, whole + number).run(*stage.instruction, stage.cut.part(*stage.instruction, part));
                    done.fetch_add(1);
                }
            }
    };
    const int64_t helpers = std::min(threads, shared ? threads : groups) - 1;
    if (team && helpers > 0) {  // all of it: a team that shrinks ends threads and makes them again
        team([](void* all) { (*static_cast<decltype(work)*>(all))(); }, &work, threads, 0);
        return;
    }
    std::vector<std::thread> others;
    try {
        while (static_cast<int64_t>(others.size()) < helpers) others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had: fewer do it
    }
    work();
    for (std::thread& other : others) other.join();
}

}
