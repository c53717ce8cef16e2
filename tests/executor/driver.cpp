// Runs programs that Python wrote, on buffers of exactly the size that the kernels are promised, and compares.
//
// `driver TOLERANCE FILE...`: each file holds a forward and a backward program with their inputs and the outputs that
// are expected. Every program runs on one thread and on several, our own and lent ones, which share the groups of images
// where these are few; the forward one also without saving. What the kernels must not read before they write it is filled with ones: NaN, and signs that are all set. An
// output may be TOLERANCE times the largest expected one away from what is expected; at 0 every bit must be the same.
// Ends with 1 where one is further away, and where no thread was lent.

#include "../../bench/executor/kernels.cpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>

namespace {

struct Free {
    void operator()(void* p) const { std::free(p); }
};

// Memory of exactly that many bytes, aligned to 64 as an arena must be, or to no more than a number as all else may be.
struct Buffer {
    std::unique_ptr<void, Free> memory;
    int64_t bytes = 0;
    explicit Buffer(int64_t size, bool arena = false) : bytes(size) {
        void* found = nullptr;
        if (arena ? posix_memalign(&found, 64, size) : !(found = std::malloc(size))) std::abort();
        memory.reset(found);
        std::memset(found, 0xFF, size);
    }
    template <typename T>
    T* as() const {
        return static_cast<T*>(memory.get());
    }
};

struct File {
    std::FILE* file;
    explicit File(const char* path) : file(std::fopen(path, "rb")) {
        if (!file) std::perror(path), std::exit(2);
    }
    ~File() { std::fclose(file); }
    void read(void* to, int64_t bytes) {
        if (bytes && std::fread(to, bytes, 1, file) != 1) std::fputs("a file is cut short\n", stderr), std::exit(2);
    }
    int64_t number() {
        int64_t found;
        read(&found, sizeof found);
        return found;
    }
    Buffer buffer() {
        Buffer found(number());
        read(found.memory.get(), found.bytes);
        return found;
    }
    std::vector<Buffer> buffers() {
        std::vector<Buffer> found;
        for (int64_t left = number(); left > 0; --left) found.push_back(buffer());
        return found;
    }
};

struct Program {
    int64_t arena, pitch;  // floats: of one thread's arena, and from one to the next
    std::vector<Buffer> inputs, expected, blobs;
    Buffer instructions;  // their pointers: the number of a blob, from 1 on, or null

    explicit Program(File& file)
        : arena(file.number()), pitch(file.number()), inputs(file.buffers()), expected(file.buffers()),
          blobs(file.buffers()), instructions(file.buffer()) {
        for (Instruction* s = begin(); s < begin() + count(); ++s) {
            place(s->starts), place(s->bias), place(s->mean), place(s->std);
            s->entries = s->entries ? blobs[reinterpret_cast<intptr_t>(s->entries) - 1].memory.get() : nullptr;
        }
    }
    Instruction* begin() const { return instructions.as<Instruction>(); }
    int64_t count() const { return instructions.bytes / static_cast<int64_t>(sizeof(Instruction)); }
    template <typename T>
    void place(const T*& pointer) const {
        if (pointer) pointer = blobs[reinterpret_cast<intptr_t>(pointer) - 1].as<T>();
    }

    // How far the outputs are from what is expected, relative to the largest of these; 0 where every bit is the same.
    double apart(int64_t images, int64_t threads, Team team, uint8_t* saved, int64_t saved_bytes) const {
        Buffer arenas(((threads - 1) * pitch + arena) * 4, true);
        std::vector<const float*> from;
        std::vector<Buffer> made;
        std::vector<float*> to;
        for (const Buffer& input : inputs) from.push_back(input.as<float>());
        for (const Buffer& output : expected) {
            made.emplace_back(output.bytes);
            to.push_back(made.back().as<float>());
        }
        execute(begin(), count(), arenas.as<float>(), pitch, saved, saved_bytes, from.data(), to.data(), images,
                threads, team, 1);
        double worst = 0;
        for (size_t k = 0; k < made.size(); ++k) {
            if (!std::memcmp(made[k].memory.get(), expected[k].memory.get(), made[k].bytes)) continue;
            double largest = 1e-30, furthest = 0;
            for (int64_t i = 0; i < made[k].bytes / 4; ++i) {
                const double wanted = expected[k].as<float>()[i];
                const double distance = std::fabs(to[k][i] - wanted);
                largest = std::fmax(largest, std::fabs(wanted));
                furthest = distance <= furthest ? furthest : distance;  // NaN, too, is further
            }
            const double far = furthest / largest;
            worst = far <= worst ? worst : far;
        }
        return worst;
    }
};

int64_t times_lent = 0;

// Threads that are lent, as torch lends its own.
void lent(void (*work)(void*), void* with, unsigned threads, unsigned) {
    ++times_lent;
    std::vector<std::thread> others;
    for (unsigned other = 1; other < threads; ++other) others.emplace_back(work, with);
    work(with);
    for (std::thread& other : others) other.join();
}

struct Way {
    int64_t threads;
    Team team;
};

}  // namespace

int main(int argc, char** argv) {
    const double tolerance = std::atof(argv[1]);
    bool fine = true;
    std::printf("%d floats wide\n", static_cast<int>(lanes()));
    for (int k = 2; k < argc; ++k) {
        File file(argv[k]);
        const int64_t images = file.number(), saved_bytes = file.number();
        const Program forward(file), backward(file);
        for (const auto& [threads, team] : {Way{1, nullptr}, Way{2, lent}, Way{3, nullptr}, Way{3, lent}, Way{4, nullptr}}) {
            Buffer saved((images + GROUP - 1) / GROUP * saved_bytes, true);
            const double apart[] = {forward.apart(images, threads, team, nullptr, saved_bytes),
                                    forward.apart(images, threads, team, saved.as<uint8_t>(), saved_bytes),
                                    backward.apart(images, threads, team, saved.as<uint8_t>(), saved_bytes)};
            for (double far : apart) fine = fine && far <= tolerance;
            std::printf("%s, %d threads%s: apart %g %g %g\n", argv[k], static_cast<int>(threads), team ? ", lent" : "",
                        apart[0], apart[1], apart[2]);
        }
    }
    return !fine || !times_lent;
}
