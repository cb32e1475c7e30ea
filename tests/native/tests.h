// The sections of the test program.
#pragma once

namespace cattn::test {

void test_accuracy();     // shapes and options against the reference
void test_edges();        // NaN and infinity, masks, empty arrays, huge offsets
void test_variants();     // every other option and type in memory, packed sequences, rope
void test_kernels();      // the kernel tables directly
void test_pairs();        // products on pairs of bfloat16, emulated tiles
void test_errors();       // bad problems
void test_threads();      // executors, determinism, calls at once
void test_fork();         // calls in a forked child
void test_environment();  // floating-point state

}  // namespace cattn::test
