/* Facts about heaps, one function each. `heap_facts` lists them, `heap_facts NAME` proves one. */
#include <stdio.h>
#include <string.h>

#include "heap_facts/facts.h"

void every_size_is_handed_out_exactly(void);
void small_blocks_waste_at_most_an_eighth(void);
void large_blocks_lie_on_extents(void);
void one_page_holds_256_small_blocks(void);
void few_blocks_of_many_sizes_fit_in_a_small_tier(void);
void a_block_grows_into_free_pages_behind_it(void);
void a_terabyte_costs_what_is_used(void);
void a_thread_that_ends_gives_its_cache_back(void);
void caches_are_emptied_before_a_tier_is_full(void);
void a_thread_uses_more_heaps_than_it_remembers(void);
void a_heap_may_end_before_the_threads_that_used_it(void);
void lookups_are_exact_beside_threads_that_allocate(void);
void a_fork_finds_the_heap_whole(void);
void a_wrong_pointer_is_refused(void);
void arguments_that_make_no_sense_are_refused(void);
void a_poisoned_page_is_never_handed_out_again(void);
void objects_on_a_poisoned_page_are_retired(void);
void extents_are_committed_once_and_given_back_by_trim(void);

#define FACT(name) {#name, name}
static const struct {
    const char* name;
    void (*prove)(void);
} facts[] = {
    FACT(every_size_is_handed_out_exactly),
    FACT(small_blocks_waste_at_most_an_eighth),
    FACT(large_blocks_lie_on_extents),
    FACT(one_page_holds_256_small_blocks),
    FACT(few_blocks_of_many_sizes_fit_in_a_small_tier),
    FACT(a_block_grows_into_free_pages_behind_it),
    FACT(a_terabyte_costs_what_is_used),
    FACT(a_thread_that_ends_gives_its_cache_back),
    FACT(caches_are_emptied_before_a_tier_is_full),
    FACT(a_thread_uses_more_heaps_than_it_remembers),
    FACT(a_heap_may_end_before_the_threads_that_used_it),
    FACT(lookups_are_exact_beside_threads_that_allocate),
    FACT(a_fork_finds_the_heap_whole),
    FACT(a_wrong_pointer_is_refused),
    FACT(arguments_that_make_no_sense_are_refused),
    FACT(a_poisoned_page_is_never_handed_out_again),
    FACT(objects_on_a_poisoned_page_are_retired),
    FACT(extents_are_committed_once_and_given_back_by_trim),
};

int main(int count, char** arguments) {
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; ++i) {
        if (count < 2) puts(facts[i].name);
        else if (strcmp(facts[i].name, arguments[1]) == 0) facts[i].prove();
    }
    return 0;
}
