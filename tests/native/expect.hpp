// For tests of headers: EXPECT ends the program where a condition does not hold.
#pragma once

#include <cstdio>
#include <cstdlib>

#define EXPECT(condition)                                                        \
  do {                                                                           \
    if (!(condition)) {                                                          \
      std::printf("%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                              \
    }                                                                            \
  } while (false)
