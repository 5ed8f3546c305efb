"""Print docs/reference/faults.md: the faults that the tests inject, from their `faults` markers.

python tools/fault_matrix.py > docs/reference/faults.md
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
HEAD = """# Faults

What happens when something fails, as the tests show that inject each fault into the real commands.
`make faults` runs them and prints this table with the result and the time of each row.
`python tools/fault_matrix.py > docs/reference/faults.md` writes it.

| area | fault | what happens |
|---|---|---|
"""


def rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield area, fault and what happens, of each marker of a file of tests."""
    area = path.stem.removeprefix("test_").replace("_", " ")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.faults":
            fault, outcome = map(ast.literal_eval, node.args)
            yield area, fault, outcome


def main() -> int:
    """Print the table."""
    found = {row: None for path in sorted(TESTS.rglob("test_*.py")) for row in rows(path)}
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in found]
    sys.stdout.write(HEAD + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
