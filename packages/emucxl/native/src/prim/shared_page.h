/* Small shared memory behind a descriptor: a memfd, or a file that only this user may open. */
#ifndef EMX_PRIM_SHARED_PAGE_H
#define EMX_PRIM_SHARED_PAGE_H

#include "emucxl/status.h"

/* A memfd of `size_bytes` zero bytes that cannot shrink. */
emx_status shared_page_create(const char* name, size_t size_bytes, int* fd);

/* Another descriptor for what `fd` stands for. EMX_E_FOREIGN unless that is a file or memfd of `size_bytes`.
 */
emx_status shared_page_duplicate(int fd, size_t size_bytes, int* own);

/* Opens the regular file at `path`: EMX_E_NOT_FOUND if there is none, EMX_E_PERMISSION if it is another
 * user's or open to others, EMX_E_FOREIGN if it is no file of `size_bytes`. */
emx_status shared_page_open(const char* path, size_t size_bytes, int* fd);

/* Makes the file at `path` (mode 0600) with `contents`, all at once: others see it complete or not at all.
 * EMX_E_EXISTS if there is one. */
emx_status shared_page_publish(const char* path, const void* contents, size_t size_bytes, int* fd);

emx_status shared_page_map(int fd, size_t size_bytes, void** page);
void shared_page_unmap(void* page, size_t size_bytes);
void shared_page_close(int fd);

#endif
