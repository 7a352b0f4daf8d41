#include "tokenweave.h"

extern "C" int tw_abi_version(void) { return 3; }
