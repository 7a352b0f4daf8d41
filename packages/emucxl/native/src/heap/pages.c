/* Runs of pages. Free ones are binned by length (a two-level segregated fit): any run of the first bin at or
 * above the wanted length will do, which a few bitmap words tell. A run's neighbours are found through the
 * bitmap of run starts, so that freeing coalesces at once and needs nothing at a run's end. */
#include <string.h>

#include "heap/internal.h"

unsigned bin_of(size_t num_pages) {
    if (num_pages < 16) return (unsigned)num_pages;
    const unsigned top = bits_highest(num_pages);
    return (top - 3) * 16 + (unsigned)(num_pages >> (top - 4) & 15);
}

/* The first bin whose every run has at least `num_pages`. */
static unsigned bin_above(size_t num_pages) {
    if (num_pages < 16) return (unsigned)num_pages;
    return bin_of(num_pages + ((size_t)1 << (bits_highest(num_pages) - 4)) - 1);
}

static unsigned next_filled_bin(const heap* heap, unsigned bin) {
    for (unsigned word = bin / 64; word * 64 < NUM_BINS; ++word) {
        const uint64_t bits =
            word == bin / 64 ? heap->bin_bits[word] & (~0ull << bin % 64) : heap->bin_bits[word];
        if (bits) return word * 64 + bits_lowest(bits);
    }
    return NUM_BINS;
}

static void bin_insert(heap* heap, size_t page) {
    run* run = &heap->runs[page];
    const unsigned bin = bin_of(run->num_pages);
    run->previous = NO_PAGE;
    run->next = heap->bin_bits[bin / 64] >> bin % 64 & 1 ? heap->bins[bin] : NO_PAGE;
    if (run->next != NO_PAGE) heap->runs[run->next].previous = (uint32_t)page;
    heap->bins[bin] = (uint32_t)page;
    heap->bin_bits[bin / 64] |= 1ull << bin % 64;
}

static void bin_remove(heap* heap, size_t page) {
    const run* run = &heap->runs[page];
    const unsigned bin = bin_of(run->num_pages);
    if (run->next != NO_PAGE) heap->runs[run->next].previous = run->previous;
    if (run->previous != NO_PAGE) heap->runs[run->previous].next = run->next;
    else if (run->next != NO_PAGE) heap->bins[bin] = run->next;
    else heap->bin_bits[bin / 64] &= ~(1ull << bin % 64);
}

/* ---- runs ---------------------------------------------------------------------------------------------- */

static void run_begin(heap* heap, size_t page, size_t num_pages, run_kind kind) {
    heap->runs[page].num_pages = (uint32_t)num_pages;
    run_set_tag(heap, page, tag_of(kind, 0, 0));
    bitmap_set(&heap->starts, page);
}

static void run_end(heap* heap, size_t page) {
    run_set_tag(heap, page, tag_of(RUN_NONE, 0, 0));
    bitmap_clear(&heap->starts, page);
}

static bool is_free(const heap* heap, size_t page) { return tag_kind(run_tag(heap, page)) == RUN_FREE; }

/* Pages that no run covers become free, together with free neighbours. */
static void insert_free(heap* heap, size_t page, size_t num_pages) {
    const size_t behind = page + num_pages;
    if (behind < heap->num_pages && is_free(heap, behind)) {
        num_pages += heap->runs[behind].num_pages;
        bin_remove(heap, behind);
        run_end(heap, behind);
    }
    const size_t before = page > 0 ? head_of(heap, page - 1) : BITS_NONE;
    if (before != BITS_NONE && is_free(heap, before)) {
        num_pages += page - before;
        bin_remove(heap, before);
        page = before;
    }
    run_begin(heap, page, num_pages, RUN_FREE);
    bin_insert(heap, page);
}

static void retire(heap* heap, size_t page) {
    run_begin(heap, page, 1, RUN_RETIRED);
    heap->retired_pages++;
}

