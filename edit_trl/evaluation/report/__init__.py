"""The report (L3): runs, or dual CoTs, as one HTML page that needs nothing else.

`items` and `summary` make the page's data from runs and training histories, `page` puts them into the
template. The page itself is `template.html`, `page.css` and the scripts in `SCRIPTS`; it builds every element
by itself, and shows data as text only.
"""

from edit_trl.evaluation.report.page import write_pairs, write_report

__all__ = ["write_pairs", "write_report"]
