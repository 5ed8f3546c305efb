import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_the_table_of_faults_is_that_of_the_tests() -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "fault_matrix.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert (REPOSITORY / "docs" / "reference" / "faults.md").read_text(
        encoding="utf-8"
    ) == printed.stdout
