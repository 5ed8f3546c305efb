"""Time and memory of preparing a large corpus: reading, checking, alignment, labels, splits, duplicates.

    python benchmarks/preparation.py [--posts 50000]

The posts are of Reddit's lengths (`common.write_corpus`), each with nine criteria. Exits 1 if it takes
more than two minutes or 4 GiB.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from common import peak_memory_mib, write_corpus

from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.run.data import prepare_data

MAX_SECONDS, MAX_MIB = 120.0, 4096.0


def main() -> int:
    """Prepare a corpus once, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--posts", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = write_corpus(Path(folder), n_posts=options.posts)
        config = load_train_config("criteria", overrides)
        began = time.perf_counter()
        data = prepare_data(config)
        seconds = time.perf_counter() - began
    memory = peak_memory_mib()
    n_pairs = sum(map(len, data.examples.values()))
    sys.stdout.write(
        f"{options.posts} posts, {n_pairs} pairs: {seconds:.1f} s, peak memory {memory:.0f} MiB\n"
    )
    return int(seconds > MAX_SECONDS or memory > MAX_MIB)


if __name__ == "__main__":
    sys.exit(main())
