/* The processor's caches. */
#ifndef EMX_PRIM_CACHE_H
#define EMX_PRIM_CACHE_H

#define CACHE_LINE_BYTES 64

/* Throws the line of `address` out of every cache, where a program may do that (x86); elsewhere it does
 * nothing. Done when cache_flush_done returns. */
void cache_flush_line(const void* address);
void cache_flush_done(void);

#endif
