// A table of 128 bytes in two registers, in AVX512-VBMI, behind vec/avx512bf16.h. See vec/pairs.h.
class ByteTable {
 public:
  CATTN_INLINE explicit ByteTable(const uint8_t* bytes)
      : lower_(_mm512_loadu_si512(bytes)), upper_(_mm512_loadu_si512(bytes + 64)) {}
  CATTN_INLINE Pairs::W at(Pairs::W places) const {
    return _mm512_maskz_permutex2var_epi8(low_bytes_, lower_, places, upper_);
  }

 private:
  Pairs::W lower_, upper_;
  __mmask64 low_bytes_ = Pairs::kept<__mmask64>(0x5555555555555555);
};
