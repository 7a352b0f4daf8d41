#include "prim/text_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

long text_file_read(const char* path, char* text, size_t capacity) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    size_t length = 0;
    for (ssize_t got; length < capacity - 1 && (got = read(fd, text + length, capacity - 1 - length)) > 0;)
        length += (size_t)got;
    close(fd);
    text[length] = '\0';
    return (long)length;
}

uint64_t text_file_field(const char* text, const char* key, uint64_t missing) {
    const size_t length = strlen(key);
    for (const char* line = text; line != NULL;
         line = strchr(line, '\n'), line = line != NULL ? line + 1 : NULL)
        if (strncmp(line, key, length) == 0) return strtoull(line + length, NULL, 10);
    return missing;
}
