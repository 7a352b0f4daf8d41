/* Weak answers for calls whose file is still to come; a real definition anywhere replaces them. */
#define UNBUILT(name) __attribute__((weak, visibility("default"))) int name(void) { return 6; }

UNBUILT(emx_region_get_info) UNBUILT(emx_region_check_access)
