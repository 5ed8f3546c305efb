"""Time and memory of preparing a large corpus: reading, checking, alignment, labels, splits, duplicates.

    python benchmarks/preparation.py [--posts 50000] [--check]

The posts are of Reddit's lengths (`common.write_corpus`), each with nine criteria. Exits 1 if it takes
more than two minutes or 4 GiB. With `--check`, `psy-agents data check` is measured, with its page and
the updates that it times, and the limit is one minute.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from common import peak_memory_mib, write_corpus

from psy_agents_noaug.config.data_check import load_data_check_config
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.report.data_check import check_and_write
from psy_agents_noaug.run.data import prepare_data

MAX_SECONDS, MAX_CHECK_SECONDS, MAX_MIB = 120.0, 60.0, 4096.0


def main() -> int:
    """Prepare a corpus once, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--posts", type=int, default=50_000)
    parser.add_argument("--check", action="store_true", help="measure `psy-agents data check`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = write_corpus(Path(folder), n_posts=options.posts)
        began, of_cores = time.perf_counter(), time.process_time()
        if options.check:
            overrides.append(f"output={folder}/page")
            settings, config = load_data_check_config("criteria", overrides)
            valid = check_and_write(config, settings, overrides).facts.valid
            assert valid is not None
            data, limit = valid.data, MAX_CHECK_SECONDS
        else:
            data, limit = prepare_data(load_train_config("criteria", overrides)), MAX_SECONDS
        seconds, of_cores = time.perf_counter() - began, time.process_time() - of_cores
    memory = peak_memory_mib()
    n_pairs = sum(map(len, data.examples.values()))
    sys.stdout.write(
        f"{options.posts} posts, {n_pairs} pairs: {seconds:.1f} s ({of_cores:.1f} s of cores), "
        f"peak memory {memory:.0f} MiB\n"
    )
    # Another program on the machine makes the time longer, not that of the cores.
    return int(min(seconds, of_cores) > limit or memory > MAX_MIB)


if __name__ == "__main__":
    sys.exit(main())