/* The same for pages that were used, some of which may have been poisoned meanwhile. */
static void release(heap* heap, size_t page, size_t num_pages) {
    const size_t end = page + num_pages;
    if (heap->touchable) bits_fill(heap->dirty, page, end, true);
    while (page < end) {
        const size_t bad = poison_find_page(heap, page, end);
        if (bad > page) insert_free(heap, page, bad - page);
        if (bad < end) retire(heap, bad);
        page = bad + 1;
    }
}

/* Cuts [at, at + num_pages) out of the free run at `page`. */
static void carve(heap* heap, size_t page, size_t at, size_t num_pages, run_kind kind) {
    const size_t end = page + heap->runs[page].num_pages;
    bin_remove(heap, page);
    if (at > page) {
        run_begin(heap, page, at - page, RUN_FREE);
        bin_insert(heap, page);
    }
    run_begin(heap, at, num_pages, kind);
    if (at + num_pages < end) {
        run_begin(heap, at + num_pages, end - at - num_pages, RUN_FREE);
        bin_insert(heap, at + num_pages);
    }
}

/* ---- finding a run ------------------------------------------------------------------------------------- */

static size_t align_up(size_t page, size_t alignment) { return (page + alignment - 1) & ~(alignment - 1); }

/* The last resort before "full": looks at every run that could do, which is slow only where few are left. */
static size_t find_anywhere(const heap* heap, size_t num_pages, size_t alignment) {
    for (unsigned bin = bin_of(num_pages); (bin = next_filled_bin(heap, bin)) < NUM_BINS; ++bin)
        for (uint32_t page = heap->bins[bin]; page != NO_PAGE; page = heap->runs[page].next)
            if (align_up(page, alignment) + num_pages <= (size_t)page + heap->runs[page].num_pages)
                return page;
    return BITS_NONE;
}

/* A free run that holds `num_pages` at a multiple of `alignment`. */
static size_t find_run(const heap* heap, size_t num_pages, size_t alignment) {
    const size_t enough = num_pages + alignment - 1; /* wherever the run starts */
    if (enough <= heap->num_pages) {
        const unsigned bin = next_filled_bin(heap, bin_above(enough));
        if (bin < NUM_BINS) return heap->bins[bin];
    }
    return find_anywhere(heap, num_pages, alignment);
}

/* ---- memory behind the pages --------------------------------------------------------------------------- */

static size_t pages_least(size_t a, size_t b) { return a < b ? a : b; }

/* Whole extents are committed at once, so that the system is asked seldom. */
static emx_status commit(heap* heap, size_t page, size_t num_pages) {
    const provider* provider = heap->pages->provider;
    if (!provider->commit || bits_find(heap->committed, page, page + num_pages, false) == page + num_pages)
        return EMX_OK;
    const size_t end = pages_least(align_up(page + num_pages, EXTENT_PAGES), heap->num_pages);
    size_t from = page & ~(size_t)(EXTENT_PAGES - 1);
    while ((from = bits_find(heap->committed, from, end, false)) < end) {
        const size_t to = bits_find(heap->committed, from, end, true);
        const emx_status status =
            provider->commit(heap->pages, from << PAGE_SHIFT, (to - from) << PAGE_SHIFT);
        if (status != EMX_OK) return status;
        bits_fill(heap->committed, from, to, true);
        from = to;
    }
    return EMX_OK;
}

/* Used only to trim. Zeroing a large dirty run by exchanging its pages for fresh ones takes 4 to 10 times as
 * long as memset, faults included (docs/memory/heap.md). */
static emx_status decommit(heap* heap, size_t from, size_t to) {
    const provider* provider = heap->pages->provider;
    const emx_status status = provider->decommit(heap->pages, from << PAGE_SHIFT, (to - from) << PAGE_SHIFT);
    if (status != EMX_OK) return status;
    bits_fill(heap->committed, from, to, false);
    bits_fill(heap->dirty, from, to, false);
    return EMX_OK;
}

