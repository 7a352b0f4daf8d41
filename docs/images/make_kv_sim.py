"""Draws kv-sim.svg: the hit rate and the time to first token of a trace against the bytes of the cache.

python docs/images/make_kv_sim.py                  draws what kv_sim.json holds
python docs/images/make_kv_sim.py --record TRACE   simulates the trace first, and keeps what comes of it

The recording is of conversation_trace.jsonl, of kvcache-ai/Mooncake (Apache-2.0). Times are modelled.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from interlace.cli.kv_chart import draw

HERE = Path(__file__).parent


def main() -> None:
    recording = HERE / "kv_sim.json"
    if "--record" in sys.argv:
        command = ["interlace", "kv-sim", sys.argv[sys.argv.index("--record") + 1], "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        recording.write_text(json.dumps(json.loads(done.stdout), indent=1) + "\n")
    (HERE / "kv-sim.svg").write_text(draw(json.loads(recording.read_text())))


if __name__ == "__main__":
    main()
