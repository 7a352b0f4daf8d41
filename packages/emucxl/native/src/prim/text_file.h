/* The kernel's short text files, and their fields. */
#ifndef EMX_PRIM_TEXT_FILE_H
#define EMX_PRIM_TEXT_FILE_H

#include <stddef.h>
#include <stdint.h>

/* A short text file, cut to `capacity` - 1 bytes and terminated; the number of bytes, or -1. */
long text_file_read(const char* path, char* text, size_t capacity);

/* The number after `key` at the start of a line; `missing` if there is none. */
uint64_t text_file_field(const char* text, const char* key, uint64_t missing);

#endif