/* ---- the calls ----------------------------------------------------------------------------------------- */

void pages_prepare(heap* heap) {
    if (heap->touchable && !heap->pages->fresh_is_zero) bits_fill(heap->dirty, 0, heap->num_pages, true);
    insert_free(heap, 0, heap->num_pages);
}

static void count_reserved(heap* heap, size_t num_pages) {
    heap->reserved_pages += num_pages;
    if (heap->reserved_pages > heap->peak_reserved_pages) heap->peak_reserved_pages = heap->reserved_pages;
}

emx_status pages_alloc(heap* heap, size_t num_pages, size_t alignment_pages, run_kind kind, size_t* page) {
    /* Large runs on extents get huge pages, if that can be had. */
    size_t alignment = num_pages >= EXTENT_PAGES ? EXTENT_PAGES : alignment_pages;
    size_t found = find_run(heap, num_pages, alignment);
    if (found == BITS_NONE && alignment > alignment_pages)
        found = find_run(heap, num_pages, alignment = alignment_pages);
    if (found == BITS_NONE) return EMX_E_TIER_FULL;
    const size_t at = align_up(found, alignment);
    const emx_status status = commit(heap, at, num_pages);
    if (status != EMX_OK) return status;
    carve(heap, found, at, num_pages, kind);
    count_reserved(heap, num_pages);
    *page = at;
    return EMX_OK;
}

void pages_free(heap* heap, size_t page) {
    const size_t num_pages = heap->runs[page].num_pages;
    heap->reserved_pages -= num_pages;
    run_end(heap, page);
    release(heap, page, num_pages);
}

bool pages_extend(heap* heap, size_t page, size_t num_pages) {
    const size_t now = heap->runs[page].num_pages, behind = page + now, more = num_pages - now;
    if (behind == heap->num_pages || !is_free(heap, behind) || heap->runs[behind].num_pages < more)
        return false;
    if (commit(heap, behind, more) != EMX_OK) return false;
    carve(heap, behind, behind, more, RUN_NONE);
    run_end(heap, behind); /* its pages belong to the run before them now */
    heap->runs[page].num_pages = (uint32_t)num_pages;
    count_reserved(heap, more);
    return true;
}

void pages_shrink(heap* heap, size_t page, size_t num_pages) {
    const size_t less = heap->runs[page].num_pages - num_pages;
    if (less == 0) return;
    heap->runs[page].num_pages = (uint32_t)num_pages;
    heap->reserved_pages -= less;
    release(heap, page + num_pages, less);
}

void pages_retire_free(heap* heap, size_t page) {
    carve(heap, head_of(heap, page), page, 1, RUN_RETIRED);
    heap->retired_pages++;
}

void pages_zero(const heap* heap, size_t page, size_t num_pages) {
    if (!heap->touchable) return;
    const size_t end = page + num_pages;
    for (size_t from = page; (from = bits_find(heap->dirty, from, end, true)) < end;) {
        const size_t to = bits_find(heap->dirty, from, end, false);
        memset(page_address(heap, from), 0, (to - from) << PAGE_SHIFT);
        from = to;
    }
}

emx_status pages_trim(heap* heap) {
    if (!heap->pages->provider->decommit) return EMX_OK;
    const bits_word* held = heap->pages->provider->commit ? heap->committed : heap->dirty;
    for (unsigned bin = 0; (bin = next_filled_bin(heap, bin)) < NUM_BINS; ++bin) {
        for (uint32_t page = heap->bins[bin]; page != NO_PAGE; page = heap->runs[page].next) {
            const size_t end = (size_t)page + heap->runs[page].num_pages;
            for (size_t from = page; (from = bits_find(held, from, end, true)) < end;) {
                const size_t to = bits_find(held, from, end, false);
                const emx_status status = decommit(heap, from, to);
                if (status != EMX_OK) return status;
                from = to;
            }
        }
    }
    return EMX_OK;
}
