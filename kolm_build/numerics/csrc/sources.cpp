// Which sources this library was compiled from: whoever loads it compares (spec/numerics.md, NUM-102).

// "sha256:" and 64 hex digits.
extern "C" __attribute__((visibility("default"))) const char* kolm_sources() {
  return KOLM_SOURCES;
}
