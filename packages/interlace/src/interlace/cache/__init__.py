"""cache: the room of keys and values that outlive their request. For now it is seen from above: simulated on traces.

`block_trace` reads which blocks requests asked for, `recorder` writes it; `policies` decide which blocks tiers keep;
`tier_spec` says how large a tier is and how far away; `prefill` what a server takes for what was not found; `simulator`
runs the one through the other in virtual time. `sample` and `scaled_trace` make a trace small enough for a live engine.

Imports errors, the timings of `emucxl` and the links and prices of `tokenweave`; no torch, nothing of the engine.
"""
