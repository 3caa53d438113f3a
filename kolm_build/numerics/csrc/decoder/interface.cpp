// libkolm_decoder.so: the decoder behind a C interface, for kolm_build/numerics/decoder_library.py.
#include <cmath>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string_view>
#include <system_error>

#include "decoder.h"

#define KOLM_API extern "C" __attribute__((visibility("default")))

using kolm::Kernels;
using kolm::decoder::Decoder;
using kolm::decoder::Network;
using kolm::decoder::Room;
using kolm::decoder::Span;

namespace {

// What a call says.
enum Status : int { kDone = 0, kNoNumbers = 1, kEnvironment = 2, kMemory = 3, kNoToken = 4, kThreads = 5 };

// Held while the pool of threads computes: it has one job at a time, and so has a decoder.
std::mutex& computing() {
  static std::mutex mutex;
  return mutex;
}

const Kernels* table(const char* isa) {
  const Kernels* const* tables = kolm::available_kernels();
  if (isa == nullptr) return *tables;
  for (; *tables; ++tables)
    if (std::string_view(isa) == (*tables)->isa) return *tables;
  return nullptr;
}

bool are_tokens(int64_t count, const int32_t* ids, int64_t vocabulary) {
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= vocabulary) return false;
  return true;
}

bool are_numbers(int64_t n, const float* x) {
  for (int64_t i = 0; i < n; ++i)
    if (!std::isfinite(x[i])) return false;
  return true;
}

template <class Body>
int status_of(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return kMemory;
  } catch (const std::length_error&) {  // more than any memory holds
    return kMemory;
  } catch (const std::system_error&) {
    return kThreads;
  }
}

}  // namespace

// Which sources this library was compiled from, those of this folder among them: "sha256:" and 64
// hex digits.
KOLM_API const char* kolm_sources() { return KOLM_SOURCES; }

// The name of instruction set `number` that this machine can run, best first; null past the last.
KOLM_API const char* kolm_isa(int number) {
  const Kernels* const* tables = kolm::available_kernels();
  for (int i = 0; i <= number; ++i)
    if (!tables[i]) return nullptr;
  return tables[number]->isa;
}

// A decoder of `network`, which is copied; its layers' table is not needed afterwards, its tensors
// are. Null where there is no such instruction set, or no memory.
KOLM_API Decoder* kolm_decoder_new(const Network* network, const char* isa, int threads) {
  const Kernels* kernels = table(isa);
  if (kernels == nullptr) return nullptr;
  try {
    return new Decoder(*network, *kernels, threads);
  } catch (const std::exception&) {  // no memory, or more than any holds
    return nullptr;
  }
}

KOLM_API void kolm_decoder_delete(Decoder* decoder) { delete decoder; }

// Starts the threads, and writes what is wrong with the floating point environment of one that
// computes; null for nothing.
KOLM_API int kolm_decoder_trouble(Decoder* decoder, const char** trouble) {
  const std::lock_guard<std::mutex> lock(computing());
  return status_of([&] {
    *trouble = decoder->trouble();
    return kDone;
  });
}

KOLM_API Room* kolm_room_new(Decoder* decoder) {
  return new (std::nothrow) Room(decoder->network());
}

KOLM_API void kolm_room_delete(Room* room) { delete room; }
KOLM_API int64_t kolm_room_length(Room* room) { return room->length(); }

// Reads tokens[i] tokens into rooms[i]; the logits are [count, vocabulary].
KOLM_API int kolm_decoder_read(Decoder* decoder, int64_t count, Room* const* rooms,
                               const int64_t* tokens, const int32_t* ids, float* logits) {
  const std::lock_guard<std::mutex> lock(computing());
  return status_of([&] {
    if (Decoder::trouble_here() != nullptr) return kEnvironment;
    std::vector<Span> spans;
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) {
      spans.push_back({rooms[i], tokens[i]});
      total += tokens[i];
      if (tokens[i] < 1) return kNoToken;
    }
    const int64_t vocabulary = decoder->network().vocabulary;
    if (!are_tokens(total, ids, vocabulary)) return kNoToken;
    decoder->read(spans.data(), count, ids, logits);
    return are_numbers(count * vocabulary, logits) ? kDone : kNoNumbers;
  });
}

KOLM_API void kolm_room_keep(Decoder* decoder, Room* room, void* kept) {
  decoder->keep(*room, room->length(), kept);
}

KOLM_API int kolm_room_start(Decoder* decoder, Room* room, const void* kept, int64_t kept_tokens,
                             int64_t tokens) {
  return status_of([&] {
    decoder->start(*room, kept, kept_tokens, tokens);
    return kDone;
  });
}

// The probabilities of `n` logits (NUM-30).
KOLM_API void kolm_softmax(Decoder* decoder, int64_t n, const float* x, float* y) {
  decoder->kernels().rows.softmax(n, x, y);
}

// base[i] ** exponent[i].
KOLM_API void kolm_power(int64_t n, const float* base, const float* exponent, float* y) {
  kolm::available_kernels()[0]->maps.binary(kolm::Binary::pow, n, base, exponent, y, 0.0f);
}
