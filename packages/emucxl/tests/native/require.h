/* What the programs of the tests require: a condition that does not hold ends the program, with a line that names it. */
#ifndef EMUCXL_TESTS_REQUIRE_H
#define EMUCXL_TESTS_REQUIRE_H

#include <stdio.h>
#include <stdlib.h>

#include "emucxl.h"

#define REQUIRE(condition)                                                                           \
    do {                                                                                             \
        if (!(condition)) {                                                                          \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, emx_error_detail()); \
            exit(1);                                                                                 \
        }                                                                                            \
    } while (0)

#endif
