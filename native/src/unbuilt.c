/* Weak answers for calls whose file is still to come; a real definition anywhere replaces them. */
#define UNBUILT(name) __attribute__((weak, visibility("default"))) int name(void) { return 6; }
UNBUILT(path_create) UNBUILT(path_destroy) UNBUILT(model_clock_now) UNBUILT(model_clock_reach) UNBUILT(transfer_run)
UNBUILT(emx_link_create) UNBUILT(emx_link_attach) UNBUILT(emx_link_open) UNBUILT(emx_link_fd) UNBUILT(emx_link_close)
UNBUILT(emx_link_get_config) UNBUILT(emx_link_get_stats) UNBUILT(emx_link_reserve) UNBUILT(emx_now_ns)
UNBUILT(emx_wait_until) UNBUILT(emx_calibrate) UNBUILT(emx_check_timing)
UNBUILT(emx_engine_create) UNBUILT(emx_engine_close) UNBUILT(emx_engine_submit) UNBUILT(emx_completion_wait)
UNBUILT(emx_completion_release) UNBUILT(emx_region_get_info) UNBUILT(emx_region_check_access)
