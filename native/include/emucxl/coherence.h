/* The coherence model: what a host sees of bytes that another host wrote. */
#ifndef EMUCXL_COHERENCE_H
#define EMUCXL_COHERENCE_H

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __cplusplus
}
#endif
#endif
