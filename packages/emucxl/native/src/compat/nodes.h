/* The context behind emucxl_lib.h: two tiers, whose numbers are the published nodes. */
#ifndef EMX_COMPAT_NODES_H
#define EMX_COMPAT_NODES_H

#include "emucxl/context.h"

/* Opens it as the environment asks. */
emx_status nodes_open(emx_context** context);

#endif
