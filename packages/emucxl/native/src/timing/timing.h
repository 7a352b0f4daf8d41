/* Checks of timings. */
#ifndef EMX_TIMING_H
#define EMX_TIMING_H

#include "emucxl/timing.h"

/* EMX_E_INVALID, naming the field, unless every figure is one that the model can play. */
emx_status timing_validate(const emx_timing* timing);
bool timing_is_zero(const emx_timing* timing);
/* By what the curve multiplies latency at `utilisation`. */
double timing_latency_factor(const emx_timing* timing, double utilisation);

#endif
