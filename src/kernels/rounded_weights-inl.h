// Weights of bfloat16, 2^x of x <= 0, without the detour by float32.
//
// The bits of 2^n (1 + m) as a bfloat16 are the whole number 128 (n + 127 + m), rounded. For
// x = n + f, with f the fraction of x, that is 128 (x + 127) less 128 (1 + f - 2^f), which is small
// and the same in every octave. So x becomes a fixed-point number of 16 bits, 32 of them in a
// vector, with two more binary digits than a bfloat16 has; a table for 128 parts of an octave says
// how much is to be subtracted; and then the two digits are rounded away. 9 instructions for 32
// weights, or 11 where x may be anything; a polynomial takes 15.
//
// x = 0 gives 1 exactly, and what is below 2^-127, -inf too, gives 0.

// Of x: what is to be subtracted, in quarters of the last digit, cut off: by half a quarter on
// average, which place() adds less.
struct WeightCorrections {
  alignas(64) uint8_t quarters[128] = {};

  constexpr WeightCorrections() {
    for (int i = 0; i < 128; ++i) {
      const double f = i / 128.0;
      quarters[i] = static_cast<uint8_t>(512 * (1 + f - exp2_of(f)));
    }
  }

 private:
  static constexpr double exp2_of(double x) {
    double sum = 1, term = 1;
    for (int n = 1; n < 20; ++n) sum += term *= x * 0.69314718055994530942 / n;
    return sum;
  }
};

class BFloat16Weights {
 public:
  // Fixed-point numbers: `units` of them an octave.
  static constexpr float units = 512;
  CATTN_INLINE static float place(float x) {
    // Two digits are cut off, 0 to 3, on average 1.5; the corrections miss 0.5.
    constexpr float half_of_rest = 1;
    return (x + 127) * units + half_of_rest;
  }
  // Added to a place that is a whole number it leaves this in the last bits of the float32, to
  // which what is added then rounds.
  static constexpr float in_last_bits = 0x1p23f;

  CATTN_INLINE BFloat16Weights() : corrections_(kCorrections.quarters) {}

  // The weights of 32 places in a row, in halves. kFinite: none of them is NaN.
  template <bool kFinite>
  CATTN_INLINE Pairs::W at(Pairs::V first, Pairs::V second) const {
    const auto weights = at_whole(Pairs::whole_pairs(first, second));
    if constexpr (kFinite) return weights;
    return weights | Pairs::nan_pairs(first, second);  // NaN has come as 0
  }
  // The same of places in the last bits: those of weights that are bfloat16, or of -inf.
  CATTN_INLINE Pairs::W at_last_bits(Pairs::V first, Pairs::V second) const {
    return at_whole(last_bits_.of(first, second));
  }

  // total + weights, by lanes.
  CATTN_INLINE static Pairs::V add(Pairs::V total, Pairs::W weights) {
    constexpr uint16_t ones[2] = {kOne<Pairs>, kOne<Pairs>};
    return Pairs::multiply_add(total, weights, Pairs::broadcast(ones));
  }

 private:
  CATTN_INLINE Pairs::W at_whole(Pairs::W places) const {
    const auto corrections = corrections_.at(Pairs::shift_halves_right<2>(places));
    return Pairs::shift_halves_right<2>(Pairs::subtract_halves(places, corrections));
  }
  static constexpr WeightCorrections kCorrections{};
  ByteTable corrections_;
  Pairs::LastBits last_bits_;
};
