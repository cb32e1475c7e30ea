# The one table of instruction sets: name, architecture, what /proc/cpuinfo calls it, compiler flags.
# A new ISA is a row here, a vec/<name>.h, an isa_<name>.cpp and a line in core/dispatch.cpp.
set(CATTN_ISAS "")

# Whether this machine has what a row names, if it says.
set(CATTN_CPU_FLAGS "")
if(EXISTS /proc/cpuinfo AND NOT CMAKE_CROSSCOMPILING)
  file(STRINGS /proc/cpuinfo CATTN_CPU_FLAGS REGEX "^flags" LIMIT_COUNT 1)
endif()
function(cattn_runs_here result cpu_flag)
  set(${result} ON PARENT_SCOPE)
  if(CATTN_CPU_FLAGS AND cpu_flag AND NOT "${CATTN_CPU_FLAGS} " MATCHES " ${cpu_flag} ")
    set(${result} OFF PARENT_SCOPE)
  endif()
endfunction()

# An object of kernels, with the flags of its ISA.
function(cattn_kernel_object target source)
  add_library(${target} OBJECT ${source})
  target_link_libraries(${target} PRIVATE cattn_flags)
  # The kernels are written for an optimising compiler in every build type: at -O0 the vector
  # wrappers would be calls, and inline functions would become weak symbols.
  if(CATTN_SANITIZE)
    set(level -O1)  # checks make inlined kernels so large that more would take minutes
  else()
    set(level -O3)
  endif()
  target_compile_options(${target} PRIVATE ${level} ${ARGN} -fno-math-errno
    -fno-trapping-math -fno-exceptions -fno-rtti -fno-stack-protector)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE
      -fno-var-tracking  # following every variable of an unrolled kernel takes minutes
      -Wno-maybe-uninitialized -Wno-uninitialized)  # GCC 12 warns about its own intrinsics
  endif()
  set_target_properties(${target} PROPERTIES INTERPROCEDURAL_OPTIMIZATION OFF)
endfunction()

function(cattn_isa name architectures cpu_flag)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "${architectures}")
    return()
  endif()
  cattn_runs_here(runs "${cpu_flag}")
  if(CATTN_SANITIZE AND NOT runs)  # such a build is for tests, and takes many minutes
    message(STATUS "Without kernels for ${name}, which this machine cannot run")
    return()
  endif()
  cattn_kernel_object(cattn_isa_${name} src/kernels/isa_${name}.cpp ${ARGN})
  set(CATTN_ISAS ${CATTN_ISAS} ${name} PARENT_SCOPE)
endfunction()

set(CATTN_AVX512_FLAGS -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c
  -mprefer-vector-width=512)
# Loops that matter are unrolled where they stand: -O3 only makes this one 0.6 MB larger.
if(NOT CATTN_SANITIZE)
  set(CATTN_GENERIC_LEVEL -O2)
endif()
cattn_isa(generic ".*" "" ${CATTN_GENERIC_LEVEL})
cattn_isa(avx2    "x86_64|AMD64" avx2 -mavx2 -mfma -mf16c)
cattn_isa(avx512  "x86_64|AMD64" avx512vl ${CATTN_AVX512_FLAGS})
cattn_isa(avx512bf16 "x86_64|AMD64" avx512_bf16 ${CATTN_AVX512_FLAGS} -mavx512bf16)
cattn_isa(amx     "x86_64|AMD64" amx_bf16 ${CATTN_AVX512_FLAGS} -mavx512bf16 -mavx512vbmi
  -mamx-tile -mamx-bf16)
cattn_runs_here(emulates avx512_bf16)
if(CATTN_EMULATED_TILES AND NOT emulates)
  message(STATUS "Without emulated tiles, which take AVX512-BF16")
elseif(CATTN_EMULATED_TILES)
  cattn_isa(amx_emulated "x86_64|AMD64" avx512_bf16 ${CATTN_AVX512_FLAGS} -mavx512bf16 -mavx512vbmi)
endif()
# GCC would load so far ahead of the products that accumulators go to memory.
cattn_isa(neon    "aarch64|arm64" "" $<$<CXX_COMPILER_ID:GNU>:-fno-schedule-insns>)
