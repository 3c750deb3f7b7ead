"""metrics.csv: the numbers of metrics.jsonl as a table, for spreadsheets and pandas."""

import csv
from pathlib import Path

from metarun.output.sink import Sink


class CSV(Sink):
    """metrics.csv in the run folder: a row an event, a column a name; empty where an event does not tell that number.

    A resumed run writes it anew from metrics.jsonl.
    """

    anew = True

    def __init__(self, folder: Path) -> None:
        self.path, self.names = folder / "metrics.csv", ["step"]
        self._begin([])

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add a row; where it has names that are new, write the table again with their columns."""
        if new := [name for name in values if name not in self.names]:
            self.file.close()
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            self.names += new
            self._begin(rows)
        self.table.writerow({"step": step, **values})

    def _begin(self, rows: list[dict[str, str]]) -> None:
        self.file = self.path.open("w", buffering=1, newline="")
        self.table = csv.DictWriter(self.file, self.names, restval="")
        self.table.writeheader()
        self.table.writerows(rows)

    def ended(self, state: str) -> None:
        self.file.close()
