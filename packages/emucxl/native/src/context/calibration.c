/* A context's calibration, when it was not at hand as the context was opened. */
#include "context/internal.h"
#include "fail.h"

emx_status emx_context_set_calibration(emx_context* context, const emx_calibration* calibration) {
    emx_status status = context_require(context);
    if (status != EMX_OK) return status;
    if (calibration == NULL || calibration->struct_bytes != sizeof *calibration)
        return fail(EMX_E_INVALID,
                    "got no emx_calibration of %zu bytes; expected one as emx_calibrate fills it in",
                    sizeof *calibration);
    pthread_mutex_lock(&context->adding);
    if (context->has_calibration) {
        status = fail(EMX_E_EXISTS,
                      "the context has a calibration, which its tiers rely on; open another context");
    } else {
        context->calibration = *calibration;
        if (!context->clock.is_virtual) context->clock.exit_overhead_ns = calibration->exit_overhead_ns;
        context->has_calibration = true;
    }
    pthread_mutex_unlock(&context->adding);
    return status;
}
